"""The splits of a data set as tensors: decoded once into the cache, memory-mapped from there."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from vqstack.errors import InputError, listed
from vqstack.images.cache import PIXELS, Stored, Writer, cached, lookup
from vqstack.images.decode import decode_all
from vqstack.images.given import given_floats
from vqstack.images.labels import count_classes, inside, padded
from vqstack.images.parts import FETCH, bounds, hashed, lot, lots, partition
from vqstack.images.records import guarded, open_records, open_streams, shuffled
from vqstack.images.settings import SPLITS, STREAM_LIMIT, ImageSettings, Size
from vqstack.images.undecoded import Records, Streamed, check_labels
from vqstack.images.views import center
from vqstack.shapes import PADDING, Floats, Labels, Pixels, at_rest, by_axis, filled
from vqstack.terminal import Progress
from vqstack.threads import cores

logger = logging.getLogger(__name__)
NAMED = 5  # images that could not be read which are named


@dataclass(frozen=True, eq=False)
class Part:
    """Some images of a split."""

    pixels: Pixels
    labels: Labels | None
    index: Int64[Tensor, "b"]  # as of ImageSplit
    condition: Floats | None = None


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """One split; its images lie in memory maps until they are read."""

    stored: Pixels  # as large as they are kept
    labels: Labels | None  # class numbers, where the source has them
    index: Int64[Tensor, "b"]  # position in the source split as stored: a held-out image keeps its position in train
    name: str  # train, validation or test
    source: dict[str, Any]  # where the images came from, as JSON for a manifest
    cache: Stored  # what the tensors were opened from
    condition: Floats | None = None  # floats that are given with each image

    def __repr__(self) -> str:
        classes = f", {self.num_classes} classes" if self.labelled else ""
        return f"ImageSplit({self.name}: {len(self)} images {self.source['shape']}{classes})"

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def size(self) -> Size:
        """Sites along each axis: height and width of images."""
        return tuple(self.source["shape"][1:])

    @property
    def fingerprint(self) -> str:
        """Checksum of the pixels as they were stored."""
        return self.cache.sha256[PIXELS]

    @property
    def marked(self) -> Pixels:
        """The centre of what is kept, with padding as :data:`vqstack.shapes.PADDING`."""
        return center(self.stored, self.size)

    @property
    def padded(self) -> bool:
        """Whether there may be padding."""
        return bool(self.source.get("padded"))

    @property
    def beyond(self) -> int:
        """What a random view has beyond the edge: padding where there may be some, else rest."""
        return PADDING if self.padded else at_rest(self.source["values"], len(self.size))

    @property
    def pixels(self) -> Pixels:
        """The centre of what is kept, with rest in place of padding."""
        return self._filled if self.padded else self.marked

    @cached_property
    def _filled(self) -> Pixels:
        return filled(self.marked, self.source["values"])

    @property
    def labelled(self) -> bool:
        """Whether the classes of the images are known."""
        return self.labels is not None

    def part(self, places: slice) -> Part:
        """Images ``places`` of the split, in its order."""
        labels, condition = (None if x is None else x[places] for x in (self.labels, self.condition))
        pixels = filled(self.marked[places], self.source["values"])
        return Part(pixels, labels, self.index[places], condition)

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """Of the floats that an image is given; empty where none are."""
        return () if self.condition is None else tuple(self.condition.shape[1:])

    def renumbered(self, numbers: Sequence[int], names: Sequence[str]) -> "ImageSplit":
        """The same images among other classes: ``numbers`` has the new number of each class, ``names`` all classes."""
        assert self.labels is not None
        labels = torch.tensor(numbers)[self.labels]
        return replace(
            self, labels=labels, source=self.source | {"num_classes": len(names), "class_names": list(names)}
        )

    @property
    def num_classes(self) -> int:
        """Number of label values: declared by the source, else largest label of train + 1; 0 without labels."""
        return int(self.source["num_classes"])

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, their numbers where the source names none; empty without labels."""
        return padded(self.source["class_names"], self.num_classes)


