"""A picture as Pillow has it -> uint8 values [c, h, w] of the size, and as many channels, as are asked for."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


def fitted(image: Image.Image, kept: tuple[int, ...] | None, channels: int, background: str) -> NDArray[Any]:
    """Grey [h, w] or RGB [h, w, 3], eight bits, brought to the size that is kept.

    The image is scaled with its shape kept, antialiased, until it just covers that size, up or down, and its centre is
    cut out.

    Args:
        image: of any mode.
        kept: rows and columns; None: those of the image.
        channels: 1 grey, 3 RGB.
        background: what transparent parts are laid on.
    """
    if image.mode[0] in "IF":
        wide = np.asarray(image)
        if image.mode == "F" or wide.min() < 0 or wide.max() > 65535:
            raise ValueError("neither 8 nor 16 bits per pixel")
        transparent = image.info.get("transparency")  # of a 16-bit PNG one value
        if isinstance(transparent, int):
            behind = np.asarray(Image.new("L", (1, 1), background)).astype(np.int64) * 257
            wide = np.where(wide == transparent, behind, wide)
        image = Image.fromarray(((wide.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    if kept is not None and image.size != kept[::-1]:
        height, width = kept
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def channels_first(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """[h, w] or [h, w, c] as [c, h, w]."""
    return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]


def to_values(pixels: NDArray[Any], values: int) -> NDArray[np.uint8]:
    """``round(p (V-1) / 255)``, in whole numbers."""
    if values == 256:
        return pixels
    return ((pixels.astype(np.int64) * (values - 1) * 2 + 255) // 510).astype(np.uint8)
