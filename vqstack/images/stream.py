"""Training images of a source that is read from its beginning: endless batches, shuffled, decoded by worker processes.

``datasets`` shuffles the order of the shards and a buffer of encoded images, anew each epoch, and shards the source
over processes and workers. Memory holds the buffer and a few batches, whatever the size of the source.
"""

from collections.abc import Iterator
from copy import deepcopy
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from vqstack import signals
from vqstack.errors import InputError
from vqstack.images.decode import CHUNK, decode_all
from vqstack.images.given import given_floats
from vqstack.images.labels import inside
from vqstack.images.parts import bounds, hashed, lot
from vqstack.images.records import guarded, open_streams, shuffled
from vqstack.images.settings import ImageSettings
from vqstack.images.undecoded import Streamed, why_left_out

AHEAD = 2  # batches that each worker decodes ahead of what is used


class StreamBatch(NamedTuple):
    """What a worker hands over; with a ``problem`` there are no images and the stream ends."""

    pixels: Tensor  # uint8 [b, c, h, w], as large as images are kept
    labels: Tensor  # int64 [b], -1 without labels
    images: Tensor  # int64 [b]: a hash of each image, its number where there is no position
    epochs: Tensor  # int64 [b]: how often the source had been read to its end
    failed: list[str]  # images that were left out since the last batch, and why
    problem: str | None
    condition: Tensor | None = None  # float32 [b, *shape] of floats that are given


class _Row(NamedTuple):
    record: Any
    label: int
    image: int
    epoch: int
    given: Any = None


def open_stream(
    settings: ImageSettings,
    shape: tuple[int, ...],
    classes: int,
    batch: int,
    seed: int,
    rank: int,
    world: int,
    given: tuple[int, ...] = (),
) -> "ImageStream":
    """The train split of process ``rank`` of ``world``, in batches of ``batch`` images of ``shape`` [c, h, w].

    Each is given floats of the shape ``given``, if data.condition names them.
    """
    from datasets.distributed import split_dataset_by_node

    splits = open_streams(settings)
    split, rows = splits["train"], splits["train"].rows
    if rows.num_shards < world * max(settings.workers, 1) and hasattr(rows, "reshard"):
        rows = rows.reshard()  # row groups of Parquet files in place of files, in newer versions of datasets
    rows = split_dataset_by_node(shuffled(rows, settings, seed), rank, world)
    limits = bounds(set(splits), settings)["train"]
    return ImageStream(settings, split, rows, limits, shape, classes, batch, given)