def load_splits(settings: ImageSettings, names: Iterable[str] = SPLITS) -> dict[str, ImageSplit]:
    """The named splits, each image decoded once and from then on read from the cache, where nothing is damaged.

    A missing validation or test split is held out of train (:mod:`vqstack.images.parts`); inside a split, images keep
    the order of the source. Of a stream these are ``limit`` images of each split, in the order in which it gives them.
    Raises InputError for whatever is missing, broken or of the wrong type.
    """
    source = _Streams(settings) if settings.streaming else _Mapped(settings)
    loaded: dict[str, ImageSplit] = {}
    for name in names:
        stored = cached(settings, name, lambda folder, name=name: source.write(name, folder))  # type: ignore[misc]
        labels = None if stored.labels is None else torch.from_numpy(stored.labels)
        pixels, index = torch.from_numpy(stored.pixels), torch.from_numpy(stored.index)
        condition = None if stored.condition is None else torch.from_numpy(stored.condition)
        loaded[name] = ImageSplit(pixels, labels, index, name, stored.meta, stored, condition)
        for reason, what in stored.meta["left_out"].items():
            logger.warning("%s: %d left out, %s: %s", name, what["count"], reason, "; ".join(what["first"]))
        if name == "train" and labels is not None:
            _say_missing(loaded[name], labels)
        if stored.meta["skipped"]["count"]:
            count, first = stored.meta["skipped"]["count"], "; ".join(stored.meta["skipped"]["first"])
            logger.warning("%s: %d of %d images left out: %s", name, count, count + len(pixels), first)
    leading = next(iter(loaded.values()))
    for split in loaded.values():
        if split.condition_shape != leading.condition_shape:
            here, there = by_axis(split.condition_shape), by_axis(leading.condition_shape)
            raise InputError(
                f"{split.name}: column {settings.condition} has {here} floats an image, in {leading.name} {there}; "
                "give all splits floats of one length"
            )
    return loaded


def _say_missing(train: ImageSplit, labels: Labels) -> None:
    """Classes that train has no image of."""
    seen = set(labels.unique().tolist())
    missing = [name for number, name in enumerate(train.class_names) if number not in seen]
    if missing:
        logger.warning("train: %d of %d classes have no image: %s", len(missing), train.num_classes, listed(missing))


def split_names(settings: ImageSettings) -> list[str]:
    """The splits that the source has or that are held out of its train split, without decoding an image."""
    found = open_streams(settings) if settings.streaming else open_records(settings)
    held = [name for name in ("validation", "test") if "train" in found and getattr(settings, name) > 0]
    return [name for name in SPLITS if name in found or name in held]


def image_shape(settings: ImageSettings) -> tuple[int, ...]:
    r"""(channels, height, width) of images: without loading any where ``size`` is set, else of the first one."""
    if settings.size is not None:
        return settings.channels, *settings.size
    stored = _any_cached(settings)
    if stored is not None:
        return tuple(stored.meta["shape"])
    source = _Streams(settings) if settings.streaming else _Mapped(settings)
    image = next(source.images(), None)
    if image is None:
        raise InputError(f"{settings}: no images, so no size; name another data set")
    return image.shape


def num_classes(settings: ImageSettings) -> int:
    """As :attr:`ImageSplit.num_classes`, without decoding a whole split where the source is mapped."""
    stored = _any_cached(settings)
    if stored is not None:
        return int(stored.meta["num_classes"])
    if settings.streaming:
        return load_splits(settings, ["train"])["train"].num_classes
    return _Mapped(settings).classes


def _any_cached(settings: ImageSettings) -> Stored | None:
    return next((stored for name in SPLITS if (stored := lookup(settings, name)) is not None), None)


@dataclass(frozen=True, eq=False)
class _Batch:
    """Records of a split that are not decoded yet."""

    records: list[Any]
    names: list[str]
    positions: list[int]
    labels: list[int] | None
    given: list[Any] | None = None  # as data.condition has it


