"""Opening a source: its splits, columns and labels, and the records that :func:`vqstack.images.decode.decode` reads.

Everything but digits and arrays goes through Hugging Face ``datasets``, mapped or streamed.
"""

import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqstack.errors import InputError, causes, reason
from vqstack.images.folders import open_folders, without_roots
from vqstack.images.settings import SPLITS, ImageSettings
from vqstack.images.shards import open_shards
from vqstack.paths import matches, remote

logger = logging.getLogger(__name__)
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}
IMAGES, LABELS = ("images", "pixels", "x"), ("labels", "y")  # names in .npz files
LABEL_NAMES = ("label", "labels", "fine_label", "class", "class_label", "target", "digit", "cls", "y")


@dataclass(frozen=True, eq=False)
class Records:
    """A split as a mapped source has it; ``fetch`` takes positions and gives records."""

    where: str
    count: int
    fetch: Callable[[NDArray[np.int64]], Iterable[Any]]
    labels: NDArray[np.int64] | None
    class_names: list[str] | None
    root: str | None  # folder of an imagefolder, whose images are told apart by their path below it
    ordered: bool = False  # one file of rows: images are told apart by their position
    left_out: dict[str, Any] = field(default_factory=dict)  # as of Streamed


@dataclass(frozen=True, eq=False)
class Streamed:
    """A split as a stream has it: a ``datasets.IterableDataset`` whose images are not decoded."""

    where: str
    rows: Any
    image_column: str
    label_column: str | None
    class_names: list[str] | None
    root: str | None
    left_out: dict[str, Any]  # reason -> how many files of the folder are no images of the split, and the first


def open_records(settings: ImageSettings) -> dict[str, Records]:
    """The splits of a mapped source, train first, nothing decoded yet; labels are checked here."""
    if settings.source == "digits":
        from sklearn.datasets import load_digits  # half a second to import

        digits = load_digits()
        names, labels = [str(name) for name in digits.target_names], digits.target.astype(np.int64)
        images = digits.images.astype(np.uint8)
        return {"train": Records(str(settings), len(images), images.__getitem__, labels, names, None, True)}
    if settings.source == "array":
        return {name: _open_array(settings.files[name]) for name in SPLITS if name in settings.files}
    return {name: _open_rows(stored) for name, stored in open_streams(settings, streaming=False).items()}


def open_streams(settings: ImageSettings, streaming: bool = True) -> dict[str, Streamed]:
    """The splits of a source of ``datasets``, train first: rows that are not decoded, and which columns to read."""
    settings = without_roots(settings)
    _check_paths(settings)
    left_out: dict[str, dict[str, Any]] = {}
    if settings.source == "imagefolder" and not any(map(remote, settings.files.values())):
        opened = open_folders(settings, streaming)
        loaded = {split: rows for split, (rows, _) in opened.items()}
        left_out = {split: summary for split, (_, summary) in opened.items()}
    else:
        loaded = _load_datasets(settings, streaming)
    chosen = settings.splits if settings.source == "hub" else {}
    for name in chosen.values():
        if name not in loaded:
            raise InputError(f"{settings}: has no split {name}, but {', '.join(map(str, loaded))}; correct splits")
    found = {str(ours): loaded[theirs] for ours, theirs in chosen.items()}
    found = found or {ALIASES.get(str(name), str(name)): rows for name, rows in loaded.items()}
    if not found.keys() & set(SPLITS):
        raise InputError(f"{settings}: has no split named train, validation or test; name another data set")
    return {
        name: _columns(found[name], f"{settings}, split {name}", settings, settings.files.get(name), left_out.get(name))
        for name in SPLITS
        if name in found
    }


def shuffled(rows: Any, settings: ImageSettings, seed: int) -> Any:
    """A stream whose shards come in another order, and its images out of a buffer.

    Newer versions of ``datasets`` fill the buffer from ten shards at a time, by threads, and wait five seconds for them
    at the end of every epoch of Parquet files; from one shard at a time they do not.
    """
    newer = "max_buffer_input_shards" in inspect.signature(rows.shuffle).parameters
    options = {"max_buffer_input_shards": 1} if newer else {}
    return rows.shuffle(seed=seed, buffer_size=settings.shuffle_buffer, **options)


