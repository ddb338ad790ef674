"""Image and sound files -> values of the model, and tiles of its size; nothing is lost on the way or they are refused.

A sound is a picture of mode PCM whose rows are its channels and whose columns are its numbers.
"""

import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Integer, UInt8
from PIL import Image
from torch import Tensor

from vqstack.disk import failed_write
from vqstack.errors import InputError, told
from vqstack.images import ImageSplit, bombs_refused, more_than_eight_bits, opened, upright, whole_sound
from vqstack.shapes import Pixels

Mode = Literal["L", "RGB", "PCM"]
MAX_PIXELS = 2**26
"""Rows times columns of the largest picture."""
SILENCE = 2**15
"""What stands beyond the end of a sound."""
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]+")
_PARTIAL = re.compile(r".*\.level-[0-9]+", re.DOTALL)  # what decompress.py calls images that are not exact


@dataclass(frozen=True)
class Entry:
    """A picture as it comes back: the stem of its file name, its rows and columns, whether it is L, RGB or PCM."""

    stem: str
    height: int
    width: int
    mode: Mode

    @property
    def size(self) -> int:
        """Its bytes without compression."""
        return self.height * self.width * {"L": 1, "RGB": 3, "PCM": 2}[self.mode]


@dataclass(frozen=True)
class Pictures:
    """Pictures to compress: what they are, and how to get the values [c, height, width] or [c, n] of number i."""

    entries: Sequence[Entry]
    load: Callable[[int], Integer[Tensor, "c *map"]]


def safe_stem(stem: str) -> bool:
    """Whether a name can be a file name in the folder that it is meant for, and not that of a partial image."""
    encoded = stem.encode(errors="surrogateescape")  # not UTF-8: a name that cannot be written into a file
    if encoded != stem.encode(errors="replace"):
        return False
    named = _NAME.fullmatch(stem) is not None and stem not in (".", "..") and len(encoded) <= 200
    return named and _PARTIAL.fullmatch(stem) is None


def pictures_of_split(split: ImageSplit) -> Pictures:
    """The images of a split, named by their six-digit position in the source."""
    channels, *_, height, width = (1, *split.pixels.shape[1:])[-3:]
    mode: Mode = "PCM" if split.pixels.ndim == 3 else "L" if channels == 1 else "RGB"
    return Pictures([Entry(f"{i:06d}", height, width, mode) for i in split.index.tolist()], split.pixels.__getitem__)


def pictures_of_files(
    files: Mapping[Path, str], read: Callable[[Path], tuple[Mode, Integer[Tensor, "c *map"]]]
) -> Pictures:
    """Files, all read here and only here: none is refused after something is written, or is another one then.

    Their values wait in memory, and beyond 64 MiB in a temporary file without a name (``$TMPDIR``).

    Args:
        files: paths, and the stem under which each comes back.
        read: gives mode and values of one: :func:`read_picture` or :func:`read_sound` for a model.
    """
    entries, seen, places, kinds = list[Entry](), dict[str, Path](), [0], list[tuple[torch.Size, torch.dtype]]()
    spool = SpooledTemporaryFile(2**26)
    try:
        for path, stem in files.items():
            if not safe_stem(stem):
                raise InputError(f"{path}: its name cannot be stored: rename it")
            if stem in seen:
                raise InputError(f"{path} and {seen[stem]} would both come back as {stem}: rename one")
            seen[stem] = path
            mode, pixels = read(path)
            kinds.append((pixels.shape, pixels.dtype))
            entries.append(Entry(stem, pixels.shape[-2], pixels.shape[-1], mode))
            kept = pixels[:1] if mode == "L" else pixels
            places.append(places[-1] + spool.write(kept.numpy().tobytes()))
    except BaseException as error:
        spool.close()
        if isinstance(error, OSError):
            raise failed_write("the temporary file of the images (TMPDIR names its folder)", error) from error
        raise

    def load(number: int) -> Integer[Tensor, "c *map"]:
        spool.seek(places[number])
        content, (shape, dtype) = bytearray(spool.read(places[number + 1] - places[number])), kinds[number]
        return torch.frombuffer(content, dtype=dtype).view(-1, *shape[1:]).expand(shape)

    pictures = Pictures(entries, load)
    weakref.finalize(pictures, spool.close)
    return pictures


