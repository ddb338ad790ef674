"""Shards on this machine, Parquet files and tar archives, as rows of ``datasets``.

``datasets`` would take their paths for patterns and addresses, and wants each sample of an archive to look like the
first one. Here a path is a path; the files of a sample need not lie side by side in an archive, its image may have any
of the usual endings, and a sample without an image is a row without one.
"""

import json
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vqstack.errors import InputError, reason
from vqstack.images.folders import summary
from vqstack.images.formats import SUFFIXES
from vqstack.images.settings import ImageSettings, Split
from vqstack.images.sounds import SUFFIXES as SOUNDS
from vqstack.paths import matches
from vqstack.reading import plain_file

FORMAT = 1  # of the rows: ``datasets`` keeps a copy of those of a mapped source, under a hash of their parts
ROWS = 100  # of a row group that are taken apart at a time
SEEN = 1000  # samples of the first archive that decide on the types of what is no image
_FIELD = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)  # KEY.FIELD; hidden files are no samples


def _whole(content: bytes) -> int:
    try:
        return int(content)
    except ValueError:
        raise ValueError(
            f"{content[:40]!r} is no whole number: for classes by name call these members .txt, and set label_column "
            "to txt"
        ) from None


_READ: dict[str, Callable[[bytes], Any]] = {
    **dict.fromkeys(("txt", "text", "transcript"), bytes.decode),
    **dict.fromkeys(("cls", "cls2", "index", "inx", "id"), _whole),
    **dict.fromkeys(("json", "jsn"), json.loads),
}


_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class Part(NamedTuple):
    """What is read at a time, an archive or a row group of a Parquet file, and what its rows depend on."""

    path: str
    size: int
    changed: int  # ns
    group: int = 0
    first: int = 0  # row of the file that the group begins with
    version: int = FORMAT


class Shards(NamedTuple):
    """A split whose files are on this machine."""

    rows: Any  # a data set of ``datasets`` whose images are not decoded
    types: Any  # of its columns, as the files say
    left_out: dict[str, dict[str, Any]]  # reason -> how many members of archives are in no row, and the first
    folders: list[str]  # inside the archives, where images lie in two or more


