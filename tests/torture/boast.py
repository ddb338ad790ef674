"""Parquet files of which a dictionary claims more than it holds."""

from pathlib import Path

import pyarrow.parquet as pq


def boast(path: Path, column: int, size: int | None = None, count: int = 10, stored: int | None = None) -> None:
    """Let the dictionary of a column claim ``size`` bytes, ``stored`` of them in the file, and ``count`` values.

    Its header grows and its content shrinks by as much, so that all else stays where it is; too short a one is left.
    """
    pq.write_table(pq.read_table(path), path, compression="snappy" if size else "none")
    about = pq.ParquetFile(path).metadata.row_group(0).column(column)
    place, inside = about.dictionary_page_offset, about.data_page_offset - about.dictionary_page_offset - len(_header())
    if inside > 0:
        header = _header(size or inside, inside if stored is None else stored, count)
        content = path.read_bytes()
        path.write_bytes(content[:place] + header + content[place + len(header) :])


def _header(size: int = 0, stored: int = 0, count: int = 0) -> bytes:
    """The header of a dictionary in the compact form of Thrift, of the same length whatever its numbers."""

    def number(value: int) -> bytes:
        value = 2 * value if value >= 0 else -2 * value - 1  # zigzag
        return bytes([value >> 7 * i & 127 | (128 if i < 4 else 0) for i in range(5)])

    numbers = b"\x15\x04\x15" + number(size) + b"\x15" + number(stored)
    return numbers + b"\x4c\x15" + number(count) + b"\x15\x00\x12\x00\x00"
