"""A split as its source has it, nothing decoded yet: mapped (:class:`Records`) or as a stream (:class:`Streamed`)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqstack.errors import InputError
from vqstack.images.labels import Classes, Stored

LEFT_OUT = "left out"
"""In the record of a streamed input that has no pieces: why."""


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

    def present(self, rows: Iterable[Any]) -> Iterator[Any]:
        """Rows of the stream; those of inputs without pieces are counted in ``left_out`` instead."""
        for row in rows:
            if why := why_left_out(row[self.image_column]):
                count_left_out(self.left_out, why, row[self.image_column]["path"])
            else:
                yield row


def why_left_out(record: Any) -> str:
    """Of the record of a streamed input that has no pieces; empty for others."""
    return record.get(LEFT_OUT, "") if isinstance(record, dict) else ""


def count_left_out(left_out: dict[str, Any], why: str, path: str) -> None:
    """One input more that is left out, and why; the first three of a kind are named."""
    left = left_out.setdefault(why, {"count": 0, "first": []})
    left["count"] += 1
    left["first"] = [*left["first"], path][:3]


def labelled(split: Records, classes: Classes, values: Any) -> Records:
    """A split with the class numbers of what it stores."""
    if values is None:
        return replace(split, class_names=classes.names)
    labels = check_labels(classes.array(values, split.where), split.count, split.where, classes.names)
    return replace(split, labels=labels, class_names=classes.names)


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