def _write(
    folder: Path,
    batches: Iterable[_Batch],
    total: int,
    settings: ImageSettings,
    meta: dict[str, Any],
) -> None:
    """Decodes batches into a folder of the cache; ``meta`` has all that ``ImageSplit.source`` needs but the shape."""
    index: list[int] = []
    labels: list[int] | None = []
    failed: list[str] = []
    progress = Progress(total=total, desc="reading images", unit="img", disable=None, leave=False)
    with Writer(folder) as writer, ThreadPoolExecutor(cores()) as pool, progress:
        for batch in batches:
            images = decode_all(batch.records, batch.names, settings, writer.shape[1:] or settings.kept, pool)
            failed += [image for image in images if isinstance(image, str)]
            skipped(failed, settings)
            good = [i for i, image in enumerate(images) if not isinstance(image, str)]
            condition = None
            if batch.given is not None and good:
                shape = writer.condition.shape if writer.condition else ()
                given, named = [batch.given[i] for i in good], [batch.names[i] for i in good]
                condition = given_floats(given, named, settings, shape)
            writer.append([image for image in images if not isinstance(image, str)], condition)
            index += [batch.positions[i] for i in good]
            if labels is not None and batch.labels is not None:
                labels.extend(batch.labels[i] for i in good)
            else:
                labels = None
            progress.update(len(images))
        where = meta["origin"]
        if not index:
            raise InputError(f"{where}: no images left for a split; name another file or hold out less of train")
        if meta["num_classes"] is None:  # of a stream: what was seen decides
            meta["num_classes"] = count_classes(None, max(labels), len(index), settings, where) if labels else 0
        checked = None if labels is None else check_labels(np.array(labels), len(index), where, meta["class_names"])
        if checked is not None:
            check_classes(checked, meta["num_classes"], where)
        meta |= {"shape": [writer.shape[0], *(settings.size or writer.shape[1:])], "skipped": skipped(failed, settings)}
        writer.finish(index, checked, meta)


def skipped(failed: list[str], settings: ImageSettings) -> dict[str, Any]:
    """How many images cannot be read, and the first of them, for the manifest; InputError if none may be left out."""
    if failed and settings.on_error == "refuse":
        raise InputError(f"{failed[0]}, or set on_error to skip")
    return {"count": len(failed), "first": failed[:NAMED]}


def check_classes(labels: NDArray[np.int64], classes: int, where: str) -> NDArray[np.int64]:
    """Labels of a split below the number of classes, or InputError."""
    if labels.max() >= classes:
        known = f"{classes} classes are known; correct the labels, or set classes"
        raise InputError(f"{where}: label {labels.max()} where {known}")
    return labels


def described(settings: ImageSettings, name: str, origin: str, stored: Records | Streamed) -> dict[str, Any]:
    return {
        "source": settings.source,
        "origin": stored.where,
        "held_out": name != origin,
        "left_out": stored.left_out if name == origin else {},
        "seed": settings.seed,
        "values": settings.values,
    } | ({"padded": True} if settings.padding else {})


