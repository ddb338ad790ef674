"""Files -> values of the model, and tiles of its size; nothing is lost on the way or they are refused.

A sound is a picture of mode PCM whose rows are its channels and whose columns are its numbers. A volume, or an image of
many channels, is one of mode NUM, whose rows are its channels and whose columns are its sites; what its file has beside
the numbers is kept with it.
"""

import re
import weakref
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Integer
from PIL import Image
from torch import Tensor

from vqstack.disk import failed_write
from vqstack.errors import InputError, in_one_line
from vqstack.images import ImageSplit, bombs_refused, more_than_eight_bits, opened, upright, whole_sound
from vqstack.images.volumes import ENDINGS, Container, Range, as_npy, is_volume
from vqstack.images.volumes import lossless as whole_volume
from vqstack.model import HierarchicalModel
from vqstack.shapes import Pixels, at_rest, cropped, filled, replicated, tiled, untiled

Mode = Literal["L", "RGB", "PCM", "NUM"]
MAX_PIXELS = 2**26
"""Rows times columns of the largest picture."""
REPAIR = "repair it or leave it out"
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]+")
_PARTIAL = re.compile(r".*\.level-[0-9]+", re.DOTALL)  # what decompress.py calls images that are not exact


@dataclass(frozen=True)
class Entry:
    """A picture as it comes back: its name, its rows and columns, what it is; the file of a volume.

    The name is the stem of the file, after the inner folders that it is in: ``cats/one``.
    """

    stem: str
    height: int
    width: int
    mode: Mode
    file: "NumberFile | None" = None  # of NUM

    @property
    def numbers(self) -> int:
        """How many it holds: what bits/dim divide by."""
        return self.height * self.width * (3 if self.mode == "RGB" else 1)

    @property
    def size(self) -> int:
        """Its bytes without compression."""
        each = np.dtype(self.file.container.dtype).itemsize if self.file else 2 if self.mode == "PCM" else 1
        return self.numbers * each


@dataclass(frozen=True)
class NumberFile:
    """What brings the file of a volume back: sites along each axis, and what stands around its numbers."""

    sites: tuple[int, ...]
    container: Container

    def to_json(self) -> dict[str, Any]:
        """As the index of an archive has it."""
        return {"sites": list(self.sites), **vars(self.container), "head": b64encode(self.container.head).decode()}


@dataclass(frozen=True)
class Pictures:
    """Pictures to compress: what they are, and how to get the values [c, height, width] or [c, n] of number i."""

    entries: Sequence[Entry]
    load: Callable[[int], Integer[Tensor, "c *map"]]


def stem_of(path: Path) -> str:
    """The name of a file without its ending, which may be ``.nii.gz``."""
    return path.stem.removesuffix(".nii") if path.name.endswith(".nii.gz") else path.stem


def safe_stem(stem: str) -> bool:
    """Whether a name, after those of inner folders, leads to a file inside of the folder that it is meant for.

    Nothing on the way is hidden or leads out, and it is not the name of a partial image.
    """
    encoded = stem.encode(errors="surrogateescape")  # not UTF-8: a name that cannot be written into a file
    if encoded != stem.encode(errors="replace") or len(encoded) > 1000:
        return False
    *folders, name = stem.split("/")
    named = all(_NAME.fullmatch(part) is not None and len(part.encode()) <= 200 for part in (*folders, name))
    inside = name not in (".", "..") and not any(folder.startswith(".") for folder in folders)
    return named and inside and _PARTIAL.fullmatch(name) is None


def pictures_of_split(split: ImageSplit, sound: bool = False, limits: Range = None) -> Pictures:
    """The images of a split, named by their six-digit position in the source; volumes come back as ``.npy``.

    So do pieces that may have padding, grey and colour images too: what an image lacks of a tile is coded, see
    :func:`rest`.
    """
    values, shape = split.source["values"], split.marked.shape[1:]
    picture = len(shape) == 3 and shape[0] in (1, 3) and values <= 256 and limits is None and not split.padded

    def load(number: int) -> Integer[Tensor, "c *map"]:
        marked = split.marked[number]
        return filled(cropped(marked, _inside(marked))[None], values)[0] if split.padded else marked

    def entry(number: int, index: int) -> Entry:
        channels, *sites = shape[0], *(_inside(split.marked[number]) if split.padded else shape[1:])
        if not sound and not picture:
            kept = NumberFile(tuple(sites), as_npy((channels, *sites), values, limits))
            return Entry(f"{index:06d}", channels, prod(sites), "NUM", kept)
        height, width = (channels, *sites)[-2:]
        return Entry(f"{index:06d}", height, width, "PCM" if sound else "L" if channels == 1 else "RGB")

    return Pictures([entry(number, index) for number, index in enumerate(split.index.tolist())], load)


