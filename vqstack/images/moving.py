"""Moving MNIST: clips of digits that cross a black square and bounce off its borders, made as they are asked for.

Srivastava, Mansimov and Salakhutdinov 2015, "Unsupervised learning of video representations using LSTMs". A digit
starts anywhere, in any direction, and moves by a tenth of its room a frame; where digits overlap, the brighter number
counts.
Clip i of a split is a function of (seed, split, i) and of the digits of that split.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from vqstack.errors import InputError
from vqstack.images.settings import SPLITS, ImageSettings

STEP = 0.1  # of its room that a digit moves from frame to frame
OPTIONS = {"digits": 2, "train": 4000, "validation": 200, "test": 500}
"""Digits of a clip, and clips of each split, where ``data.options`` does not say: counts."""

Clips = tuple[int, Callable[[NDArray[np.int64]], Iterable[UInt8[np.ndarray, "1 frames rows columns"]]]]
"""How many clips a split has, and what makes those of some numbers."""


def digits_of(settings: ImageSettings) -> ImageSettings:
    """Where the digits come from: files of ``settings``, or a data set of the hub."""
    said: dict[str, Any] = {"image_column": settings.image_column, "label_column": ""}
    if settings.files:
        return ImageSettings(source="parquet", files=settings.files, **said)
    name = settings.name or "ylecun/mnist"
    return ImageSettings(source="hub", name=name, revision=settings.revision, splits=settings.splits, **said)


def counts(settings: ImageSettings) -> dict[str, int]:
    """The options, with what they leave out; InputError for others."""
    if unknown := sorted(settings.options.keys() - OPTIONS.keys()):
        raise InputError(f"data.options: moving_mnist knows no {unknown[0]}: it takes {', '.join(OPTIONS)}")
    found = OPTIONS | settings.options
    for name, count in found.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < (name in ("digits", "train")):
            raise InputError(f"data.options: {name} is {count}: give a count")
    return {name: int(count) for name, count in found.items()}


def moving_clips(settings: ImageSettings, digits: Mapping[str, UInt8[np.ndarray, "_ h w"]]) -> dict[str, Clips]:
    """The clips of each split.

    Args:
        settings: size, seed and options.
        digits: of each split that has its own, train among them; a split without any has those of train.
    """
    wanted, (_, rows, columns) = counts(settings), sized(settings)
    for split, known in digits.items():
        if known.shape[1] > rows or known.shape[2] > columns:
            raise InputError(
                f"{split}: digits of {known.shape[1]}x{known.shape[2]} do not fit into frames of {rows}x{columns}; "
                "choose a larger size"
            )
    return {
        split: (
            wanted[split],
            partial(_clips, digits.get(split, digits["train"]), sized(settings), wanted["digits"], (settings.seed, i)),
        )
        for i, split in enumerate(SPLITS)
        if wanted[split]
    }


def sized(settings: ImageSettings) -> tuple[int, int, int]:
    """Frames, rows and columns of a clip."""
    assert settings.size is not None
    frames, rows, columns = settings.size
    return frames, rows, columns


def _clips(
    digits: UInt8[np.ndarray, "_ h w"],
    size: tuple[int, int, int],
    count: int,
    seed: tuple[int, int],
    numbers: NDArray[np.int64],
) -> Iterable[UInt8[np.ndarray, "1 frames rows columns"]]:
    return (clip(digits, size, count, (*seed, number)) for number in numbers.tolist())


def clip(
    digits: UInt8[np.ndarray, "_ h w"], size: tuple[int, int, int], count: int, seed: tuple[int, ...]
) -> UInt8[np.ndarray, "1 frames rows columns"]:
    """One clip of ``count`` digits, drawn with replacement, of ``size`` (frames, rows, columns).

    ``seed`` names all that is drawn.
    """
    generator = Generator(PCG64(seed))
    shown = np.zeros((1, *size), dtype=np.uint8)
    _, high, wide = digits.shape
    for digit in digits[generator.integers(len(digits), size=count)]:
        places = way(generator.random(2), 2 * np.pi * generator.random(), size[0])
        for frame, (y, x) in zip(shown[0], np.rint(places * (size[1] - high, size[2] - wide)).astype(int), strict=True):
            here = frame[y : y + high, x : x + wide]
            np.maximum(here, digit, out=here)
    return shown


def way(start: Float64[np.ndarray, "2"], angle: float, frames: int) -> Float64[np.ndarray, "frames 2"]:
    """Where a digit is in each frame along both axes, from 0 to 1: a straight way, folded at the walls."""
    straight = start + STEP * np.arange(frames)[:, None] * (np.sin(angle), np.cos(angle))
    return 1 - np.abs(straight % 2 - 1)