class ImageStream:
    """Endless batches. ``batches(skip)`` begins after that many, and decodes those only with ``on_error: skip``."""

    def __init__(
        self,
        settings: ImageSettings,
        split: Streamed,
        rows: Any,
        limits: tuple[float, float],
        shape: tuple[int, ...],
        classes: int,
        batch: int,
        given: tuple[int, ...] = (),
    ) -> None:
        self.given = given
        self.settings, self.split, self.rows, self.limits = settings, split, rows, limits
        self.shape, self.classes, self.batch, self.skip = shape, classes, batch, 0
        # A worker without a shard would have nothing to do.
        self.workers = min(settings.workers, rows.num_shards)

    def batches(self, skip: int, pin: bool) -> Iterator[StreamBatch]:
        """Batches from number ``skip`` on; InputError for what cannot be read."""
        turns = max(self.workers, 1)  # workers take turns, so each is told how many of its own turns to pass over
        self.skip = skip // turns
        ahead = AHEAD if self.workers else None
        loader = DataLoader(
            _Workers(self),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=pin,
            prefetch_factor=ahead,
            worker_init_fn=signals.of_parent,
            # Without one it draws from the numbers of the step in which the stream begins: another one after a resume.
            generator=torch.Generator(),
        )
        with signals.blocked():
            made = iter(loader)
        for number, batch in enumerate(made, start=skip - skip % turns):
            if batch.problem is not None:
                raise InputError(batch.problem)
            if number >= skip:
                yield batch

    def of_worker(self) -> Iterator[StreamBatch]:
        """What one worker does; an exception would reach the main process as a traceback, so it is handed over."""
        try:
            # Which images are left out is known when they are decoded, so then what is passed over is decoded, too.
            decoded = self.skip if self.settings.on_error == "skip" else 0
            yield from islice(self._batched(self._rows((self.skip - decoded) * self.batch)), decoded, None)
        except InputError as error:
            yield _problem(str(error))
        except Exception as error:  # whatever the libraries raise that is not of reading a row
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            yield _problem(f"{self.split.where}: cannot be read ({reason}); check the files and the network")

    def _rows(self, left: int) -> Iterator[_Row]:
        """Rows of the train part, without end, after ``left`` that are passed over."""
        # Workers share the number of the epoch, each would set that of the others, and the order depends on it.
        rows = deepcopy(self.rows)
        for epoch in count():
            rows.set_epoch(epoch)
            seen = 0
            for row in guarded(rows, self.split.where, self.settings):
                record = row[self.split.image_column]
                if why_left_out(record):
                    if not left:
                        yield _Row(record, -1, 0, epoch)
                    continue
                image = hashed(record, self.settings, self.split.root)
                if self.limits[0] <= lot(image) < self.limits[1]:
                    seen += 1
                    if seen > left:
                        piece = record.get("number", 0) if isinstance(record, dict) else 0
                        yield _Row(record, self._label(row), image >> 1 ^ piece, epoch, self._given(row))
            if not seen:
                raise InputError(f"{self.split.where}: a shard without images to train on; set workers to 0")
            left = max(left - seen, 0)

    def _label(self, row: dict[str, Any]) -> int:
        if not self.classes:
            return -1
        label = self.split.label(row)
        if self.split.stored and not 0 <= label < self.classes:
            raise InputError(f"{self.split.where}: label {label} where {self.classes} classes are known; set classes")
        return label

    def _given(self, row: dict[str, Any]) -> Any:
        return inside(row, self.split.given) if self.split.given else None

    def _batched(self, rows: Iterator[_Row]) -> Iterator[StreamBatch]:
        ready: list[tuple[NDArray[Any], _Row]] = []
        failed: list[str] = []
        while True:
            part = list(islice(rows, CHUNK))
            failed += [f"{row.record['path']}: {why}" for row in part if (why := why_left_out(row.record))]
            part = [row for row in part if not why_left_out(row.record)]
            names = [_name(self.split.where, row.record) for row in part]
            images = decode_all([row.record for row in part], names, self.settings, self.shape[1:])
            every = zip(images, part, names, strict=True)
            good = [(image, row, name) for image, row, name in every if not isinstance(image, str)]
            given: list[Any] = [None] * len(good)
            if self.split.given and good:
                _, rows_read, found = zip(*good, strict=True)
                given = list(given_floats([row.given for row in rows_read], found, self.settings, self.given))
            ready += [(image, row._replace(given=one)) for (image, row, _), one in zip(good, given, strict=True)]
            broken = [image for image in images if isinstance(image, str)]
            if broken and self.settings.on_error == "refuse":
                raise InputError(f"{broken[0]}, or set on_error to skip")
            failed += broken
            while len(ready) >= self.batch:
                yield _stacked(ready[: self.batch], failed)
                ready, failed = ready[self.batch :], []


class _Workers(IterableDataset):
    """What torch takes to its worker processes."""

    def __init__(self, stream: ImageStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[StreamBatch]:
        return self.stream.of_worker()


def _stacked(ready: list[tuple[NDArray[Any], _Row]], failed: list[str]) -> StreamBatch:
    pixels = torch.from_numpy(np.stack([image for image, _ in ready]))
    labels, images, epochs = torch.tensor([(row.label, row.image, row.epoch) for _, row in ready]).T.contiguous()
    given = [row.given for _, row in ready]
    condition = None if given[0] is None else torch.from_numpy(np.stack(given))
    return StreamBatch(pixels, labels, images, epochs, failed, None, condition)


def _problem(message: str) -> StreamBatch:
    nothing = torch.empty(0, dtype=torch.int64)
    return StreamBatch(nothing, nothing, nothing, nothing, [], message)


def _name(where: str, record: Any) -> str:
    return f"{where}, image {record['path']}" if record and record["path"] else f"{where}, an image"
