"""Random views of training images: crops, shifts, mirror images, each a function of (seed, epoch, image)."""

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from vqstack.images.settings import AugmentSettings, Size
from vqstack.shapes import Pixels

DRAWS = 6  # uniform numbers for each view


def uniforms(seed: int, epochs: Int64[Tensor, "b"], images: Int64[Tensor, "b"]) -> Float64[np.ndarray, "b draws"]:
    """``DRAWS`` numbers in [0, 1) for each (seed, epoch, image): SplitMix64's finalizer over the four numbers in turn.

    Counted, not drawn from a state: the same in any batch, any order and any process.
    """
    state = np.full(len(images), seed, dtype=np.uint64)
    for part in (epochs, images):
        state = _mixed(state ^ part.numpy().astype(np.uint64))
    numbers = _mixed(state[:, None] ^ np.arange(DRAWS, dtype=np.uint64))
    return (numbers >> np.uint64(11)) * 2.0**-53


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of SplitMix64 (Steele, Lea, Flood 2014)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def center(pixels: Pixels, size: Size) -> UInt8[Tensor, "b c rows columns"]:
    """The middle of images that are stored larger, without a copy."""
    top, left = ((stored - wanted) // 2 for stored, wanted in zip(pixels.shape[2:], size, strict=True))
    return pixels[:, :, top : top + size[0], left : left + size[1]]


def augment(
    pixels: Pixels, draws: Float64[np.ndarray, "b draws"], settings: AugmentSettings, size: Size, share: float = 1.0
) -> UInt8[Tensor, "b c rows columns"]:
    """A view [b, c, *size] of each image: cropped, shifted and mirrored as ``settings`` says.

    ``draws`` comes from :func:`uniforms`. A share of the images is changed, the others are their centre. What lies
    beyond the edge of the stored image has value 0.
    """
    batch, channels, *stored = pixels.shape
    changed = draws[:, 5] < share
    first = np.empty((batch, 2), dtype=np.int64)  # row and column of the stored image that the view begins at
    for axis in (0, 1):
        room = stored[axis] - size[axis]
        start = np.floor(draws[:, axis] * (room + 1)) if settings.crop == "random" else room // 2
        shift = settings.shift - np.floor(draws[:, 2 + axis] * (2 * settings.shift + 1))
        first[:, axis] = np.where(changed, start + shift, room // 2)
    mirrored = changed & (draws[:, 4] < 0.5) & settings.flip
    moves = torch.from_numpy(np.column_stack([first, mirrored])).to(pixels.device)
    rows = moves[:, :1] + torch.arange(size[0], device=pixels.device)  # [b, h]: stored row of each row of the view
    across = torch.arange(size[1], device=pixels.device)
    columns = moves[:, 1:2] + torch.where(moves[:, 2:] > 0, across.flip(0), across)  # [b, w]
    inside = ((rows >= 0) & (rows < stored[0]))[:, :, None] & ((columns >= 0) & (columns < stored[1]))[:, None, :]
    sites = rows.clamp(0, stored[0] - 1)[:, :, None] * stored[1] + columns.clamp(0, stored[1] - 1)[:, None, :]
    moved = pixels.flatten(2).gather(2, sites.flatten(1)[:, None].expand(-1, channels, -1))
    return moved.view(batch, channels, *size) * inside[:, None]
