"""Code maps as Parquet columns: nested lists of the smallest unsigned integers, without a Python object per code.

A file may come from anybody: what it says about itself is checked before memory is taken for it, its values when they
are read.
"""

import math
from collections.abc import Iterator
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
from vqstack.codes.pages import ForeignError, check_pages
from vqstack.codes.storage import smallest_dtype
from vqstack.errors import InputError

ROW_GROUP = 4096  # images in one group of rows, which is what is read at a time
MAX_CLASSES = 10**6  # where a data set does not name them; no model knows more
GROUP_SITES = 2**26  # sites of one level in one group: bounds memory, and keeps list offsets inside 32 bits
OVERHEAD = 64  # bytes that a value may take in a file beyond its own: levels of nesting, dictionaries, headers
PAGES = 2**20  # bytes of a column that even an empty one may have


def fields(contents: Contents, labelled: bool) -> list[Any]:
    """The columns of every file, in order."""
    found = [pa.field("index", pa.int64())] + [pa.field("label", pa.int64())] * labelled
    for level, (shape, vocabulary) in enumerate(zip(contents.map_shapes, contents.vocabularies, strict=True), 1):
        kind = pa.from_numpy_dtype(smallest_dtype(vocabulary))
        for _ in shape:
            kind = pa.list_(kind)
        found.append(pa.field(f"codes_{level}", kind))
    return found


def write_rows(path: Path, contents: Contents, index: Any, labels: Any, maps: list[NDArray[Any]]) -> None:
    """Writes one file from arrays, in groups of rows; labels that are not known (None) are null."""
    largest = max(math.prod(shape) for shape in contents.map_shapes)
    size = max(1, min(ROW_GROUP, GROUP_SITES // largest))
    schema = pa.schema(fields(contents, contents.labelled))
    with pq.ParquetWriter(path, schema) as file:
        for start in range(0, len(index), size):
            file.write_table(_table(schema, slice(start, start + size), index, labels, maps))


def _table(schema: Any, rows: slice, index: Any, labels: Any, maps: list[NDArray[Any]]) -> Any:
    columns = [pa.array(index[rows])]
    if "label" in schema.names:
        columns.append(pa.nulls(len(columns[0]), pa.int64()) if labels is None else pa.array(labels[rows]))
    return pa.table([*columns, *(_nested(level[rows]) for level in maps)], schema=schema)


def check_file(path: Path, shard: Shard, contents: Contents) -> None:
    """InputError unless the file has the rows, the columns and no more values than the manifest says.

    Reads the end of the file only: nothing is decompressed.
    """
    again = "encode the data set again"
    if not path.is_file():
        raise InputError(f"{path}: no such file, and the manifest has one; {again}")
    with opened(path) as file:
        about, schema = file.metadata, file.schema_arrow
        if about.num_rows != shard.rows:
            raise InputError(f"{path}: {about.num_rows} rows where manifest.json has {shard.rows}; {again}")
        wanted = fields(contents, "label" in schema.names)
        for field in wanted:
            if schema.names.count(field.name) != 1:
                raise InputError(f"{path}: {schema.names.count(field.name)} columns {field.name}, not one; {again}")
            found = schema.field(field.name).type
            if _depth(found) != _depth(field.type):
                raise InputError(f"{path}: column {field.name} is {found}, not {field.type}; {again}")
        try:
            _check_groups(path, about, shard, contents)
        except UnicodeDecodeError as error:  # the library decodes names of columns when they are asked for
            raise unreadable(path, error) from error


def _check_groups(path: Path, about: Any, shard: Shard, contents: Contents) -> None:
    """No group of rows may claim more values, or more bytes, than the manifest's maps have."""
    sites = {"index": 1, "label": 1} | {f"codes_{n}": math.prod(s) for n, s in enumerate(contents.map_shapes, 1)}
    parts = [about.row_group(number) for number in range(about.num_row_groups)]
    sizes = [part.num_rows for part in parts]
    if sum(sizes) != shard.rows or not all(0 <= size <= ROW_GROUP for size in sizes):
        problem = f"its groups of rows have not {ROW_GROUP} or fewer each, and {shard.rows} together"
        raise InputError(f"{path}: {problem}; encode the data set again")
    largest = max(sites.values())  # as write_rows: a single image may have more
    for size in sizes:
        if size * largest > max(GROUP_SITES, largest):
            problem = f"a group of {size} rows of {largest} values, more than {GROUP_SITES} together"
            raise InputError(f"{path}: {problem}; encode the data set again")
    for part in parts:
        for column in map(part.column, range(part.num_columns)):
            name = column.path_in_schema.partition(".")[0]
            values = part.num_rows * sites.get(name, 0)
            # Columns that are not known are not read. An empty list or a missing value counts as one.
            fits = column.num_values <= values and column.total_uncompressed_size <= OVERHEAD * values + PAGES
            if name not in sites or fits:
                continue
            found = f"{column.num_values} values in {column.total_uncompressed_size} bytes"
            raise InputError(f"{path}: column {name} has {found} where {values} belong; encode the data set again")


def opened(path: Path) -> Any:
    """A Parquet file, to be used as a context; InputError where it is none."""
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: BaseException) -> InputError:
    """What is said of a file that the library cannot read."""
    return InputError(f"{path}: cannot be read ({str(error)[:300]}); encode the data set again")


def groups(path: Path, contents: Contents) -> Iterator[Any]:
    """The tables of a checked file's groups of rows, one after the other, only the known columns."""
    with opened(path) as file, path.open("rb") as pages:
        columns = [field.name for field in fields(contents, "label" in file.schema_arrow.names)]
        if not file.metadata.num_row_groups:
            yield file.schema_arrow.empty_table().select(columns)
        for number in range(file.metadata.num_row_groups):
            try:
                about = file.metadata.row_group(number)
                for column in map(about.column, range(about.num_columns)):
                    if column.path_in_schema.partition(".")[0] in columns:
                        check_pages(pages, column)
                yield file.read_row_group(number, columns=columns, use_threads=False)
            except ForeignError as error:
                raise InputError(
                    f"{path}: cannot be read ({error}): Parquet is read with snappy or no compression, data pages of "
                    "version 1, and values plain or in a dictionary; have it written so, or encode the data set again"
                ) from error
            except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
                raise unreadable(path, error) from error


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
            raise InputError(f"{path}: column {name} has maps that are not of shape {shape}; encode the data set again")
        column = pc.list_flatten(column)
    if column.null_count:
        raise InputError(f"{path}: column {name} has missing values; encode the data set again")
    values = column.to_numpy()
    if vocabulary is not None and values.size and not (values.min() >= 0 and values.max() < vocabulary):
        found = f"numbers from {values.min()} to {values.max()}"
        raise InputError(f"{path}: column {name} has {found}, outside 0 … {vocabulary - 1}; encode the data set again")
    return torch.from_numpy(values.astype(np.int64).reshape(count, *shape))


def _depth(kind: Any) -> int | None:
    """How many lists are wrapped around a whole number, of whatever width; None if it is not a whole number."""
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth if pa.types.is_integer(kind) else None


def _nested(maps: NDArray[Any]) -> Any:
    """[n, *map] -> an arrow array of n nested lists, without a Python object per code."""
    array = pa.array(maps.reshape(-1))
    for axis in range(maps.ndim - 1, 0, -1):
        lists = int(np.prod(maps.shape[:axis]))
        array = pa.ListArray.from_arrays(np.arange(lists + 1, dtype=np.int32) * maps.shape[axis], array)
    return array
