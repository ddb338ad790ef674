"""Reads Parquet files for another process, with a limit on its memory and time: its end harms nobody.

Started by :mod:`vqstack.codes.columns` as a program of its own, never imported. A file may come from anybody, and the
library believes what pages and footers claim: it takes memory for that, or ends the process where it should raise.

Its argument says, as JSON, what to read; lines of standard input name the files. Answers each with a stream of Arrow,
which has a batch for each group of rows, or none where only what files say of themselves is asked for. What is wrong
with a file goes to standard error; the exit code is then 3.
"""

import json
import os
import resource
import sys
import time
from typing import Any

REFUSED = 3  # exit code
MARGIN = 2**25  # bytes beyond those of a group of rows: the library starts a thread, which has a stack of 8 MiB
OVERHEAD = 64  # bytes that a value may take while it is read: levels of nesting, dictionaries, copies
SECONDS, SPEED = 10, 10**6  # of the processor for a file; values that are read in another one


def main() -> None:
    task = json.loads(sys.argv[1])
    sys.path[:] = task["path"]  # as in the process that asks, which may have its modules in unusual places
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # others reserve more than they use
    import pyarrow as pa
    import pyarrow.parquet as pq

    sites = sum(sites for _, _, sites in task["columns"])
    limit_memory(MARGIN + OVERHEAD * sites * task["group"])
    for name, rows in map(json.loads, sys.stdin):
        limit(resource.RLIMIT_CPU, int(time.process_time()) + SECONDS + rows * sites // SPEED)
        try:
            with pq.ParquetFile(name) as file:
                columns = check(file, rows, task)
                schema = pa.schema([file.schema_arrow.field(column) for column in columns])
                with pa.ipc.new_stream(sys.stdout.buffer, schema) as stream:
                    for number in range(file.num_row_groups if task["read"] else 0):
                        table = file.read_row_group(number, columns=columns, use_threads=False)
                        stream.write_table(table.select(columns).combine_chunks())
            sys.stdout.flush()
        except Exception as error:  # the library raises what it likes
            print(str(error)[:1000] or type(error).__name__, file=sys.stderr)
            sys.exit(REFUSED)


def limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def limit_memory(room: int) -> None:
    """No more than ``room`` bytes beyond what the process has; other kernels than Linux know no such limit."""
    limit(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[5]) * resource.getpagesize()
        limit(resource.RLIMIT_DATA, taken + room)


def check(file: Any, rows: int, task: dict[str, Any]) -> list[str]:
    """The columns to read; ValueError unless the file says of itself what the manifest says of it."""
    about, schema = file.metadata, file.schema_arrow
    if about.num_rows != rows:
        raise ValueError(f"{about.num_rows} rows where manifest.json has {rows}")
    wanted = {name: (depth, sites) for name, depth, sites in task["columns"] if name != "label" or name in schema.names}
    for name, (depth, _) in wanted.items():
        if schema.names.count(name) != 1:
            raise ValueError(f"{schema.names.count(name)} columns {name}, not one")
        if depth_of(schema.field(name).type) != depth:
            raise ValueError(f"column {name} is {schema.field(name).type}, not whole numbers in {depth} lists")
    about.to_dict()  # ends the process at a codec that it does not know
    for group in map(about.row_group, range(about.num_row_groups)):
        if group.num_rows > task["group"]:
            raise ValueError(f"a group of {group.num_rows} rows, and {task['group']} or fewer are read at a time")
        for column in map(group.column, range(group.num_columns)):
            name = column.path_in_schema.partition(".")[0]
            if name in wanted and column.num_values > group.num_rows * wanted[name][1]:
                belong = group.num_rows * wanted[name][1]
                raise ValueError(f"column {name} has {column.num_values} values where {belong} belong")
    return list(wanted)


def depth_of(kind: Any) -> int | None:
    """How many lists are wrapped around a whole number, of whatever width; None if it is not a whole number."""
    from pyarrow import types

    depth = 0
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth if types.is_integer(kind) else None


if __name__ == "__main__":
    main()
