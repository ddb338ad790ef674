"""Pictures for the page: of inputs, of maps by the colours of their codes, of bits; as addresses that hold them."""

import base64
import io
from math import ceil, prod

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqstack.images import grid, saver
from vqstack.model import HierarchicalModel
from vqstack.shapes import Pixels

COLUMNS = 32  # of a map with one axis, before it goes on below
SIDE = 256  # of a picture, pixels, about


def address_of(content: bytes, kind: str) -> str:
    """A file as an address that holds it; ``kind`` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def address(picture: Image.Image) -> str:
    """A picture as an address that holds it."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return address_of(stream.getvalue(), "image/png")


def scale_of(shape: tuple[int, ...]) -> int:
    """How often a picture of this many rows and columns is enlarged."""
    return max(1, SIDE // max(shape))


def enlarged(picture: Image.Image, factor: int) -> Image.Image:
    """Each pixel a square of ``factor`` a side."""
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def laid_out(shape: tuple[int, ...], chain: bool = False, columns: int = COLUMNS) -> tuple[int, int]:
    """Rows and columns in which the sites of a map are shown, in raster order.

    One axis goes on below after ``columns`` sites, slices of a volume stand below each other, and so do the maps of the
    several codes of a site.
    """
    codes, sites = (shape[0], shape[1:]) if chain else (1, shape)
    if len(sites) == 1:
        columns = min(columns, sites[0])
        return codes * ceil(sites[0] / columns), columns
    return codes * prod(sites[:-1]), sites[-1]


def heard(model: HierarchicalModel, pixels: Pixels) -> str:
    """A sound as an address that holds it."""
    return address_of(stored(model, pixels)[1], "audio/wav")


def noun(model: HierarchicalModel) -> str:
    """What the page calls an input."""
    series, volume = "sound" if model.settings.sound else "series", "video" if is_video(model) else "volume"
    return {1: series, 2: "image", 3: volume}[len(model.stack.shape) - 1]


def is_video(model: HierarchicalModel) -> bool:
    """Whether its inputs move."""
    geometry = model.settings.geometry
    return len(model.stack.shape) == 4 and geometry is not None and geometry.rate is not None


def moving(model: HierarchicalModel, pixels: Pixels) -> str:
    """A video as an address that holds it: an animated PNG, in which no colour is lost, that starts anew at its end."""
    assert model.settings.geometry is not None and model.settings.geometry.rate is not None
    frames = [of_input(model, frame[None]) for frame in pixels[0].unbind(1)]
    stream, milliseconds = io.BytesIO(), 1000 / model.settings.geometry.rate
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return address_of(stream.getvalue(), "image/png")


def of_input(model: HierarchicalModel, pixels: Pixels) -> Image.Image:
    """One input, as large as a map is shown; of a sound its curve and its spectrogram, of a volume slices."""
    picture = grid(pixels[:1], 1, model.stack.values, heard=model.settings.sound)
    return enlarged(picture, scale_of((picture.height, picture.width)))


def of_sites(values: NDArray[np.uint8], rows: int, columns: int) -> Image.Image:
    """Colours [sites, 3] in rows and columns, each site a square."""
    padded = np.zeros((rows * columns, 3), np.uint8)
    padded[: len(values)] = values
    return enlarged(Image.fromarray(padded.reshape(rows, columns, 3)), scale_of((rows, columns)))


def over(picture: Image.Image, bits: Image.Image) -> Image.Image:
    """Bits laid over the picture of an input."""
    grey = picture.convert("L").convert("RGB")
    return Image.blend(grey, bits.resize(grey.size, Image.Resampling.NEAREST), 0.6)


def of_patch(model: HierarchicalModel, patch: Tensor) -> Image.Image:
    """The mean pixels of a code."""
    values = patch.round().clamp(0, model.stack.values - 1)
    picture = grid(values.to(torch.uint8 if model.stack.values <= 256 else torch.int32)[None], 1, model.stack.values)
    return enlarged(picture, max(1, 48 // max(picture.size)))


def stored(model: HierarchicalModel, pixels: Pixels) -> tuple[str, bytes]:
    """An input as the file in which it is kept without loss: the ending, and the bytes."""
    ending, save = saver(**model.settings.stored())
    stream = io.BytesIO()
    save(pixels[0], stream)
    return ending, stream.getvalue()
