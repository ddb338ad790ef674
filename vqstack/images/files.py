"""Files on this machine that the settings name: which there are, which is damaged, which of them holds an image."""

import glob
import os
import tarfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vqstack.images.settings import ImageSettings


def matches(pattern: str) -> list[str]:
    """The files or folders of a path, which may hold the signs of a glob itself, or of a glob."""
    return [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)


LOOP = "a link to a folder around it"


def walk(folder: str, around: frozenset[tuple[int, int]] = frozenset()) -> Iterator[tuple[str, str]]:
    """Every file below a folder and why it cannot be read, empty where it can; links are followed, but not in circles.

    Folders come out where they cannot be opened, and as ``LOOP``.
    """
    try:
        status = os.stat(folder)
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        yield folder, f"cannot be read ({error.strerror})"
        return
    here = (status.st_dev, status.st_ino)
    if here in around:
        yield folder, LOOP
        return
    for entry in entries:
        if entry.is_dir():
            yield from walk(entry.path, around | {here})
        else:
            yield entry.path, "" if os.path.exists(entry.path) else "a link that leads nowhere"


def local_files(settings: ImageSettings) -> list[str]:
    """Every file on this machine that the settings name, sorted; addresses are not among them."""
    patterns = [*settings.files.values(), *([settings.name] if settings.name and os.path.isdir(settings.name) else [])]
    found: list[str] = []
    for pattern in patterns:
        if "://" not in pattern:
            for path in matches(pattern):
                found.extend([file for file, _ in walk(path)] if os.path.isdir(path) else [path])
    return sorted(os.path.abspath(path) for path in found)


def damaged(settings: ImageSettings) -> str | None:
    """The first shard that cannot be opened, and why: the libraries do not say which it was."""
    for path in local_files(settings):
        try:
            if settings.source == "parquet":
                pq.ParquetFile(path).close()
            elif settings.source == "webdataset":
                with tarfile.open(path) as archive:
                    archive.getmembers()
        except Exception as error:
            reason = " ".join(f"{error}".split())
            return f"{path}: cannot be read ({reason}); repair it, or leave it out of files"
    return None


def unreadable(problem: str, record: Any, column: str | None, settings: ImageSettings) -> str:
    """The last line of a command: an image that cannot be read, with the shard that holds it.

    Args:
        problem: what :func:`vqstack.images.decode.decode_all` says of it.
        record: the image as it is stored, {bytes, path}.
        column: of the images.
        settings: name the shards, which are searched for these bytes, since a stream does not say where it is.
    """
    stored = record["bytes"] if isinstance(record, dict) else None
    held = "" if stored is None or column is None else _held_by(stored, column, settings)
    return f"{held}{problem}, or set on_error to skip"


def _held_by(stored: bytes, column: str, settings: ImageSettings) -> str:
    """Shard and place of an image, to begin a line with; if it is not found, the shards that could not be searched."""
    closed: list[str] = []
    for path in local_files(settings) if settings.source in ("parquet", "webdataset") else []:
        try:
            place = (_in_parquet if settings.source == "parquet" else _in_tar)(path, column, stored)
        except (OSError, ValueError, LookupError, tarfile.TarError, pa.ArrowException):
            closed.append(path)
            continue
        if place is not None:
            return f"{path}, {place}: "
    return f"{', '.join(closed)}: damaged, may hold it: " if closed else ""


def _in_parquet(path: str, column: str, stored: bytes) -> str | None:
    with pq.ParquetFile(path) as file:
        before = 0
        for number in range(file.num_row_groups):
            images = file.read_row_group(number, columns=[column]).column(0).combine_chunks()
            if pa.types.is_struct(images.type):
                images = pc.struct_field(images, "bytes")
            place = pc.index(images, pa.scalar(stored, images.type)).as_py()
            if place >= 0:
                return f"row {before + place}"
            before += len(images)
    return None


def _in_tar(path: str, column: str, stored: bytes) -> str | None:
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.size == len(stored):
                content = archive.extractfile(member)
                if content is not None and content.read() == stored:
                    return member.name
    return None
