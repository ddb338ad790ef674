"""Reads what Parquet files say about themselves, in a process whose end harms nobody.

Started by :mod:`vqstack.codes.footers` as a program of its own, never imported: the library ends the whole process at
some footers, where it should raise. Takes ``{"path": where modules are found, "files": names}`` as JSON from standard
input and prints the number of each file before it begins it, so that the last number tells where it ended.
"""

import json
import sys


def main() -> None:
    given = json.load(sys.stdin)
    sys.path[:] = given["path"]  # as in the process that asks, which may have its modules in unusual places
    import pyarrow.parquet as pq

    for number, name in enumerate(given["files"]):
        print(number, flush=True)
        try:
            with pq.ParquetFile(name) as file:
                file.metadata.to_dict()  # every group of rows, every column, their codecs, places and statistics
                str(file.schema_arrow)
        except Exception as error:  # the process that asks meets it too, and says what it means
            print(f"{number}: {error!r}", file=sys.stderr)


if __name__ == "__main__":
    main()