def read_picture(path: Path, channels: int, values: int) -> tuple[Mode, UInt8[Tensor, "c height width"]]:
    """An image file as values 0 … V-1 of a model with these channels, and the mode to give it back in.

    Palettes are looked up, black and white becomes grey, opaque alpha is dropped, grey is repeated for a model of
    colours, and colours that are all grey serve a grey model: no pixel changes. Anything else is an InputError, and so
    is a file of more than eight bits a number, which pillow would silently cut to eight. What is coded is the picture
    as a viewer shows it: turned and mirrored as its EXIF data say, which are not stored.
    """
    try:
        with bombs_refused(), opened(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise InputError(f"{path}: holds several pictures: store each in a file of its own")
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{path}: has more than {MAX_PIXELS} pixels: cut it into pieces")
            if more_than_eight_bits(image):
                raise InputError(f"{path}: has more than 8 bits a number: convert it to 8 bits first")
            array, mode = _to_eight_bits(upright(image), path)
    except InputError:
        raise
    except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error, …
        raise InputError(f"{path}: cannot be read as an image ({told(error)}): repair it or leave it out") from error
    if mode == "RGB" and channels == 1:
        if (array != array[..., :1]).any():
            raise InputError(f"{path}: is in colour, the model is for grey images: use another model")
        array = array[..., :1]
    elif mode == "L":
        array = np.repeat(array[..., None], channels, -1)
    stored = array.astype(np.int64)
    found = (stored * (values - 1) * 2 + 255) // 510
    if ((found * 510 + values - 1) // (2 * (values - 1)) != stored).any():
        raise InputError(
            f"{path}: has grey values between the {values} that the model knows: use a model of 256 values"
        )
    return mode, torch.from_numpy(found.astype(np.uint8).transpose(2, 0, 1).copy())


def read_sound(
    path: Path, channels: int, values: int, rate: int | None
) -> tuple[Mode, Integer[Tensor, "channels numbers"]]:
    """A sound file of 16 bits as values 0 … V-1 of a model with these channels and this rate; InputError for others."""
    try:
        numbers, own, width = whole_sound(path)
    except InputError:
        raise
    except Exception as error:  # soundfile's own type, and what its formats raise
        raise InputError(f"{path}: cannot be read as a sound ({told(error)}): repair it or leave it out") from error
    if width != "PCM_16":
        raise InputError(f"{path}: holds {width}, and archives 16 bits a number (PCM_16): convert it first")
    if (own, len(numbers)) != (rate, channels):
        raise InputError(
            f"{path}: {len(numbers)} channels at {own} numbers a second, the model knows {channels} at {rate}: "
            "convert it first, or use another model"
        )
    if values != 2**16:
        raise InputError(f"{path}: holds 65,536 values, the model knows {values}: use another model")
    if not 0 < numbers.size <= MAX_PIXELS:
        raise InputError(f"{path}: holds {numbers.size:,} numbers, an archive 1 to {MAX_PIXELS:,}: cut it into pieces")
    return "PCM", torch.from_numpy(numbers)


def _to_eight_bits(image: Image.Image, path: Path) -> tuple[np.ndarray, Mode]:
    if image.has_transparency_data:
        image = image.convert("RGBA" if image.mode != "LA" else "LA")
        if np.asarray(image)[..., -1].min() < 255:
            raise InputError(f"{path}: has transparent parts, which the model does not know: lay it on a background")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if image.mode in ("1", "P", "LA"):
        image = image.convert("RGB" if image.mode == "P" else "L")
    if image.mode == "L":
        return np.asarray(image), "L"
    if image.mode == "RGB":
        return np.asarray(image), "RGB"
    raise InputError(f"{path}: is of mode {image.mode}, not 8-bit grey or RGB: convert it first")


def tile_count(entry: Entry, tile: tuple[int, int]) -> int:
    """Tiles of rows and columns ``tile`` that cover a picture."""
    return -(-entry.height // tile[0]) * -(-entry.width // tile[1])


def to_tiles(pixels: Integer[Tensor, "c *map"], tile: tuple[int, int]) -> Pixels:
    """The picture in tiles, row by row; beyond its lower and right edge the last row and column are repeated.

    Beyond the end of a sound is silence, see :func:`padding`.
    """
    if pixels.ndim == 2:
        return _excerpts(pixels, tile, SILENCE)
    (h, w), (channels, height, width) = tile, pixels.shape
    rows, columns = -(-height // h), -(-width // w)
    pixels = pixels[:, torch.arange(rows * h).clamp(max=height - 1)]
    pixels = pixels[:, :, torch.arange(columns * w).clamp(max=width - 1)]
    return pixels.view(channels, rows, h, columns, w).permute(1, 3, 0, 2, 4).reshape(-1, channels, h, w)


def padding(entries: Sequence[Entry], tile: tuple[int, int]) -> tuple[Pixels, Bool[Tensor, "n c t"]] | None:
    """Where the tiles of sounds lie beyond their ends, and what stands there: it costs nothing. None for images."""
    if not entries or entries[0].mode != "PCM":
        return None
    inside = [_excerpts(torch.ones(e.height, e.width, dtype=torch.int32), tile, 0) for e in entries]
    beyond = torch.cat(inside) == 0
    return torch.full_like(beyond, SILENCE, dtype=torch.int32), beyond


def _excerpts(sound: Integer[Tensor, "c n"], tile: tuple[int, int], fill: int) -> Pixels:
    return F.pad(sound, (0, -sound.shape[1] % tile[1]), value=fill).unflatten(1, (-1, tile[1])).movedim(1, 0)


def from_tiles(tiles: Pixels, entry: Entry) -> Integer[Tensor, "channels *map"]:
    """The picture that tiles make, cropped, with the channels of its mode."""
    if entry.mode == "PCM":
        return from_tiles(tiles[:, None], replace(entry, mode="L"))[0]
    _, channels, h, w = tiles.shape
    rows, columns = -(-entry.height // h), -(-entry.width // w)
    whole = tiles.view(rows, columns, channels, h, w).permute(2, 0, 3, 1, 4).reshape(channels, rows * h, columns * w)
    whole = whole[:, : entry.height, : entry.width]
    return whole[:1] if entry.mode == "L" else whole.expand(3, -1, -1)
