"""Opening a source: its splits, columns and labels, and the records that :func:`vqstack.images.decode.decode` reads.

Everything but digits and arrays goes through Hugging Face ``datasets``, mapped or streamed.
"""

import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqstack.errors import InputError, causes, listed, reason
from vqstack.images.arrays import open_arrays
from vqstack.images.cache import plain_folder
from vqstack.images.decode import decode_all, stacked
from vqstack.images.excerpts import excerpts, streamed_excerpts
from vqstack.images.folders import open_folders, without_roots
from vqstack.images.given import find_given
from vqstack.images.labels import Classes, Stored, check_names, find_labels, inside, read_as, reference, texts_in
from vqstack.images.moving import digits_of, moving_clips
from vqstack.images.pieces import cut_of
from vqstack.images.series import is_series
from vqstack.images.settings import SOURCES, SPLITS, ImageSettings, Split
from vqstack.images.shards import Shards, open_shards
from vqstack.images.undecoded import Records, Streamed, labelled
from vqstack.paths import matches, remote

logger = logging.getLogger(__name__)
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}


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
    if settings.source not in SOURCES.own or settings.source in ("digits", "array"):
        arrays: Mapping[Split, Any] = open_arrays(settings)
        stored = {name: stored for name, (_, stored, _) in arrays.items()}
        classes = _classes(stored, settings, lambda name: arrays[name][2])
        return {name: labelled(split, classes[name], values) for name, (split, _, values) in arrays.items()}
    if settings.source == "moving_mnist":
        return _moving(settings)
    opened = {name: _open_rows(stored) for name, stored in open_streams(settings, streaming=False).items()}
    if (cut := cut_of(settings)) is None:
        return opened
    return {name: excerpts(inputs, settings, cut) for name, inputs in opened.items()}


def _moving(settings: ImageSettings) -> dict[str, Records]:
    """Clips of the digits of another source."""
    asked = digits_of(settings)
    found: dict[str, NDArray[np.uint8]] = {}
    for split, of in _open_records(asked).items():
        every = np.arange(of.count)
        images = decode_all(list(of.fetch(every)), [f"{of.where}, image {i}" for i in every], asked, None)
        found[split] = stacked(images)[:, 0]
    return {
        split: Records(f"{settings}, split {split}", count, fetch, None, None, None, ordered=True)
        for split, (count, fetch) in moving_clips(settings, found).items()
    }


def open_streams(settings: ImageSettings, streaming: bool = True) -> dict[str, Streamed]:
    """The splits of a source of ``datasets``, train first: rows that are not decoded, and which columns to read."""
    settings.check_files()
    settings, beside = without_roots(settings)
    check_paths(settings)
    left_out: dict[str, dict[str, Any]] = {}
    shards: dict[str, Shards] = {}
    bound = cut_of(settings) is not None and not (settings.sounds and settings.packed)
    if bound and any(map(remote, settings.files.values())):
        raise InputError(f"source {settings.source} reads files of this machine here: fetch them first")
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
        name: _columns(
            found[name],
            shards[name].types if name in shards else found[name].features,
            f"{settings}, split {name}",
            settings,
            settings.files.get(name),
            left_out.get(name),
        )
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
        if (cut := cut_of(settings)) is not None:
            splits = {name: streamed_excerpts(split, settings, cut) for name, split in splits.items()}
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


def check_paths(settings: ImageSettings) -> None:
    """Every path on this machine must lead to something of the right kind."""
    of_folders = settings.source.endswith("folder")
    for split, pattern in settings.files.items():
        found = [] if remote(pattern) else matches(pattern)
        if not found and not remote(pattern):
            where = f"the {split} split of source {settings.source}"
            images = " or --images" if split == "train" and settings.source == "imagefolder" else ""
            raise InputError(f"{pattern}: no such file ({where}); correct the path in files{images}")
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
        if settings.sounds and "torchcodec" in reason(error):  # it would copy files into rows
            remedy = "its sounds lie in files of their own: fetch it, and name its folder with source audiofolder"
        raise _refusal(error, str(settings), "cannot be loaded", remedy) from error
    return loaded, shards


def _columns(
    rows: Any, types: Any, where: str, settings: ImageSettings, folder: str | None, left_out: dict[str, Any] | None
) -> Streamed:
    """Finds the columns of images and labels by their types, and switches decoding off."""
    import datasets

    if types is None:
        raise InputError(f"{where}: does not say which columns it has; read it without streaming")
    stored = [name for name, kind in types.items() if isinstance(kind, dict) and kind.keys() == {"bytes", "path"}]
    audio = [name for name, kind in types.items() if isinstance(kind, datasets.Audio)]
    images = [name for name, kind in types.items() if isinstance(kind, datasets.Image)]
    binary = [name for name, kind in types.items() if getattr(kind, "dtype", "") in ("binary", "large_binary")]
    lists = [field.name for field in types.arrow_schema if is_series(field.type) and field.name != settings.condition]
    fitting = lists if settings.series else (audio if settings.sounds else images) + stored or binary
    if settings.series and lists and not settings.image_column:
        fitting = lists + audio  # numbers beside a sound may be anything
    told = ""
    if audio and not settings.sounds:
        told = f" ({', '.join(audio)}: sounds; for them give size one number and set rate)"
    elif settings.series and not lists and (stored or binary):
        told = f"; if {', '.join(stored or binary)} holds sounds, set rate"
    elif lists and settings.sounds:
        told = f" ({', '.join(lists)}: numbers; for series leave rate out)"
    image_column = _choose("image", settings.image_column, fitting, list(types), where, told)
    root = os.path.abspath(folder) if settings.source.endswith("folder") and folder and not remote(folder) else None
    labels = find_labels(types, where, settings)
    given = find_given(types, settings.condition, where)
    rows = rows.select_columns(list(dict.fromkeys([image_column, *(labels.column if labels else ())[:1], *given[:1]])))
    if not settings.series:  # Audio would ask for torchcodec
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
    return labelled(split, stored.classes, _values(stored) if stored.stored else None)


def _choose(what: str, named: str | None, fitting: list[str], columns: list[str], where: str, told: str) -> str:
    if named in fitting or (named is None and len(fitting) == 1):
        return named or fitting[0]
    problem = f"{what} column {named} is not there or of another type" if named else f"cannot tell the {what} column"
    known = f"of a fitting type: {', '.join(fitting) or 'none'}; all columns: {', '.join(columns)}"
    raise InputError(f"{where}: {problem} ({known}); set {what}_column{told}")