def open_shards(settings: ImageSettings, split: Split, streaming: bool) -> Shards:
    """The rows of a split, and what its archives hold besides: all of them, or of a stream those that tell its columns.

    An image is {bytes, path}, and the path says where it lies: file and row, or archive and member. One that is
    missing has no bytes.
    """
    import datasets  # a second to import

    paths = [os.path.abspath(path) for path in matches(settings.files[split])]
    rows: Callable[..., Iterator[dict[str, Any]]] = _parquet_rows
    options: dict[str, Any] = {}
    inside = Inside(SOUNDS if settings.sounds else SUFFIXES)
    if settings.source == "parquet":
        parts, schema = _parquet_parts(paths)
    else:
        parts, rows = _tar_parts(paths), _tar_rows
        options["endings"] = tuple(sorted(inside.endings))  # a list would be dealt out to workers
        options["image"], schema, seen = _tar_schema(paths, settings.image_column, inside)
        for path in [] if streaming else paths[seen:]:
            with _named(path), tarfile.open(path) as archive:
                inside.add(path, archive)
    if not parts:
        raise InputError(f"{settings.files[split]}: holds no rows; correct the path of {split} in files")
    made = datasets.IterableDataset if streaming else datasets.Dataset
    types = datasets.Features.from_arrow_schema(schema)
    undecoded = {name: datasets.Image(decode=False) for name, kind in types.items() if isinstance(kind, datasets.Audio)}
    features = datasets.Features({**types, **undecoded})  # Audio would ask for torchcodec
    loaded = made.from_generator(rows, features=features, gen_kwargs={"parts": parts, "schema": schema, **options})
    return Shards(loaded, types, summary(inside.left_out), sorted(inside.folders) if len(inside.folders) > 1 else [])


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Whatever the libraries raise for a shard becomes a line with its path."""
    try:
        plain_file(path)
        yield
    except (OSError, ValueError, TypeError, LookupError, tarfile.TarError, pa.ArrowException, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); repair it, or leave it out of files") from error


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _parquet_parts(paths: list[str]) -> tuple[list[Part], pa.Schema]:
    """All row groups, and the columns of the first file that can be images or labels."""
    parts: list[Part] = []
    schema: pa.Schema | None = None
    for path in paths:
        with _named(path), pq.ParquetFile(path) as file:
            if schema is None:
                schema = pa.schema(map(_as_image, file.schema_arrow), file.schema_arrow.metadata)
            status, first = os.stat(path), 0
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                parts += [Part(path, status.st_size, status.st_mtime_ns, group, first)] * (count > 0)
                first += count
    return parts, schema


def _as_image(field: pa.Field) -> pa.Field:
    """A column of {bytes, path} is one of images, even where no path of the first file is set, which has no type."""
    image = pa.types.is_struct(field.type) and {inside.name for inside in field.type} == {"bytes", "path"}
    return field.with_type(_IMAGE) if image else field


def _parquet_rows(parts: list[Part], schema: pa.Schema) -> Iterator[dict[str, Any]]:
    from datasets.table import table_cast

    stored = [field.name for field in schema if field.type == _IMAGE]
    for part in parts:
        row = part.first
        with _named(part.path), pq.ParquetFile(part.path) as file:
            for batch in file.iter_batches(ROWS, [part.group], columns=schema.names):
                table = pa.Table.from_batches([batch]).select(schema.names)
                for values in table_cast(table, schema).to_pylist():
                    yield values | {name: _located(values[name], f"{part.path}, row {row}") for name in stored}
                    row += 1


def _located(record: dict[str, Any] | None, place: str) -> dict[str, Any]:
    """An image with the place where it lies."""
    stored, path = (b"", None) if record is None else (record["bytes"], record["path"])
    return {"bytes": b"" if stored is None and path is None else stored, "path": place + (f", {path}" if path else "")}


# --- tar --------------------------------------------------------------------------------------------------------------


def _tar_parts(paths: list[str]) -> list[Part]:
    parts: list[Part] = []
    for path in paths:
        with _named(path):
            status = os.stat(path)
        parts.append(Part(path, status.st_size, status.st_mtime_ns))
    return parts


Samples = dict[str, dict[str, tarfile.TarInfo]]  # key -> field -> member, in the order in which the keys come first


@dataclass
class Inside:
    """What archives hold besides samples, and the folders that their images, members of certain endings, lie in."""

    endings: Collection[str]
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # reason -> archive, member
    folders: set[str] = field(default_factory=set)  # the innermost ones

    def add(self, path: str, archive: tarfile.TarFile) -> Samples:
        """The samples of an archive."""
        found: Samples = {}
        for member in archive:
            parts, name = _FIELD.fullmatch(member.name), os.path.basename(member.name)
            if member.isdir():
                continue
            if parts is None or not (member.isreg() or member.islnk() or member.issym()):
                reason = "hidden" if name.startswith(".") else "no file" if parts else "no ending"
                self.left_out[reason].append(f"{path}, {member.name}")
                continue
            fields = found.setdefault(parts[1], {})
            if parts[2] in fields:
                raise ValueError(f"holds {member.name} twice")
            fields[parts[2]] = member
            folder = os.path.basename(os.path.dirname(parts[1]))
            if self.is_image(parts[2]) and folder not in ("", "."):
                self.folders.add(folder)
        return found

    def is_image(self, field: str) -> bool:
        """Whether a member is an image, or what else is looked for, by its ending."""
        return f".{_ending(field)}" in self.endings


def _ending(field: str) -> str:
    return field.rpartition(".")[2].lower()


def _tar_schema(paths: list[str], column: str | None, inside: Inside) -> tuple[str | None, pa.Schema, int]:
    """The column that takes the image of a sample whatever its ending, None for none, and all columns with their types.

    The first archive with images decides; the last value counts those up to it. Where a sample has one image at most,
    its endings are alternatives; where one has several, and where ``column`` asks for one, each is a column of its own.
    """
    for seen, path in enumerate(paths, start=1):
        with _named(path), tarfile.open(path) as archive:
            samples = list(inside.add(path, archive).values())
            images = list(dict.fromkeys(field for fields in samples for field in fields if inside.is_image(field)))
            rows = [_told(archive, fields) for fields in islice(samples, SEEN)]
            told = {name: pa.array([row.get(name) for row in rows]) for row in rows for name in row}
        if images:
            several = column is not None or any(sum(map(inside.is_image, fields)) > 1 for fields in samples)
            columns = [(name, _IMAGE) for name in (images if several else images[:1])]
            return None if several else images[0], pa.schema(columns + [(name, told[name].type) for name in told]), seen
    what = "sound" if inside.endings is SOUNDS else "image"
    raise InputError(
        f"{', '.join(paths[:1])}: holds no {what} ({', '.join(sorted(inside.endings))}); correct the path in files"
    )


def _told(archive: tarfile.TarFile, fields: dict[str, tarfile.TarInfo]) -> dict[str, Any]:
    """What the files of a sample say that are texts, numbers or JSON."""
    chosen = {field: _READ[_ending(field)] for field in fields if _ending(field) in _READ}
    return {field: read(_content(archive, fields[field])) for field, read in chosen.items()}


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a member; of one that is a link, those of the member of the same archive that it leads to."""
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name} is no file")
    return file.read()


def _tar_rows(
    parts: list[Part], schema: pa.Schema, image: str | None, endings: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    inside = Inside(endings)
    columns = [field.name for field in schema if field.type == _IMAGE]
    for part in parts:
        with _named(part.path), tarfile.open(part.path) as archive:
            for key, fields in inside.add(part.path, archive).items():
                held = [field for field in fields if inside.is_image(field)]
                if image is not None and len(held) > 1:
                    raise ValueError(f"{key} has two images, {held[0]} and {held[1]}: set image_column")
                row: dict[str, Any] = dict.fromkeys(schema.names)
                for name in columns:
                    field = held[0] if image is not None and held else name
                    stored = _content(archive, fields[field]) if field in fields else b""
                    row[name] = {"bytes": stored, "path": f"{part.path}, {key}" + (f".{field}" if stored else "")}
                told = {name: value for name, value in _told(archive, fields).items() if name in row}
                for name, value in told.items():
                    _fits(value, schema.field(name), key)
                yield row | told


def _fits(value: Any, field: pa.Field, key: str) -> None:
    try:
        pa.array([value], field.type)
    except pa.ArrowException:
        raise ValueError(f"{key}.{field.name} is no {field.type}, as in the samples before it") from None