def _inside(marked: Integer[Tensor, "c *map"]) -> tuple[int, ...]:
    """Sites along each axis that are no padding, which follows them."""
    places = (marked[0] >= 0).nonzero()
    return tuple((places.amax(0) + 1).tolist())


Read: TypeAlias = tuple[Mode | NumberFile, Integer[Tensor, "c *map"]]
"""What a file is, of a volume what brings it back, and its values."""


def pictures_of_files(files: Mapping[Path, str], read: Callable[[Path], Read]) -> Pictures:
    """Files, all read here and only here: none is refused after something is written, or is another one then.

    Their values wait in memory, and beyond 64 MiB in a temporary file without a name (``$TMPDIR``).

    Args:
        files: paths, and the stem under which each comes back.
        read: gives what one is and its values: :func:`read_picture`, :func:`read_sound` or :func:`read_volume`.
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
            kind, pixels = read(path)
            kinds.append((pixels.shape, pixels.dtype))
            if isinstance(kind, NumberFile):
                entries.append(Entry(stem, len(pixels), prod(kind.sites), "NUM", kind))
            else:
                entries.append(Entry(stem, pixels.shape[-2], pixels.shape[-1], kind))
            kept = pixels[:1] if kind == "L" else pixels
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


@contextmanager
def _decoding(problem: str, remedy: str) -> Iterator[None]:
    """Around what decodes: libraries raise what they like (OSError, SyntaxError, struct.error, types of their own)."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{problem} ({in_one_line(error)}): {remedy}") from error


def read_picture(path: Path, channels: int, values: int) -> Read:
    """An image file as values 0 … V-1 of a model with these channels, and the mode to give it back in.

    Palettes are looked up, black and white becomes grey, opaque alpha is dropped, grey is repeated for a model of
    colours, and colours that are all grey serve a grey model: no pixel changes. Anything else is an InputError, and so
    is a file of more than eight bits a number, which pillow would silently cut to eight. What is coded is the picture
    as a viewer shows it: turned and mirrored as its EXIF data say, which are not stored.
    """
    with _decoding(f"{path}: cannot be read as an image", REPAIR), bombs_refused(), opened(path) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise InputError(f"{path}: holds several pictures: store each in a file of its own")
        if image.width * image.height > MAX_PIXELS:
            raise InputError(f"{path}: has more than {MAX_PIXELS} pixels: cut it into pieces")
        if more_than_eight_bits(image):
            raise InputError(f"{path}: has more than 8 bits a number: convert it to 8 bits first")
        array, mode = _to_eight_bits(upright(image), path)
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


def read_sound(path: Path, channels: int, values: int, rate: int | None) -> Read:
    """A sound file of 16 bits as values 0 … V-1 of a model with these channels and this rate; InputError for others."""
    with _decoding(f"{path}: cannot be read as a sound", REPAIR):
        numbers, own, width = whole_sound(path)
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


def read_volume(path: Path, channels: int, values: int, axes: int, limits: Range) -> Read:
    """A volume, or an image of many channels, as values 0 … V-1 of a model of such; InputError for others."""
    if not is_volume(str(path)):
        raise InputError(f"{path}: is none of {', '.join(ENDINGS)}, and the model knows volumes: convert it first")
    with _decoding(f"{path}: cannot be archived", "convert it, or use another model"):
        numbers, container = whole_volume(str(path), axes, channels, values, limits)
    if not 0 < numbers.size <= MAX_PIXELS:
        raise InputError(f"{path}: holds {numbers.size:,} numbers, an archive 1 to {MAX_PIXELS:,}: cut it into pieces")
    found = numbers.astype(np.uint8 if values <= 256 else np.int32)
    return NumberFile(numbers.shape[1:], container), torch.from_numpy(found)


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


