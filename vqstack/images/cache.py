"""Decoded splits on disk: each is decoded once, kept (uint8; int32 where values pass 255) and memory-mapped.

A split lies in a folder of its own, named by a hash of all that its pixels depend on: the settings, and path, size and
time of change of every local file. Hub data sets are known by name and revision, remote files by their address.
``meta.json`` comes last and has the checksums of the others and one of its own. A split that is not as it was written
is decoded again. These folders lie under ``$VQSTACK_CACHE``, else ``$XDG_CACHE_HOME/vqstack``, else
``~/.cache/vqstack``, and may be deleted at any time.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.lib.format import header_data_from_array_1_0, write_array_header_1_0
from numpy.typing import NDArray

from vqstack.disk import digest, make_folder, read_sealed, sealed, sync
from vqstack.errors import InputError, WriteError, reason
from vqstack.images.files import local_files, walk
from vqstack.images.settings import ImageSettings
from vqstack.reading import reading

logger = logging.getLogger(__name__)

FORMAT = 5  # of the cache; another number makes the older folders useless
FOR_TRAINING = {"resident", "workers"}  # settings that change no pixel
PIXELS, INDEX, LABELS, CONDITION, META = "pixels.npy", "index.npy", "labels.npy", "condition.npy", "meta.json"


@dataclass(frozen=True, eq=False)
class Stored:
    """What the cache holds of a split; the arrays are memory maps that may be written to without changing the files."""

    folder: Path
    pixels: NDArray[Any]  # [n, c, *map], uint8, or int32 for values past 255
    index: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    condition: NDArray[np.float32] | None  # floats that are given with each image
    meta: dict[str, Any]
    sha256: dict[str, str]  # of each file, as it was written


def cached(settings: ImageSettings, name: str, build: Callable[[Path], None]) -> Stored:
    """The split ``name``, from the cache or by ``build(folder)``, which writes it there.

    A folder appears whole or not at all; of two processes that want the same split one builds and the other waits. All
    of it is read and compared with its checksums; what is damaged is built again.
    """
    folder = cache_folder() / f"{name}-{key(settings, name)}"
    stored = read(folder, [PIXELS, INDEX, LABELS, CONDITION])
    return stored if isinstance(stored, Stored) else _build(folder, build)


def lookup(settings: ImageSettings, name: str) -> Stored | None:
    """The split ``name`` if the cache has it; its pixels may be damaged, which :func:`cached` finds."""
    stored = read(cache_folder() / f"{name}-{key(settings, name)}", [INDEX, LABELS, CONDITION])
    return stored if isinstance(stored, Stored) else None


def default_cache() -> Path:
    """Where what serves all runs is kept: ``$VQSTACK_CACHE``, ``$XDG_CACHE_HOME/vqstack`` or ``~/.cache/vqstack``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VQSTACK_CACHE") or Path(base) / "vqstack")


def plain_folder(folder: str) -> str:
    """A folder whose name ``datasets`` takes for no pattern, address or home: itself, or links to its files.

    The links have a name that follows from path, size and time of change of every file.
    """
    real = os.path.realpath(folder)
    if re.fullmatch(r"[\w./ -]+", real):
        return folder
    files = [path for path, problem in walk(real) if not problem]
    made = default_cache() / "links" / hashlib.sha256(json.dumps(list(map(state, files))).encode()).hexdigest()[:16]
    if not made.exists():
        make_folder(made.parent)
        aside = Path(tempfile.mkdtemp(dir=made.parent))
        for path in files:
            link = aside / os.path.relpath(path, real)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
        for inside, _, _ in os.walk(aside):
            sync(Path(inside))
        try:
            aside.rename(made)
        except OSError:
            shutil.rmtree(aside)
            if not made.exists():  # no other process was quicker
                raise
    return str(made)


def cache_folder() -> Path:
    """The folder of decoded images."""
    return default_cache() / "images"


def key(settings: ImageSettings, name: str) -> str:
    """Name of a split in the cache."""
    files = [state(path) for path in local_files(settings)]
    what = [FORMAT, name, settings.model_dump(mode="json", exclude=FOR_TRAINING), files]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around what only writes, so that a source that cannot be read is not taken for a full disk."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error}); make room, or set VQSTACK_CACHE") from error


