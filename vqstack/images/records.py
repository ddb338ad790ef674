"""Opening a source: its splits, columns and labels, and the records that :func:`vqstack.images.decode.decode` reads.

Everything but digits and arrays goes through Hugging Face ``datasets``, mapped or streamed.
"""

import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqstack.errors import InputError, causes, listed, reason, told
from vqstack.images import sounds
from vqstack.images.cache import plain_folder
from vqstack.images.folders import open_folders, without_roots
from vqstack.images.given import find_given
from vqstack.images.labels import Classes, Stored, check_names, find_labels, inside, read_as, reference, texts_in
from vqstack.images.settings import OWN, SOURCES, SPLITS, ImageSettings, Split
from vqstack.images.shards import Shards, open_shards
from vqstack.nets import registered
from vqstack.paths import matches, remote
from vqstack.reading import plain_file

logger = logging.getLogger(__name__)
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}
IMAGES, LABELS = ("images", "pixels", "x"), ("labels", "y")  # names in .npz files


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
    given: Callable[[NDArray[np.int64]], Iterable[Any]] | None = None  # what data.condition has for these positions


@dataclass(frozen=True, eq=False)
class Streamed:
    """A split as a stream has it: a ``datasets.IterableDataset`` whose images are not decoded."""

    where: str
    rows: Any
    image_column: str
    stored: Stored | None  # how labels are stored, None without any
    classes: Classes  # what they mean
    root: str | None
    left_out: dict[str, Any]  # reason -> how many files of the folder are no images of the split, and the first
    given: tuple[str, ...] = ()  # the column of data.condition, and the member inside it

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes where they have any."""
        return self.classes.names

    def label(self, row: Mapping[str, Any]) -> int:
        """The number of the class of a row; -1 without labels."""
        return self.classes.number(self.stored.of(row), self.where) if self.stored else -1


def open_records(settings: ImageSettings) -> dict[str, Records]:
    """The splits of a mapped source, train first, nothing decoded yet; labels are checked here."""
    opened = _open_records(settings)
    _say_unused({split.where: split.labels is not None for split in opened.values()})
    return opened


def _say_unused(labelled: Mapping[str, bool]) -> None:
    """Labels of other splits tell nothing where the first one, train, has none."""
    first, *others = labelled
    unused = [where for where in others if labelled[where]]
    if unused and not labelled[first]:
        logger.warning(
            "%s: has no labels, so those of %s are not used; name the column of train (label_column), or lay its "
            "images into folders of classes",
            first,
            "; ".join(unused),
        )


def _open_records(settings: ImageSettings) -> dict[str, Records]:
    settings.check_files()
    if settings.source not in OWN:
        source = registered(SOURCES, settings.source, "source")
        assert source is not None
        given = source(settings)
        return {name: _given(f"{settings}, split {name}", *given[name], settings) for name in SPLITS if name in given}
    if settings.source == "digits":
        from sklearn.datasets import load_digits  # half a second to import

        digits = load_digits()
        images, stored = digits.images.astype(np.uint8), None
        if settings.label_column != "":
            stored = Stored(str(settings), ("target",), "number", [str(name) for name in digits.target_names])
        train = Records(str(settings), len(images), images.__getitem__, None, None, None, True)
        of_train = _classes({"train": stored}, settings, lambda _: None)["train"]
        return {"train": _labelled(train, of_train, digits.target if stored else None)}
    if settings.source == "array":
        arrays: Mapping[Split, Any] = {
            name: _open_array(settings.files[name], settings) for name in SPLITS if name in settings.files
        }
        classes = _classes(
            {name: stored for name, (_, stored, _) in arrays.items()}, settings, lambda name: arrays[name][2]
        )
        return {name: _labelled(split, classes[name], values) for name, (split, _, values) in arrays.items()}
    opened = {name: _open_rows(stored) for name, stored in open_streams(settings, streaming=False).items()}
    if settings.source != "audiofolder":
        return opened
    return {name: _excerpts(files, settings) for name, files in opened.items()}


def _excerpts(files: Records, settings: ImageSettings) -> Records:
    """The excerpts of sound files in the place of the files; files without any are left out, with the reason."""
    assert settings.kept is not None and settings.rate is not None
    size, left_out = settings.kept[0], {name: dict(what) for name, what in files.left_out.items()}
    every = list(files.fetch(np.arange(files.count)))
    records: list[dict[str, Any]] = []
    origin: list[int] = []
    for number, record in enumerate(every):
        path = record["path"]
        try:
            starts, why = sounds.excerpts(sounds.length(path, settings.rate), size), f"shorter than {size} numbers"
        except InputError:
            raise
        except Exception as error:  # soundfile's own type, and what its formats raise
            if settings.on_error == "refuse":
                raise InputError(
                    f"{path}: cannot be read ({told(error)}); mend or remove it, or set on_error"
                ) from error
            starts, why = [], f"cannot be read ({told(error)})"
        if not starts:
            left = left_out.setdefault(why, {"count": 0, "first": []})
            left["count"] += 1
            left["first"] = [*left["first"], path][:3]
        records += [{**record, "start": start} for start in starts]
        origin += [number] * len(starts)
    if not records:
        raise InputError(f"{files.where}: no sound of {size} numbers or more: choose a smaller size")
    labels = None if files.labels is None else files.labels[np.array(origin)]
    return replace(
        files, count=len(records), fetch=lambda some: [records[i] for i in some], labels=labels, left_out=left_out
    )


def open_streams(settings: ImageSettings, streaming: bool = True) -> dict[str, Streamed]:
    """The splits of a source of ``datasets``, train first: rows that are not decoded, and which columns to read."""
    settings.check_files()
    settings, beside = without_roots(settings)
    check_paths(settings)
    left_out: dict[str, dict[str, Any]] = {}
    shards: dict[str, Shards] = {}
    if settings.source == "audiofolder" and any(map(remote, settings.files.values())):
        raise InputError("source audiofolder reads folders of this machine: fetch the files first")
    if settings.source.endswith("folder") and not any(map(remote, settings.files.values())):
        opened = open_folders(settings, beside, streaming)
        loaded = {split: rows for split, (rows, _) in opened.items()}
        left_out = {split: summary for split, (_, summary) in opened.items()}
    else:
        loaded, shards = _load_datasets(settings, streaming)
        left_out = {split: one.left_out for split, one in shards.items()}
    chosen = settings.splits if settings.source == "hub" else {}
    for name in chosen.values():
        if name not in loaded:
            raise InputError(f"{settings}: has no split {name}, but {', '.join(map(str, loaded))}; correct splits")
    found = {str(ours): loaded[theirs] for ours, theirs in chosen.items()}
    found = found or {ALIASES.get(str(name), str(name)): rows for name, rows in loaded.items()}
    if not found.keys() & set(SPLITS):
        raise InputError(f"{settings}: has no split named train, validation or test; name another data set")
    splits = {
        name: _columns(found[name], f"{settings}, split {name}", settings, settings.files.get(name), left_out.get(name))
        for name in SPLITS
        if name in found
    }
    for name, split in splits.items():
        if split.stored is None and settings.label_column is None and name in shards and shards[name].folders:
            logger.warning(
                "%s: its archives have folders (%s), which are not read as classes; unpack them for source "
                "imagefolder, or put a file KEY.txt with the class beside each image and set label_column to txt",
                split.where,
                listed(shards[name].folders),
            )
    stored = {name: split.stored for name, split in splits.items()}
    classes = _classes(stored, settings, lambda name: _texts(splits[name], settings, streaming, name))
    if streaming:  # else open_records knows it of all sources
        _say_unused({split.where: split.stored is not None for split in splits.values()})
        if next(iter(stored.values())) is None:
            return {name: replace(split, stored=None) for name, split in splits.items()}
    return {name: replace(split, classes=classes[name]) for name, split in splits.items()}


def _texts(split: Streamed, settings: ImageSettings, streaming: bool, name: Split) -> list[Any] | None:
    """The labels of a split that are texts; None where they are known only when the stream has been read."""
    if not streaming:
        return _values(split)
    pattern = settings.files.get(name) if settings.source == "parquet" else None
    return (
        None if split.stored is None or pattern is None or remote(pattern) else texts_in(matches(pattern), split.stored)
    )


def _values(split: Streamed) -> list[Any]:
    """The labels of a mapped split as they are stored."""
    assert split.stored is not None
    column, *inside = split.stored.column
    values = split.rows[column][:]
    return [split.stored.of({column: value}) for value in values] if inside else values


def _classes(
    stored: Mapping[Split, Stored | None], settings: ImageSettings, values: Callable[[Split], Any]
) -> dict[Split, Classes]:
    """What the labels of each split mean among the classes of the first that has labels."""
    first = next(((name, one) for name, one in stored.items() if one is not None), None)
    for name in ("classes", "class_names"):
        if first is None and getattr(settings, name):
            raise InputError(f"{settings}: {name} given, and there are no labels; leave it out, or set label_column")
    if first is None:
        return dict.fromkeys(stored, Classes(None))
    for one in stored.values():
        if one is not None and one.column != first[1].column and one.kind == "number" and one.names is None:
            own, its = (".".join(of.column) for of in (one, first[1]))
            raise InputError(
                f"{one.where}: its labels are numbers in column {own}, those of {first[0]} in {its}; write both into "
                "one of these, or give the classes names"
            )
    known = reference(first[1], values(first[0]) if first[1].kind == "text" else None, settings)
    return {name: Classes(known) if one is None else read_as(one, known, settings) for name, one in stored.items()}


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
        raise InputError(
            f"{where}: {count} images, labels {labels.dtype}{labels.shape}; store a class number or name for each"
        )
    if (labels == -1).all():
        return None
    if labels.min() < 0 or labels.max() >= (len(names) if names else 2**62):
        raise InputError(f"{where}: labels from {labels.min()} to {labels.max()}; number the classes from 0")
    return labels.astype(np.int64)


def _open_array(path: str, settings: ImageSettings) -> tuple[Records, Stored | None, NDArray[Any] | None]:
    """One .npy (pixels) or .npz (images, pixels or x, with labels or y) file of uint8 [n,h,w], [n,h,w,c], [n,c,h,w].

    A .npy file is memory-mapped; an .npz is an archive, of which the first of each of these names is read, unless
    ``image_column`` and ``label_column`` name others. The labels are given as they are stored.
    """
    columns = ((settings.image_column, IMAGES), (settings.label_column, LABELS))
    image_keys, label_keys = (usual if named is None else (named,) for named, usual in columns)
    try:
        content = np.load(plain_file(path), mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            if settings.image_column is not None:
                raise InputError(f"{path}: one array has no columns; leave image_column out, or name an .npz")
            names, arrays, image_keys = ["pixels"], {"pixels": content}, ("pixels",)
        else:
            with content:
                names = list(content)
                chosen = [next((key for key in keys if key in names), None) for keys in (image_keys, label_keys)]
                chosen.append(settings.condition)
                arrays = {key: content[key] for key in chosen if key in names}
    except InputError:
        raise
    except Exception as error:  # numpy raises a different type for each way a file can be broken
        problem = f"{path}: cannot be read as .npy or .npz ({reason(error)})"
        raise InputError(f"{problem}; name a file written by numpy") from error
    pixels = next((arrays[key] for key in image_keys if key in arrays), None)
    if pixels is None:
        wanted = ", ".join(image_keys)
        raise InputError(f"{path}: no array {wanted} among {', '.join(names)}; rename it, or set image_column")
    pixels = _images(pixels, path) if settings.pictures else _signals(pixels, settings, path)
    labels = next((arrays[key] for key in label_keys if key in arrays), None)
    if labels is None and settings.label_column:
        raise InputError(f"{path}: no array {settings.label_column} among {', '.join(names)}; correct label_column")
    others = [name for name in names if name not in arrays]
    if labels is None and others and settings.label_column is None:
        logger.warning("%s: no labels; if an array holds classes, set label_column: %s", path, ", ".join(others))
    stored = None
    if labels is not None:
        kind = {"U": "text", "b": "bool"}.get(labels.dtype.kind, "number")
        stored = Stored(path, (next(key for key in label_keys if key in arrays),), kind)
    split = Records(path, len(pixels), pixels.__getitem__, None, None, None, True)
    if find_given(dict.fromkeys(names, True), settings.condition, path):
        given = arrays[str(settings.condition)]
        if len(given) != len(pixels):
            raise InputError(
                f"{path}: {settings.condition} has {len(given)} rows for {len(pixels)} images; give one each"
            )
        split = replace(split, given=given.__getitem__)
    return split, stored, labels


def _images(pixels: NDArray[Any], path: str) -> NDArray[np.uint8]:
    """An array of images as Pillow wants it: channels last, and no axis for grey."""
    if pixels.dtype != np.uint8:
        raise InputError(f"{path}: the images are {pixels.dtype}, not uint8; store whole numbers from 0 to values - 1")
    first, last = (pixels.ndim == 4 and pixels.shape[axis] in (1, 3) for axis in (1, 3))
    if pixels.ndim != 3 and first == last:
        raise InputError(f"{path}: cannot tell the channels of {pixels.shape}; store images as [n, height, width, c]")
    pixels = pixels.transpose(0, 2, 3, 1) if first else pixels
    return pixels[..., 0] if pixels.ndim == 4 and pixels.shape[3] == 1 else pixels


def _signals(values: NDArray[Any], settings: ImageSettings, path: str) -> NDArray[Any]:
    r"""An array [n, c, \*size] of whole numbers; the axis of one channel may be missing."""
    if values.dtype.kind not in "iu":
        raise InputError(f"{path}: the numbers are {values.dtype}; store whole numbers from 0 to values - 1")
    axes = len(settings.size or ())
    if axes and settings.channels == 1 and values.ndim == axes + 1:
        values = values[:, None]
    wanted = (settings.channels, *(settings.size or ()))
    if (axes and values.shape[1:] != wanted) or not 3 <= values.ndim <= 5 or values.shape[1] != settings.channels:
        raise InputError(f"{path}: inputs of {values.shape[1:]} where {wanted} was said; correct size or channels")
    return values


def _given(
    where: str, values: NDArray[Any], labels: NDArray[Any] | None, names: list[str] | None, settings: ImageSettings
) -> Records:
    """A split of a source that is registered."""
    values = _images(values, where) if settings.pictures else _signals(values, settings, where)
    checked = None if labels is None else check_labels(labels, len(values), where, names)
    return Records(where, len(values), values.__getitem__, checked, names, None, ordered=True)


def _labelled(split: Records, classes: Classes, values: Any) -> Records:
    """A split with the class numbers of what it stores."""
    if values is None:
        return replace(split, class_names=classes.names)
    labels = check_labels(classes.array(values, split.where), split.count, split.where, classes.names)
    return replace(split, labels=labels, class_names=classes.names)


def check_paths(settings: ImageSettings) -> None:
    """Every path on this machine must lead to something of the right kind."""
    of_folders = settings.source.endswith("folder")
    for split, pattern in settings.files.items():
        found = [] if remote(pattern) else matches(pattern)
        if not found and not remote(pattern):
            where = f"the {split} split of source {settings.source}"
            raise InputError(f"{pattern}: no such file ({where}); correct the path in files")
        if of_folders and os.path.isfile(pattern):
            raise InputError(
                f"{pattern}: a file where source {settings.source} wants a folder; correct the path in files"
            )
        if not of_folders and (folder := next(filter(os.path.isdir, found), None)):
            raise InputError(
                f"{folder}: a folder where source {settings.source} wants files ({split}); name those in it, or set "
                "source to imagefolder"
            )


def _asked_for(settings: ImageSettings) -> tuple[str, str]:
    """What ``datasets`` loads, and which configuration of it; a folder of that name is that folder."""
    if settings.source != "hub":
        return settings.source, ""
    name = str(settings.name)
    for path, configuration in ((name, ""), name.rpartition(":")[::2]):
        if os.path.isdir(path):
            return plain_folder(path), configuration
    return name.partition(":")[0], name.partition(":")[2]


def origins(settings: ImageSettings) -> list[list[str]]:
    """Name and state of every file that lies elsewhere: its ETag or time of change, or the commit of the hub."""
    import datasets

    path, configuration = _asked_for(settings)
    inside = "/**" if settings.source == "imagefolder" else ""
    files = {str(split): pattern + inside for split, pattern in settings.files.items() if remote(pattern)}
    options = {"revision": settings.revision} if settings.source == "hub" else {}
    try:
        with _silence():
            found = datasets.load_dataset_builder(path, name=configuration or None, data_files=files or None, **options)
    except Exception as error:  # dozens of types, as in _load_datasets
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{settings}: cannot say which files it has ({reason}); check the network") from error
    pairs = (
        pair for of in (found.config.data_files or {}).values() for pair in zip(of, of.origin_metadata, strict=True)
    )
    return [[os.path.basename(file), *map(str, state)] for file, state in pairs]


def _load_datasets(settings: ImageSettings, streaming: bool) -> tuple[dict[str, Any], dict[str, Shards]]:
    """Split -> rows: shards on this machine, which are also given whole, and through ``datasets`` hub and addresses."""
    import datasets  # a second to import, and not needed for digits, arrays and what lies in the cache

    if not sys.stderr.isatty():  # its bars are drawn into files, too, where errors should be one line
        datasets.disable_progress_bars()
    path, configuration = _asked_for(settings)
    arguments: dict[str, Any] = {"name": configuration or None}
    if settings.source == "hub":
        arguments["revision"] = settings.revision
    inside = "/**" if settings.source == "imagefolder" else ""
    addresses = {split: pattern + inside for split, pattern in settings.files.items() if remote(pattern)}
    loaded: dict[str, Any] = {}
    shards: dict[str, Shards] = {}
    try:
        with _silence():
            for split in settings.files.keys() - addresses.keys():
                if settings.source == "parquet":
                    check_names(matches(settings.files[split]), settings.label_column)
                shards[split] = open_shards(settings, split, streaming)
                loaded[split] = shards[split].rows
            # Of several splits the library takes the columns of the first, and what its numbers mean, for those of all.
            each: list[Any] = [{split: address} for split, address in addresses.items()]
            for some in [addresses] if settings.source == "imagefolder" and addresses else each:
                loaded |= datasets.load_dataset(path, streaming=streaming, data_files=some, **arguments)
            if settings.source == "hub":
                loaded |= datasets.load_dataset(path, streaming=streaming, **arguments)
    except Exception as error:  # the library raises dozens of types for a name, a network or a file that is not there
        remedy = "check the name, the files, the network"
        if any(isinstance(cause, ImportError) for cause in causes(error)):
            remedy = (
                'install what opens such addresses: pip install "vqstack[remote]" (https://), pip install s3fs (s3://)'
            )
        raise _refusal(error, str(settings), "cannot be loaded", remedy) from error
    return loaded, shards


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
    root = os.path.abspath(folder) if settings.source.endswith("folder") and folder and not remote(folder) else None
    labels = find_labels(types, where, settings)
    given = find_given(types, settings.condition, where)
    rows = rows.select_columns(list(dict.fromkeys([image_column, *(labels.column if labels else ())[:1], *given[:1]])))
    rows = rows.cast_column(image_column, datasets.Image(decode=False))
    return Streamed(where, rows, image_column, labels, Classes(None), root, left_out or {}, given)


def _open_rows(stored: Streamed) -> Records:
    column = stored.image_column
    images = stored.rows.select_columns([column])
    split = Records(
        stored.where,
        len(images),
        lambda chosen: images[chosen.tolist()][column],
        None,
        None,
        stored.root,
        left_out=stored.left_out,
    )
    if stored.given:
        column_of_floats = stored.rows.select_columns([stored.given[0]])
        split = replace(split, given=lambda chosen: [inside(column_of_floats[int(i)], stored.given) for i in chosen])
    return _labelled(split, stored.classes, _values(stored) if stored.stored else None)


def _choose(what: str, named: str | None, fitting: list[str], columns: list[str], where: str) -> str:
    if named in fitting or (named is None and len(fitting) == 1):
        return named or fitting[0]
    problem = f"{what} column {named} is not there or of another type" if named else f"cannot tell the {what} column"
    known = f"of a fitting type: {', '.join(fitting) or 'none'}; all columns: {', '.join(columns)}"
    raise InputError(f"{where}: {problem} ({known}); set {what}_column")
