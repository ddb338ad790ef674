"""Names for the tensors that travel between modules, and the one value every training step returns.

The annotations are documentation that the test suite enforces: under pytest they are checked at every call, outside it
they cost nothing.

Axes: ``b`` inputs, ``c`` channels, ``*map`` the sites of a map along one axis or more (``h w`` rows and columns of
images), ``d`` features, ``n`` sites in raster order.
"""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Float64, Int64, Integer, Shaped
from torch import Tensor

Pixels: TypeAlias = Integer[Tensor, "b c *pixels"]
"""Values 0 … V-1 of c channels at each site, uint8 where V is 256 at most and int32 above; the only format outside a
network. Of images the map is ``h w``."""

PADDING = -1
"""Stands in pixels of int32 for what lies beyond the end of a signal: it is read as rest, and not scored."""

Codes: TypeAlias = Int64[Tensor, "b *map"]
"""A code map, of one axis or more."""

AnyCodes: TypeAlias = Int64[Tensor, "b ..."]
"""A code map next to maps of other shapes: maps of several levels, or the one below."""

Vectors: TypeAlias = Float[Tensor, "b d *map"]
"""What a network puts out before the quantizer, or codebook entries laid out as a map."""

Labels: TypeAlias = Int64[Tensor, "b"]
"""Class numbers, counted from 0."""

Floats: TypeAlias = Float[Tensor, "b *given"]
"""What each image is given as floats: a vector, or a sequence of vectors."""

Noise: TypeAlias = Float64[Tensor, "b n"]
"""Uniforms in [0, 1), one per site; sampling is their inverse CDF."""

Nats: TypeAlias = Float[Tensor, "b"]
"""One log-probability (or code length) per image."""


def finest(device: torch.device) -> torch.dtype:
    """float64 where the device has it (MPS has not)."""
    return torch.float32 if device.type == "mps" else torch.float64


def widened(numbers: Tensor) -> Tensor:
    """What likelihoods compute with: float32 at least, float64 where the model is (see ``codec/portable.py``)."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def value_dtype(size: int) -> torch.dtype:
    """What holds values 0 … V-1 that are no codes."""
    return torch.uint8 if size <= 256 else torch.int32


def at_rest(size: int, axes: int) -> int:
    """The one of V values that stands for nothing: the middle one of a signal of one axis, 0 of others."""
    return size // 2 if axes == 1 else 0


def filled(pixels: Tensor, size: int) -> Tensor:
    """Pixels of V values with rest in place of padding.

    Only pixels of int32 hold padding; others, and codes, are given back as they are.
    """
    if pixels.dtype != torch.int32:
        return pixels
    return ended(pixels, pixels, size).to(value_dtype(size))


def ended(pixels: Tensor, marked: Tensor, size: int) -> Tensor:
    """Pixels of V values with rest wherever ``marked``, of as many sites, has padding."""
    return pixels.where(marked >= 0, at_rest(size, pixels.ndim - 2))


def of_pixels(values: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Type and least value of pixels as :func:`vqstack.checks.check_map` takes them: of int32 they may hold padding."""
    padded = isinstance(values, Tensor) and values.dtype == torch.int32
    return {"dtype": torch.int32, "least": PADDING} if padded else {"dtype": dtype}


def by_axis(shape: tuple[int, ...]) -> str:
    """The size of a map in words: 4x4."""
    return "x".join(map(str, shape))


def cropped(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first sites along each of the last axes: maps without padding."""
    here: tuple[Any, ...] = (..., *map(slice, shape))
    return maps[here]


def replicated(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The last axes with as many sites as ``shape``: the last ones are repeated."""
    for axis, sites in zip(range(maps.ndim - len(shape), maps.ndim), shape, strict=True):
        maps = maps.index_select(axis, torch.arange(sites, device=maps.device).clamp(max=maps.shape[axis] - 1))
    return maps


def tiled(maps: Shaped[Tensor, "b c *map"], tile: tuple[int, ...]) -> Shaped[Tensor, "b *count_c_tile"]:
    """Maps cut into tiles: how many there are along each axis, then the channels and sites of one."""
    axes = len(tile)
    for axis, size in enumerate(tile):
        maps = maps.unflatten(2 + 2 * axis, (-1, size))
    return maps.permute(0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))


def untiled(tiles: Shaped[Tensor, "b *count_c_tile"]) -> Shaped[Tensor, "b c *map"]:
    """The inverse of :func:`tiled`."""
    axes = tiles.ndim // 2 - 1
    maps = tiles.permute(0, axes + 1, *(n for axis in range(axes) for n in (1 + axis, axes + 2 + axis)))
    for axis in range(2, 2 + axes):
        maps = maps.flatten(axis, axis + 1)
    return maps


@dataclass(frozen=True)
class Objective:
    """What a trainable module returns from ``forward``.

    Attributes:
        loss: scalar to minimise.
        metrics: scalars to average over batches, detached.
        histograms: counts to add up over batches, detached; an epoch of them gives usage and perplexity.
        rows: features [b, d] of the images of a batch, detached, where a split is scored: the module's method
            ``summary`` is given ``sum x̃ x̃ᵀ``, ``x̃ = (1, x)``, over all of them by name, and gives further metrics.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