def guarded(rows: Iterable[Any], where: str, settings: ImageSettings) -> Iterator[Any]:
    """Rows of a stream; the libraries raise dozens of types for networks, file systems and broken archives."""
    try:
        with _silence():
            yield from rows
    except Exception as error:
        raise _refusal(error, where, "cannot be read", "check the files and the network") from error


def _refusal(error: Exception, where: str, what: str, remedy: str) -> InputError:
    """The one line of an error from a library: ours where it is wrapped in there, else with the first cause."""
    ours = next((cause for cause in causes(error) if isinstance(cause, InputError)), None)
    return ours or InputError(f"{where}: {what} ({reason(error)}); {remedy}")


@contextmanager
def _silence() -> Iterator[None]:
    """Inside, ``datasets`` logs nothing: what it logs as an error it raises as well."""
    import datasets

    loud = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(loud)


def check_labels(labels: Any, count: int, where: str, names: list[str] | None) -> NDArray[np.int64] | None:
    """Class numbers from 0, one for each image; None where the source keeps them secret (-1 everywhere)."""
    if labels.shape != (count,) or (labels.dtype.kind not in "iu" and count > 0):
        raise InputError(f"{where}: {count} images, labels {labels.dtype}{labels.shape}; store a class number for each")
    if (labels == -1).all():
        return None
    if labels.min() < 0 or (names is not None and labels.max() >= len(names)):
        raise InputError(f"{where}: labels from {labels.min()} to {labels.max()}; number the classes from 0")
    return labels.astype(np.int64)


def _open_array(path: str) -> Records:
    """One .npy (pixels) or .npz (images, pixels or x, with labels or y) file of uint8 [n,h,w], [n,h,w,c], [n,c,h,w].

    A .npy file is memory-mapped; an .npz is an archive, of which the first of each of these names is read.
    """
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            names, arrays = ["pixels"], {"pixels": content}
        else:
            with content:
                names = list(content)
                chosen = (next((key for key in keys if key in names), None) for keys in (IMAGES, LABELS))
                arrays = {key: content[key] for key in chosen if key}
    except Exception as error:  # numpy raises a different type for each way a file can be broken
        raise InputError(f"{path}: cannot be read as .npy or .npz ({error}); name a file written by numpy") from error
    pixels = next((arrays[key] for key in IMAGES if key in arrays), None)
    if pixels is None:
        raise InputError(f"{path}: no array images, pixels or x among {', '.join(names)}; rename the array of images")
    if pixels.dtype != np.uint8:
        raise InputError(f"{path}: the images are {pixels.dtype}, not uint8; store whole numbers from 0 to values - 1")
    first, last = (pixels.ndim == 4 and pixels.shape[axis] in (1, 3) for axis in (1, 3))
    if pixels.ndim != 3 and first == last:
        raise InputError(f"{path}: cannot tell the channels of {pixels.shape}; store images as [n, height, width, c]")
    pixels = pixels.transpose(0, 2, 3, 1) if first else pixels  # Pillow wants channels last, and no axis for grey
    pixels = pixels[..., 0] if pixels.ndim == 4 and pixels.shape[3] == 1 else pixels
    labels = next((arrays[key] for key in LABELS if key in arrays), None)
    labels = None if labels is None else check_labels(labels, len(pixels), path, None)
    return Records(path, len(pixels), pixels.__getitem__, labels, None, None, True)


def _check_paths(settings: ImageSettings) -> None:
    """Every path on this machine must lead to something of the right kind."""
    for split, pattern in settings.files.items():
        if not remote(pattern) and not matches(pattern):
            where = f"the {split} split of source {settings.source}"
            raise InputError(f"{pattern}: no such file ({where}); correct the path in files")
        if settings.source == "imagefolder" and os.path.isfile(pattern):
            raise InputError(f"{pattern}: a file where source imagefolder wants a folder; correct the path in files")