def reader_of(model: HierarchicalModel) -> Callable[[Path], Read]:
    """What reads the files of a model: images, sounds or volumes."""
    geometry = model.settings.geometry
    known: dict[str, Any] = {"channels": model.stack.shape[0], "values": model.stack.values}
    if geometry is not None and geometry.companding != "linear":
        raise InputError("this model knows sounds by mu-law, which loses a part of them: use a model without it")
    if model.settings.sound:
        return partial(read_sound, **known, rate=geometry.rate if geometry else None)
    if is_of_images(model):
        return partial(read_picture, **known)
    limits = geometry.range if geometry else None
    return partial(read_volume, **known, axes=len(model.stack.shape) - 1, limits=limits)


def is_of_images(model: HierarchicalModel) -> bool:
    """Whether a model knows grey or colour images of 8 bits."""
    geometry = model.settings.geometry
    seen = len(model.stack.shape) == 3 and model.stack.shape[0] in (1, 3) and model.stack.values <= 256
    return seen and (geometry is None or geometry.range is None)


def tile_count(entry: Entry, tile: tuple[int, ...]) -> int:
    """Tiles of so many rows and columns, or sites along each axis, that cover a picture."""
    sites = entry.file.sites if entry.file else (entry.height, entry.width)
    return prod(-(-count // each) for count, each in zip(sites, tile, strict=True))


def rest(entry: Entry, values: int, middle: bool = True) -> int | None:
    """What stands beyond the end of a sound or a volume: what training has there (:func:`vqstack.shapes.filled`).

    None for images. ``middle`` is false for files from before it was so of series, which had 0.
    """
    if entry.file is not None:
        return at_rest(values, len(entry.file.sites)) if middle else 0
    return at_rest(values, 1) if entry.mode == "PCM" else None


def to_tiles(pixels: Integer[Tensor, "c *map"], tile: tuple[int, ...], fill: int | None = None) -> Pixels:
    """The picture in tiles, row by row; beyond its end along each axis stands ``fill``.

    None: the last row and column are repeated.
    """
    if fill is not None:
        return _cut(pixels, tile[-(pixels.ndim - 1) :], fill)
    whole = tuple(-(-count // each) * each for count, each in zip(pixels.shape[1:], tile, strict=True))
    return _cut(replicated(pixels, whole), tile, 0)


def padding(
    entries: Sequence[Entry], tile: tuple[int, ...], fill: int | None
) -> tuple[Pixels, Bool[Tensor, "n c *map"]] | None:
    """Where the tiles lie beyond the ends of sounds or volumes, and what stands there: it costs nothing.

    None for images, which have no ``fill``.
    """
    if fill is None:
        return None
    shapes = [(e.height, *(e.file.sites if e.file else (e.width,))) for e in entries]
    inside = [_cut(torch.ones(shape, dtype=torch.uint8), tile[-(len(shape) - 1) :], 0) for shape in shapes]
    beyond = torch.cat(inside) == 0
    return torch.full_like(beyond, fill, dtype=torch.int32), beyond


def _cut(pixels: Integer[Tensor, "c *map"], tile: tuple[int, ...], fill: int) -> Pixels:
    """Tiles [n, c, *tile], in raster order, with ``fill`` beyond the end of each axis."""
    sites = pixels.shape[1:]
    room = [n for count, each in zip(sites[::-1], tile[::-1], strict=True) for n in (0, -count % each)]
    return tiled(F.pad(pixels, room, value=fill)[None], tile).flatten(0, len(tile))


def from_tiles(tiles: Pixels, entry: Entry) -> Integer[Tensor, "channels *map"]:
    """The picture that tiles make, cropped, with the channels of its mode."""
    sites = entry.file.sites if entry.file else (entry.width,) if entry.mode == "PCM" else (entry.height, entry.width)
    counts = [-(-count // each) for count, each in zip(sites, tiles.shape[2:], strict=True)]
    whole = cropped(untiled(tiles.unflatten(0, (1, *counts)))[0], sites)
    if entry.mode in ("PCM", "NUM"):
        return whole
    return whole[:1] if entry.mode == "L" else whole.expand(3, -1, -1)
