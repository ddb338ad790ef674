"""Every image of a stream once, in the order of its source: for what reads all of it, as encoding does.

One process reads the source to its end (:func:`survey`): whether each image can be decoded, which split it belongs to,
its label. Then each process reads on to the images that it is asked for and decodes them again. Nothing is kept but a
few numbers per image, and what comes out is what the same files give without streaming.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqstack.errors import InputError
from vqstack.images.decode import decode_all, stacked
from vqstack.images.labels import count_classes, padded
from vqstack.images.parts import FETCH, hashed, lot, partition
from vqstack.images.records import guarded, open_streams
from vqstack.images.settings import SPLITS, ImageSettings
from vqstack.images.splits import Part, check_classes, described, image_name, skipped
from vqstack.images.undecoded import Streamed, check_labels
from vqstack.images.views import center
from vqstack.shapes import filled
from vqstack.terminal import Progress
from vqstack.threads import cores


@dataclass(frozen=True, eq=False)
class Surveyed:
    """What the survey found out about one split."""

    origin: str  # the stored split that its images are in
    positions: NDArray[np.int64]  # of its images there, ascending
    labels: NDArray[np.int64] | None
    source: dict[str, Any]  # as of ImageSplit
    fingerprint: str  # of all pixels


@dataclass(frozen=True, eq=False)
class _Stored:
    """What the survey found out about a stored split, image by image."""

    lots: NDArray[np.float64]
    labels: NDArray[np.int64] | None
    digests: list[bytes]
    failed: dict[int, str]
    shape: tuple[int, ...]  # as images are kept, () without any


def survey(settings: ImageSettings) -> dict[str, Surveyed]:
    """Read a stream to its end; InputError for whatever is missing, broken or of the wrong type."""
    streams = open_streams(settings)
    stored = {name: _survey(stream, settings) for name, stream in streams.items()}
    counts = {name: len(one.lots) for name, one in stored.items()}
    first, names = next(iter(stored.values())), next(iter(streams.values())).class_names
    classes = 0
    if first.labels is not None:
        where = next(iter(streams.values())).where
        classes = count_classes(names, int(first.labels.max(initial=-1)), len(first.lots), settings, where)
    parts = partition(counts, lambda name: stored[name].lots, settings)
    return {name: _surveyed(name, *parts[name], streams, stored, classes, settings) for name in SPLITS if name in parts}


def _survey(stream: Streamed, settings: ImageSettings) -> _Stored:
    lots: list[float] = []
    labels: list[int] | None = [] if stream.stored else None
    digests: list[bytes] = []
    failed: dict[int, str] = {}
    shape: tuple[int, ...] = ()
    rows = iter(
        Progress(_rows(stream, settings), desc=f"looking through {stream.where}", unit="img", disable=None, leave=False)
    )
    with ThreadPoolExecutor(cores()) as pool:
        while chunk := list(islice(rows, FETCH)):
            numbers, records = [number for number, _ in chunk], [row[stream.image_column] for _, row in chunk]
            names = [image_name(stream.where, *pair) for pair in zip(numbers, records, strict=True)]
            images = decode_all(records, names, settings, shape[1:] or settings.kept, pool)
            failed |= {number: one for number, one in zip(numbers, images, strict=True) if isinstance(one, str)}
            shape = shape or next((image.shape for image in images if not isinstance(image, str)), ())
            digests += [b"" if isinstance(image, str) else _digest(image) for image in images]
            lots += [lot(hashed(record, settings, stream.root)) for record in records]
            if labels is not None:
                labels += [stream.label(row) for _, row in chunk]
    checked = None if labels is None else check_labels(np.array(labels), len(lots), stream.where, stream.class_names)
    return _Stored(np.array(lots), checked, digests, failed, shape)


def _digest(image: NDArray[Any]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def _surveyed(
    name: str,
    origin: str,
    positions: NDArray[np.int64],
    streams: Mapping[str, Streamed],
    stored: Mapping[str, _Stored],
    classes: int,
    settings: ImageSettings,
) -> Surveyed:
    """One split, without the images that cannot be decoded."""
    stream, of = streams[origin], stored[origin]
    failed = [of.failed[number] for number in positions.tolist() if number in of.failed]
    meta = described(settings, name, origin, stream)
    meta |= {"num_classes": classes, "class_names": stream.class_names if classes else None}
    meta |= {"shape": [*of.shape[:1], *(settings.size or of.shape[1:])], "skipped": skipped(failed, settings)}
    readable = np.array([number for number in positions.tolist() if number not in of.failed], dtype=np.int64)
    if not len(readable):
        raise InputError(f"{stream.where}: no images left for a split; name another file or hold out less of train")
    labels = None if of.labels is None or not classes else check_classes(of.labels[readable], classes, stream.where)
    fingerprint = hashlib.sha256(b"".join(of.digests[number] for number in readable.tolist())).hexdigest()
    return Surveyed(origin, readable, labels, meta, fingerprint)


def whole_splits(settings: ImageSettings, surveyed: Mapping[str, Surveyed]) -> dict[str, "WholeSplit"]:
    """The splits of a stream that has been surveyed."""
    streams = open_streams(settings)
    return {name: WholeSplit(settings, streams[split.origin], split) for name, split in surveyed.items()}


class WholeSplit:
    """One split of a stream; quick where its parts are asked for in order."""

    def __init__(self, settings: ImageSettings, stream: Streamed, surveyed: Surveyed) -> None:
        self.settings, self.stream, self.surveyed, self.source = settings, stream, surveyed, surveyed.source
        self.labelled = surveyed.labels is not None
        self._rows: Iterator[tuple[int, Any]] = iter(())
        self._passed = -1  # the position that was read last

    def __len__(self) -> int:
        return len(self.surveyed.positions)

    @property
    def class_names(self) -> list[str]:
        """As of ImageSplit."""
        return padded(self.source["class_names"], self.source["num_classes"])

    def renumbered(self, numbers: Sequence[int], names: Sequence[str]) -> "WholeSplit":
        """As of ImageSplit."""
        assert self.surveyed.labels is not None
        source = self.source | {"num_classes": len(names), "class_names": list(names)}
        labels = np.array(numbers)[self.surveyed.labels]
        return WholeSplit(self.settings, self.stream, replace(self.surveyed, labels=labels, source=source))

    @property
    def fingerprint(self) -> str:
        """A checksum that all pixels decide on."""
        return self.surveyed.fingerprint

    def part(self, places: slice) -> Part:
        """Images ``places`` of the split, in its order."""
        wanted = self.surveyed.positions[places].tolist()
        records = list(self._records(wanted))
        names = [image_name(self.stream.where, *pair) for pair in zip(wanted, records, strict=True)]
        size = tuple(self.source["shape"][1:])
        with ThreadPoolExecutor(cores()) as pool:
            images = decode_all(records, names, self.settings, self.settings.kept or size, pool)
        pixels = torch.from_numpy(stacked(images, "; it could be read before"))
        labels = None if self.surveyed.labels is None else torch.from_numpy(self.surveyed.labels[places])
        return Part(filled(center(pixels, size), self.settings.values), labels, torch.tensor(wanted))

    def _records(self, wanted: Iterable[int]) -> Iterator[Any]:
        for position in wanted:
            if position <= self._passed or self._passed < 0:
                self._rows = _rows(self.stream, self.settings)
            row = next((row for number, row in self._rows if number == position), None)
            if row is None:
                raise InputError(f"{self.stream.where}: has fewer images than when it was read first; start again")
            self._passed = position
            yield row[self.stream.image_column]


def _rows(stream: Streamed, settings: ImageSettings) -> Iterator[tuple[int, Any]]:
    """Rows and their positions."""
    return enumerate(stream.present(guarded(stream.rows, stream.where, settings)))