class Rows:
    """A .npy file that grows row by row.

    Attributes:
        shape, dtype: of a row, known once there is one.
        count: of the rows.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self.shape: tuple[int, ...] = ()
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)
        self._file = path.open("wb")

    def append(self, rows: Iterable[NDArray[Any]]) -> None:
        """Adds rows, all of one shape and type."""
        for row in rows:
            if not self.count:
                self.shape, self.dtype = row.shape, row.dtype
                self._header()
            self._file.write(np.ascontiguousarray(row).data)
            self.count += 1

    def _header(self) -> None:
        """numpy leaves room in it for any number of rows, so it can be written again over itself."""
        self._file.seek(0)
        header = header_data_from_array_1_0(np.empty((0, *self.shape), dtype=self.dtype))
        write_array_header_1_0(self._file, header | {"shape": (self.count, *self.shape)})

    def finish(self) -> None:
        """All rows are on their way to the disk."""
        self._header()
        self._file.flush()

    def close(self) -> None:
        """No more rows come."""
        self._file.close()


class Writer:
    """Writes a split into a folder, batch by batch, however many images there will be; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with writing(folder):
            self.pixels = Rows(folder / PIXELS)
        self.condition: Rows | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.pixels.close()
        if self.condition is not None:
            self.condition.close()

    @property
    def shape(self) -> tuple[int, ...]:
        r"""[c, \*map] of an image, known once there is one."""
        return self.pixels.shape

    def append(self, images: list[NDArray[Any]], condition: NDArray[np.float32] | None = None) -> None:
        r"""Adds images [c, \*map], all of one shape and type, and what they are given."""
        with writing(self.folder):
            self.pixels.append(images)
            if condition is not None:
                self.condition = self.condition or Rows(self.folder / CONDITION)
                self.condition.append(condition)

    def finish(self, index: list[int], labels: NDArray[np.int64] | None, meta: dict[str, Any]) -> None:
        """Ends the split: position of each image in its source, labels where there are any, the rest as JSON."""
        with writing(self.folder):
            self.pixels.finish()
            if self.condition is not None:
                self.condition.finish()
            np.save(self.folder / INDEX, np.array(index, dtype=np.int64))
            if labels is not None:
                np.save(self.folder / LABELS, labels)
            files = {path.name: digest(path) for path in sorted(self.folder.iterdir())}
            (self.folder / META).write_text(sealed({"files": files, "meta": meta}), encoding="utf-8")


def read(folder: Path, checked: Sequence[str]) -> Stored | str:
    """A finished folder of the cache, or what is wrong with it; of ``checked`` files the checksums are compared."""
    try:
        content = read_sealed(folder / META)
        files, meta = content["files"], content["meta"]
        for name in checked:
            if name in files and digest(folder / name) != files[name]:
                raise ValueError(f"{name} is not what was written")
        labels = np.load(folder / LABELS, mmap_mode="c") if LABELS in files else None
        condition = np.load(folder / CONDITION, mmap_mode="c") if CONDITION in files else None
        # Copy on write: torch wants arrays that can be written to, and the file must stay as it is.
        pixels = np.load(folder / PIXELS, mmap_mode="c")
        return Stored(folder, pixels, np.load(folder / INDEX, mmap_mode="c"), labels, condition, meta, files)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        return str(error)


def _build(folder: Path, build: Callable[[Path], None]) -> Stored:
    part = folder.with_name(folder.name + ".part")
    try:
        make_folder(folder.parent)
        lock = FileLock(f"{folder}.lock")
        lock.acquire()
    except (OSError, WriteError) as error:
        raise InputError(
            f"{folder.parent} cannot be written ({reason(error)}); set VQSTACK_CACHE to a folder"
        ) from error
    try:
        stored = read(folder, [PIXELS, INDEX, LABELS, CONDITION])  # another process may have built it meanwhile
        if isinstance(stored, Stored):
            return stored
        if folder.is_dir():
            logger.warning("%s: a damaged cache of images (%s); it is made again", folder, stored)
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed: the lock is ours
        with writing(part):
            part.mkdir()
        with reading(folder.name):
            build(part)
        with writing(part):
            for path in (*part.iterdir(), part):
                sync(path)
            if folder.is_dir():
                shutil.rmtree(folder)
            part.rename(folder)
            sync(folder.parent)
        built = read(folder, [])
    finally:
        shutil.rmtree(part, ignore_errors=True)
        lock.release()
    assert isinstance(built, Stored), built
    return built


def state(path: str) -> tuple[str, int, int]:
    """Path, size in bytes and time of change in ns; of what cannot be reached the path alone."""
    try:
        status = os.stat(path)
    except OSError:
        return path, -1, -1  # what becomes of it is decided where it is read
    return path, status.st_size, status.st_mtime_ns
