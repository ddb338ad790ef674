"""Random views of training images: crops, shifts, mirror images, each a function of (seed, epoch, image)."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64, Integer
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import Tensor

from vqstack.images.settings import ImageSettings, Size
from vqstack.shapes import PADDING, Pixels

DRAWS = 10  # uniform numbers for each view
FROM_END = {"width": -1, "height": -2, "depth": 0, "time": 0}  # places of axes by their names


class AugmentSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Random changes of the training images, drawn anew each time an image is seen."""

    shift: int = Field(
        default=0,
        ge=0,
        description="largest shift along each axis, pixels; beyond the edge lies value 0, of sounds and series the "
        "middle one, with data.padding what is not scored",
    )
    flip: bool = Field(
        default=False,
        description="mirror left and right, or along flip_axes, each with probability one half, no unit",
    )
    flip_axes: tuple[Literal["time", "depth", "height", "width"], ...] = Field(
        default=(),
        description="axes that flip mirrors: time of sounds, series and videos, depth of volumes, height, width; "
        "empty: width",
    )
    crop: Literal["center", "random"] = Field(
        default="center", description="where the crop of data.size lies inside data.resize; random: anywhere, evenly"
    )
    views: int = Field(
        default=0,
        ge=0,
        description="views of each training image whose codes are stored for the levels above 1 and the prior, count; "
        "0: a new view is encoded each time an image is seen",
    )

    def check(self, data: ImageSettings) -> None:
        """ValueError where such inputs are not changed like that."""
        if self.crop == "random" and data.resize in (None, data.size):
            raise ValueError("augment.crop random has no room: set data.resize larger than data.size")
        if self.flip_axes and not self.flip:
            raise ValueError("augment.flip_axes: nothing is mirrored without augment.flip: set it, or leave this out")
        names = data.axis_names
        if other := [axis for axis in self.flip_axes if axis not in names]:
            raise ValueError(f"augment.flip_axes: {other[0]} is no axis of these inputs: choose of {', '.join(names)}")
        if names == ("time",) and self.flip and not self.flip_axes:
            raise ValueError("augment.flip plays backwards here: leave it out, or set augment.flip_axes to time")

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return self.shift > 0 or self.flip or self.crop == "random"


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


def center(pixels: Pixels, size: Size) -> Integer[Tensor, "b c *size"]:
    """The middle of images that are stored larger, without a copy."""
    for axis, wanted in enumerate(size, start=2):
        pixels = pixels.narrow(axis, (pixels.shape[axis] - wanted) // 2, wanted)
    return pixels


def augment(
    pixels: Pixels,
    draws: Float64[np.ndarray, "b draws"],
    settings: AugmentSettings,
    size: Size,
    share: float = 1.0,
    beyond: int = 0,
) -> Integer[Tensor, "b c *size"]:
    """A view [b, c, *size] of each image: cropped, shifted and mirrored along each axis as ``settings`` says.

    ``draws`` comes from :func:`uniforms`. A share of the images is changed, the others are their centre. What lies
    beyond the edge of the stored image has the value ``beyond``. Padding, if that is it, follows what is mirrored, too.
    """
    batch, channels, *stored = pixels.shape
    changed = draws[:, 5] < share
    mirrored = {FROM_END[name] % len(size) for name in settings.flip_axes or ("width",)} if settings.flip else set()
    sites = torch.zeros(batch, 1, dtype=torch.int64, device=pixels.device)  # numbers of those of the view, as stored
    inside = torch.ones(batch, 1, dtype=torch.bool, device=pixels.device)
    for axis, (crop, move) in zip(range(len(size)), ((0, 2), (1, 3), (6, 7)), strict=False):
        room = stored[axis] - size[axis]
        start = np.floor(draws[:, crop] * (room + 1)) if settings.crop == "random" else room // 2
        shift = settings.shift - np.floor(draws[:, move] * (2 * settings.shift + 1))
        first = torch.from_numpy(np.where(changed, start + shift, room // 2).astype(np.int64)).to(pixels.device)
        across = torch.arange(size[axis], device=pixels.device).expand(batch, -1)
        if axis in mirrored:
            drawn = changed & (draws[:, (4, 8, 9)[len(size) - 1 - axis]] < 0.5)
            turned = torch.from_numpy(drawn).to(pixels.device)
            across = torch.where(turned[:, None], across.flip(1), across)
            if beyond == PADDING:
                lines = pixels[:, :1].movedim(axis + 2, 1).flatten(2).amax(2)
                first = first - turned * (lines == PADDING).sum(1)
        places = first[:, None] + across  # [b, sites along the axis]
        there = (places >= 0) & (places < stored[axis])
        sites = (sites[:, :, None] * stored[axis] + places.clamp(0, stored[axis] - 1)[:, None]).flatten(1)
        inside = (inside[:, :, None] & there[:, None]).flatten(1)
    moved = pixels.flatten(2).gather(2, sites[:, None].expand(-1, channels, -1))
    return moved.where(inside[:, None], beyond).view(batch, channels, *size)
