"""Code maps as Parquet columns: nested lists of the smallest unsigned integers, without a Python object per code.

A file may come from anybody: another process reads it (:mod:`vqstack.codes.reader`), and its values are checked here.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqstack.codes.manifest import Contents, Shard
from vqstack.codes.storage import smallest_dtype
from vqstack.errors import InputError

ROW_GROUP = 4096  # images in one group of rows, which is what is read at a time
MAX_CLASSES = 10**6  # where a data set does not name them; no model knows more
GROUP_SITES = 2**26  # sites of one level in one group: bounds memory, and keeps list offsets inside 32 bits
READER = Path(__file__).with_name("reader.py")
REFUSED = 3  # its exit code
AGAIN = "encode the data set again"


def fields(contents: Contents, labelled: bool) -> list[Any]:
    """The columns of every file, in order."""
    found = [pa.field("index", pa.int64())] + [pa.field("label", pa.int64())] * labelled
    for level, (shape, vocabulary) in enumerate(zip(contents.map_shapes, contents.vocabularies, strict=True), 1):
        kind = pa.from_numpy_dtype(smallest_dtype(vocabulary))
        for _ in shape:
            kind = pa.list_(kind)
        found.append(pa.field(f"codes_{level}", kind))
    return found


def group_rows(contents: Contents) -> int:
    """Images in one group of rows."""
    return max(1, min(ROW_GROUP, GROUP_SITES // max(math.prod(shape) for shape in contents.map_shapes)))


def write_rows(path: Path, contents: Contents, index: Any, labels: Any, maps: list[NDArray[Any]]) -> None:
    """Writes one file from arrays, in groups of rows; labels that are not known (None) are null."""
    size = group_rows(contents)
    schema = pa.schema(fields(contents, contents.labelled))
    with pq.ParquetWriter(path, schema) as file:
        for start in range(0, len(index), size):
            file.write_table(_table(schema, slice(start, start + size), index, labels, maps))


def _table(schema: Any, rows: slice, index: Any, labels: Any, maps: list[NDArray[Any]]) -> Any:
    columns = [pa.array(index[rows])]
    if "label" in schema.names:
        columns.append(pa.nulls(len(columns[0]), pa.int64()) if labels is None else pa.array(labels[rows]))
    return pa.table([*columns, *(_nested(level[rows]) for level in maps)], schema=schema)


def tables(folder: Path, shards: Iterable[Shard], contents: Contents, read: bool) -> Iterator[tuple[Path, Any]]:
    """Files and their groups of rows, as tables of the known columns; an empty one for a file of which none is read.

    Another process reads them, one for all files; to start it takes half a second. InputError names the file that is
    not as ``contents`` say, or that ends that process.

    Args:
        folder: of the data set.
        shards: what to read, each asked for when those before it are read.
        contents: what the files have in common.
        read: the rows; else only what a file says about itself is looked at.
    """
    columns = [("index", 0, 1), ("label", 0, 1)]
    columns += [(f"codes_{n}", len(shape), math.prod(shape)) for n, shape in enumerate(contents.map_shapes, 1)]
    task = {"path": sys.path, "columns": columns, "group": group_rows(contents), "read": read}
    command, pipe = [sys.executable, "-I", str(READER), json.dumps(task)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as child:
        assert child.stdin is not None
        try:
            for shard in shards:
                path, left = shard.path(folder), shard.rows if read else 0
                if not path.is_file():
                    raise InputError(f"{path}: no such file, and the manifest has one; {AGAIN}")
                try:
                    child.stdin.write(json.dumps([str(path.absolute()), shard.rows]).encode() + b"\n")
                    child.stdin.flush()
                    stream = pa.ipc.open_stream(child.stdout)
                    if not left:
                        yield path, stream.schema.empty_table()
                    for batch in stream:
                        left -= len(batch)
                        yield path, pa.Table.from_batches([batch])
                    if left:
                        raise EOFError
                except (pa.ArrowException, OSError, EOFError) as error:
                    raise _ended(child, path) from error
        finally:
            child.kill()


def _ended(child: subprocess.Popen[bytes], path: Path) -> Exception:
    """Why there is no more to read of a file."""
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    child.stdout.close()
    with suppress(BrokenPipeError):  # of what it has not read
        child.stdin.close()
    errors, code = child.stderr.read().decode(errors="replace"), child.wait()
    if code > 0 and code != REFUSED:
        return RuntimeError(f"{READER} ended with code {code}: {errors[-1000:]}")
    problem = errors if code == REFUSED else f"the process that reads it ended with code {code}"
    return InputError(f"{path}: cannot be read ({problem}); {AGAIN}")


def to_labels(table: Any, classes: int, path: Path) -> Tensor | None:
    """The labels of a table, below ``classes``, or None where they are missing or all null."""
    if "label" not in table.column_names or (len(table) > 0 and table["label"].null_count == len(table)):
        return None
    return to_codes(table, "label", [], classes, path)


def to_codes(table: Any, name: str, shape: list[int], vocabulary: int | None, path: Path) -> Tensor:
    """A column of nested lists -> int64 [n, *shape], checked; the inverse of :func:`_nested`."""
    column = table[name]
    count = len(column)
    for size in shape:
        if column.null_count or not pc.all(pc.equal(pc.list_value_length(column), size), min_count=0).as_py():
            raise InputError(f"{path}: column {name} has maps that are not of shape {shape}; {AGAIN}")
        column = pc.list_flatten(column)
    if column.null_count:
        raise InputError(f"{path}: column {name} has missing values; {AGAIN}")
    values = column.to_numpy()
    if vocabulary is not None and values.size and not (values.min() >= 0 and values.max() < vocabulary):
        found = f"numbers from {values.min()} to {values.max()}"
        raise InputError(f"{path}: column {name} has {found}, outside 0 … {vocabulary - 1}; {AGAIN}")
    return torch.from_numpy(values.astype(np.int64).reshape(count, *shape))


def _nested(maps: NDArray[Any]) -> Any:
    """[n, *map] -> an arrow array of n nested lists, without a Python object per code."""
    array = pa.array(maps.reshape(-1))
    for axis in range(maps.ndim - 1, 0, -1):
        lists = int(np.prod(maps.shape[:axis]))
        array = pa.ListArray.from_arrays(np.arange(lists + 1, dtype=np.int32) * maps.shape[axis], array)
    return array
