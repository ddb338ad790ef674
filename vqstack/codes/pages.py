"""What the pages of a Parquet file claim, looked at before the library takes memory for them.

A column of a group of rows is a chain of pages, each behind a header in the compact form of Thrift. The library
believes the sizes and counts in it; here they must be possible for the bytes that are there. Only what our writer
writes is known, and only in the form in which it is written, so that nothing can be understood in two ways:

- fields 1 to 3 of a header are the kind of page, its size, and its size in the file; field 5 describes a page of
  values, field 7 a dictionary, in fields 1 (count of values) and 2 (how they are encoded) of their own
  (https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift);
- a field is a byte (steps from the number of the field before; type) and its content; a structure ends with a zero
  (https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md).
"""

import os
from typing import IO, Any

LONGEST = 4096  # bytes of a header; written ones have some fifty
SNAPPY = 22  # bytes that one can become: three name at most 64 that came before
DATA, DICTIONARY, DATA_V2 = 0, 2, 3
PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8
TRUE, FALSE, I32, I64, BINARY, STRUCT = 1, 2, 5, 6, 8, 12


class ForeignError(ValueError):
    """A file that may well be valid, in a form that is not read here: another tool wrote it, or it is damaged."""


def check_pages(file: IO[bytes], column: Any) -> None:
    """ValueError where the pages of a column claim more than the file can hold; ForeignError where they are of others.

    Args:
        file: the Parquet file.
        column: what the end of the file says of the column (``pyarrow.parquet.ColumnChunkMetaData``).
    """
    if column.compression not in ("SNAPPY", "UNCOMPRESSED"):
        raise ForeignError(f"a column is compressed by {column.compression}")
    first = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < first:
        first = column.dictionary_page_offset
    place, end, values = first, first + column.total_compressed_size, 0
    if first < 0 or end > os.fstat(file.fileno()).st_size:
        raise ValueError("a column that is not inside the file")
    while place < end:
        file.seek(place)
        header = _Header(file.read(LONGEST))
        kind, size, stored, count = header.page()
        if not 0 <= stored <= end - place - header.place or not 0 <= size <= SNAPPY * stored:
            raise ValueError(f"a page claims {size} bytes, {stored} of them in the file")
        if kind == DICTIONARY and (place != first or count > size):
            raise ValueError(f"a dictionary of {count} values in {size} bytes, or in the wrong place")
        place += header.place + stored
        values += count if kind == DATA else 0
    if values != column.num_values:
        raise ValueError(f"the pages of a column claim {values} values, not {column.num_values}")


class _Header:
    """The header of a page, read front to back; ``place`` is how far. ValueError where it is none that we write."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def page(self) -> tuple[int, int, int, int]:
        """Kind of the page, its bytes, those of them in the file, its values."""
        numbers, structures = self._structure(inside=0)
        kind, size, stored = (numbers.get(number, -1) for number in (1, 2, 3))
        about = structures.get({DATA: 5, DICTIONARY: 7}.get(kind, 0), {})
        count, encoding = about.get(1, -1), about.get(2, -1)
        if encoding not in (PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY):
            what = "a data page of version 2" if kind == DATA_V2 else f"a page of kind {kind} and encoding {encoding}"
            raise ForeignError(what)
        if count < 0:  # empty ones are written: dictionaries of missing values, pages where one more would have begun
            raise ValueError(f"a page of {count} values")
        return kind, size, stored, count

    def _structure(self, inside: int) -> tuple[dict[int, int], dict[int, dict[int, int]]]:
        """The whole numbers (of 32 bits) in a structure and in the structures in it, by the numbers of their fields."""
        numbers, structures, field = dict[int, int](), dict[int, dict[int, int]](), 0
        while start := self._byte():
            step, kind = divmod(start, 16)
            field += step
            if step == 0 or inside > 2:  # the long form of a field's number could go back to an earlier one
                raise ValueError("a header of a form that is not written")
            if kind == STRUCT:
                structures[field] = self._structure(inside + 1)[0]
            elif kind == I32:
                value = self._number(32)
                numbers[field] = value >> 1 ^ -(value & 1)
            elif kind == I64:
                self._number(64)
            elif kind == BINARY:
                length = self._number(31)
                self.place += length
            elif kind not in (TRUE, FALSE):
                raise ValueError(f"a header with a field of type {kind}, which is not written")
        return numbers, structures

    def _number(self, bits: int) -> int:
        """Seven bits a byte, the lowest first; the last byte is below 128."""
        value = shift = 0
        while (byte := self._byte()) >= 128:
            value |= (byte - 128) << shift
            shift += 7
        value |= byte << shift
        if shift >= bits or value >> bits:
            raise ValueError(f"a header with a number of more than {bits} bits")
        return value

    def _byte(self) -> int:
        if self.place >= len(self.content):
            raise ValueError(f"a header that does not end within {LONGEST} bytes")
        self.place += 1
        return self.content[self.place - 1]