class _Mapped:
    """A source whose images can be counted and taken in any order."""

    def __init__(self, settings: ImageSettings) -> None:
        self.settings = settings

    @cached_property
    def splits(self) -> dict[str, Records]:
        return open_records(self.settings)

    @cached_property
    def positions(self) -> dict[str, tuple[str, NDArray[np.int64]]]:
        counts = {name: split.count for name, split in self.splits.items()}
        return partition(counts, lambda name: lots(self.splits[name], self.settings), self.settings)

    @property
    def classes(self) -> int:
        first = next(iter(self.splits.values()))
        if first.labels is None:
            return 0
        largest = int(first.labels.max(initial=-1))
        return count_classes(first.class_names, largest, first.count, self.settings, first.where)

    def images(self) -> Iterator[NDArray[Any]]:
        """Images of the first split, one by one."""
        split = next(iter(self.splits.values()))
        for batch in self._batches(split, np.arange(split.count), 1):
            yield from _readable(batch, self.settings)

    def write(self, name: str, folder: Path) -> None:
        if name not in self.positions:
            raise InputError(f"{self.settings}: no {name} split; name a file for it or hold out a part of train")
        origin, positions = self.positions[name]
        split = self.splits[origin]
        meta = described(self.settings, name, origin, split)
        meta |= {"num_classes": self.classes, "class_names": split.class_names if self.classes else None}
        _write(folder, self._batches(split, positions, FETCH), len(positions), self.settings, meta)

    def _batches(self, split: Records, positions: NDArray[np.int64], size: int) -> Iterator[_Batch]:
        for start in range(0, len(positions), size):
            chosen = positions[start : start + size]
            labels = split.labels[chosen].tolist() if split.labels is not None and self.classes else None
            records = list(split.fetch(chosen))
            names = [image_name(split.where, *pair) for pair in zip(chosen.tolist(), records, strict=True)]
            given = None if split.given is None else list(split.given(chosen))
            yield _Batch(records, names, chosen.tolist(), labels, given)


class _Streams:
    """A source that is read from its beginning: of each split the first ``limit`` images after shuffling."""

    def __init__(self, settings: ImageSettings) -> None:
        self.settings, self.limit = settings, settings.limit or STREAM_LIMIT

    @cached_property
    def splits(self) -> dict[str, Streamed]:
        return open_streams(self.settings)

    def images(self) -> Iterator[NDArray[Any]]:
        split = next(iter(self.splits.values()))
        for row in guarded(split.rows, split.where, self.settings):
            batch = _Batch([row[split.image_column]], [split.where], [0], None)
            yield from _readable(batch, self.settings)

    def write(self, name: str, folder: Path) -> None:
        limits = bounds(set(self.splits), self.settings)
        if name not in limits:
            raise InputError(f"{self.settings}: no {name} split; name a file for it or hold out a part of train")
        origin = name if name in self.splits else "train"
        split = self.splits[origin]
        split = replace(split, left_out={why: dict(what) for why, what in split.left_out.items()})  # counted on
        meta = described(self.settings, name, origin, split)
        classes = self.settings.classes or len(split.class_names or []) or None
        if name != "train" and classes is None:
            classes = load_splits(self.settings, ["train"])["train"].num_classes
        meta |= {"num_classes": classes, "class_names": split.class_names}
        _write(folder, self._batches(split, limits[name]), self.limit, self.settings, meta)

    def _batches(self, split: Streamed, limits: tuple[float, float]) -> Iterator[_Batch]:
        read = guarded(shuffled(split.rows, self.settings, self.settings.seed), split.where, self.settings)
        column, first = split.image_column, 0
        inside_limits = (
            row
            for row in split.present(read)
            if limits[0] <= lot(hashed(row[column], self.settings, split.root)) < limits[1]
        )
        chosen = islice(inside_limits, self.limit)
        while rows := list(islice(chosen, FETCH)):
            records, positions = [row[column] for row in rows], list(range(first, first + len(rows)))
            names = [image_name(split.where, *pair) for pair in zip(positions, records, strict=True)]
            labels = [split.label(row) for row in rows] if split.stored else None
            given = [inside(row, split.given) for row in rows] if split.given else None
            yield _Batch(records, names, positions, labels, given)
            first += len(rows)


def image_name(where: str, position: int, record: Any) -> str:
    """What a person finds the image by."""
    path = record["path"] if isinstance(record, dict) else None
    return f"{where}, image {position}" + (f" ({path})" if path else "")


def _readable(batch: _Batch, settings: ImageSettings) -> Iterator[NDArray[Any]]:
    for image in decode_all(batch.records, batch.names, settings, settings.kept):
        if not isinstance(image, str):
            yield image
        elif settings.on_error == "refuse":
            raise InputError(image)
