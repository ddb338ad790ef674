"""Inputs that are larger than ``size`` and cut into pieces of it: sounds, volumes, videos, and series in rows.

Pieces have the size ``resize`` where there is one, so that ``size`` may lie anywhere inside. They lie side by side
along each axis, and overlap where their size does not divide: every number is in one, nothing is padded. With
``data.padding`` they never overlap, and what lies beyond the end holds ``PADDING``. A source is what :data:`CUTS` says
of it: files by their names, and how all values of one are had.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Integer
from numpy.typing import NDArray

from vqstack.images import series, sounds, video, volumes
from vqstack.images.settings import ImageSettings
from vqstack.shapes import PADDING

Start = tuple[int, ...]
"""Where a piece begins along each axis."""


@dataclass(frozen=True)
class Cut:
    """How the inputs of a source are read.

    Attributes:
        what: they are called.
        named: whether a file is one, by its name.
        read: values of a piece, [c, *size].
        sites: of the whole input along each axis, where they are known without its values.
        whole: else all values, [c, *sites].
    """

    what: str
    named: Callable[[str], bool]
    read: Callable[[Mapping[str, Any], Start, ImageSettings], Integer[np.ndarray, "c *size"]]
    sites: Callable[[Mapping[str, Any], ImageSettings], tuple[int, ...]] | None = None
    whole: Callable[[Mapping[str, Any], ImageSettings], Integer[np.ndarray, "c *sites"]] | None = None

    def opened(self, record: Mapping[str, Any], settings: ImageSettings) -> tuple[list[Start], Any]:
        """Where the pieces of an input begin, and all its values where these had to be read for that."""
        assert settings.kept is not None
        if self.sites is not None:
            return pieces(self.sites(record, settings), settings.kept, settings.padding), None
        assert self.whole is not None
        values = self.whole(record, settings)
        return pieces(values.shape[1:], settings.kept, settings.padding), values


def _of_whole(what: str, named: Callable[[str], bool], whole: Callable[[Mapping[str, Any], ImageSettings], Any]) -> Cut:
    """Inputs of which all values are had at once, [c, *sites]."""

    def read(record: Mapping[str, Any], start: Start, settings: ImageSettings) -> Any:
        return piece_of(whole(record, settings), start, settings)

    return Cut(what, named, read, whole=whole)


def piece_of(values: Integer[np.ndarray, "c *sites"], start: Start, settings: ImageSettings) -> NDArray[Any]:
    """A copy of the piece that begins at ``start``, in the type that is kept."""
    assert settings.kept is not None
    inside = (slice(first, first + count) for first, count in zip(start, settings.kept, strict=True))
    return _padded(values[(slice(None), *inside)], settings)


def _padded(found: Integer[np.ndarray, "c *here"], settings: ImageSettings) -> NDArray[Any]:
    """A piece in the type that is kept, filled up where it goes beyond the end."""
    assert settings.kept is not None
    if not settings.padding:
        return found.astype(np.uint8 if settings.values <= 256 else np.int32)
    room = [(0, count - here) for count, here in zip(settings.kept, found.shape[1:], strict=True)]
    return np.pad(found.astype(np.int32), [(0, 0), *room], constant_values=PADDING)


def stored(record: Mapping[str, Any], settings: ImageSettings, what: str) -> bytes | str:
    """The bytes of a file in a row, else its path; ValueError where there is none, and for a path in a shard."""
    held, path = record["bytes"], record["path"]
    if held == b"" or (held is None and path is None):
        raise ValueError(f"no {what} in this row")
    if held is None and settings.packed:
        raise ValueError(f"the row names a file and does not hold it; store the bytes of the {what}")
    return str(path) if held is None else bytes(held)


def _sound(record: Mapping[str, Any], start: Start, settings: ImageSettings) -> Integer[np.ndarray, "c n"]:
    assert settings.kept is not None and settings.rate is not None
    (first,), (count,), rate = start, settings.kept, settings.rate
    if settings.padding:
        count = min(count, sounds.length(record["path"], rate) - first)
    how = settings.channels, settings.values, settings.companding
    return _padded(sounds.read(record["path"], first, count, rate, *how), settings)


def _whole_sound(record: Mapping[str, Any], settings: ImageSettings) -> Integer[np.ndarray, "c n"]:
    assert settings.rate is not None
    file, rate = stored(record, settings, "sound"), settings.rate
    count = sounds.length(file, rate)
    return sounds.read(file, 0, count, rate, settings.channels, settings.values, settings.companding)


def _volume(record: Mapping[str, Any], settings: ImageSettings) -> Integer[np.ndarray, "c *sites"]:
    assert settings.kept is not None
    return volumes.whole(record["path"], len(settings.kept), settings.channels, settings.values, settings.range)


SERIES = _of_whole("series", lambda path: False, lambda record, settings: series.whole(record["numbers"], settings))
SOUNDS = _of_whole("sound", lambda path: False, _whole_sound)  # in rows
CUTS = {
    "audiofolder": Cut(
        "sound",
        sounds.is_sound,
        _sound,
        sites=lambda record, settings: (sounds.length(record["path"], settings.rate or 1),),
    ),
    "volumefolder": _of_whole("volume", volumes.is_volume, _volume),
    "videofolder": _of_whole("video", video.is_video, lambda record, settings: video.whole(record["path"], settings)),
}
"""By the names of their sources."""


def cut_of(settings: ImageSettings) -> Cut | None:
    """How inputs of these settings are cut; None where each is an input as it is."""
    return SERIES if settings.series else SOUNDS if settings.sounds else CUTS.get(settings.source)


def pieces(sites: tuple[int, ...], size: tuple[int, ...], padding: bool = False) -> list[Start]:
    """Where pieces begin that together hold every site; without padding none where an axis of the input is shorter."""
    return list(product(*(_along(count, each, padding) for count, each in zip(sites, size, strict=True))))


def _along(count: int, size: int, padding: bool) -> list[int]:
    if padding:
        return list(range(0, count, size))
    if count < size:
        return []
    parts = -(-count // size)
    return [(count - size) * part // max(parts - 1, 1) for part in range(parts)]