def _load_datasets(settings: ImageSettings, streaming: bool) -> dict[str, Any]:
    """Split -> rows: shards on this machine, and through ``datasets.load_dataset`` the hub and addresses."""
    import datasets  # a second to import, and not needed for digits, arrays and what lies in the cache

    if not sys.stderr.isatty():  # its bars are drawn into files, too, where errors should be one line
        datasets.disable_progress_bars()
    path, _, configuration = (str(settings.name) if settings.source == "hub" else settings.source).partition(":")
    arguments: dict[str, Any] = {"name": configuration or None}
    if settings.source == "hub":
        arguments["revision"] = settings.revision
    inside = "/**" if settings.source == "imagefolder" else ""
    addresses = {split: pattern + inside for split, pattern in settings.files.items() if remote(pattern)}
    loaded: dict[str, Any] = {}
    try:
        with _silence():
            for split in settings.files.keys() - addresses.keys():
                loaded[split] = open_shards(settings, split, streaming)
            if addresses or settings.source == "hub":
                loaded |= datasets.load_dataset(path, streaming=streaming, data_files=addresses or None, **arguments)
    except Exception as error:  # the library raises dozens of types for a name, a network or a file that is not there
        remedy = "check the name, the files, the network"
        if any(isinstance(cause, ImportError) for cause in causes(error)):
            remedy = (
                'install what opens such addresses: pip install "vqstack[remote]" (https://), pip install s3fs (s3://)'
            )
        raise _refusal(error, str(settings), "cannot be loaded", remedy) from error
    return loaded


def _columns(
    rows: Any, where: str, settings: ImageSettings, folder: str | None, left_out: dict[str, Any] | None
) -> Streamed:
    """Finds the columns of images and labels by their types, and switches decoding off."""
    import datasets

    types = rows.features
    if types is None:
        raise InputError(f"{where}: does not say which columns it has; read it without streaming")
    stored = [name for name, kind in types.items() if isinstance(kind, dict) and kind.keys() == {"bytes", "path"}]
    image_types = [name for name, kind in types.items() if isinstance(kind, datasets.Image)] + stored
    binary = [name for name, kind in types.items() if getattr(kind, "dtype", "") in ("binary", "large_binary")]
    image_column = _choose("image", settings.image_column, image_types or binary, list(types), where)
    classes = [name for name, kind in types.items() if isinstance(kind, datasets.ClassLabel)]
    whole = [name for name, kind in types.items() if "int" in str(getattr(kind, "dtype", ""))]
    usual = [name for name in LABEL_NAMES if name in (classes or whole)][:1]
    fitting = list(dict.fromkeys(classes + whole)) if settings.label_column else usual or classes
    label_column, class_names = settings.label_column, None
    root = os.path.abspath(folder) if settings.source == "imagefolder" and folder and not remote(folder) else None
    words = [name for name in LABEL_NAMES if getattr(types.get(name), "dtype", "") in ("string", "large_string")]
    if words and not (fitting or label_column):
        logger.warning("%s: column %s holds text, so there are no labels; store class numbers", where, words[0])
    if fitting or label_column:
        label_column = _choose("label", label_column, fitting, list(types), where)
        class_names = list(types[label_column].names) if label_column in classes else None
    rows = rows.select_columns([image_column, *([label_column] if label_column else [])])
    rows = rows.cast_column(image_column, datasets.Image(decode=False))
    return Streamed(where, rows, image_column, label_column, class_names, root, left_out or {})


def _open_rows(stored: Streamed) -> Records:
    rows, column = stored.rows, stored.image_column
    labels = None
    if stored.label_column:
        labels = check_labels(np.asarray(rows[stored.label_column][:]), len(rows), stored.where, stored.class_names)
    images = rows.select_columns([column])
    return Records(
        stored.where,
        len(rows),
        lambda chosen: images[chosen.tolist()][column],
        labels,
        stored.class_names,
        stored.root,
        left_out=stored.left_out,
    )


def _choose(what: str, named: str | None, fitting: list[str], columns: list[str], where: str) -> str:
    if named in fitting or (named is None and len(fitting) == 1):
        return named or fitting[0]
    problem = f"{what} column {named} is not there or of another type" if named else f"cannot tell the {what} column"
    known = f"of a fitting type: {', '.join(fitting) or 'none'}; all columns: {', '.join(columns)}"
    raise InputError(f"{where}: {problem} ({known}); set {what}_column")
