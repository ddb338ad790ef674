"""Volumes and images of many channels: ``.npy``, TIFF of one page or several, NIfTI; and back to such files.

Without ``data.range`` the numbers of a file are values: whole, from 0 to V-1. With ``range: [a, b]`` a number x becomes
``round((x - a) (V-1) / (b - a))``, cut to 0 … V-1: a shift alone, which loses nothing, where b - a = V-1, as for signed
numbers of 16 bits -32768 … 32767 and V = 65,536.

NIfTI needs the extra ``volumes`` (nibabel).
"""

import gzip
import io
import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Integer
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    IMAGEDESCRIPTION,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLEFORMAT,
    ImageFileDirectory_v2,
    TiffImageFile,
)

from vqstack.errors import extra
from vqstack.images.formats import bombs_refused, more_than_eight_bits, opened
from vqstack.reading import plain_file
from vqstack.shapes import by_axis

ENDINGS = (".npy", ".tif", ".tiff", ".nii", ".nii.gz")
PAGES = ("1", "L", "RGB", "I;16", "I;16L", "I;16B", "I", "F")
"""Pillow's modes of the pages that are read."""
Range: TypeAlias = tuple[int | float, int | float] | None
"""The numbers that become 0 and V-1; None: the numbers are values."""


def is_volume(path: str) -> bool:
    """Whether a file is a volume by its name."""
    return path.lower().endswith(ENDINGS)


@dataclass(frozen=True)
class Container:
    """What a file has beside its values, so that it can be written again.

    Attributes:
        ending: of its name, one of ENDINGS.
        dtype: of its numbers, as numpy writes it: with their byte order. Empty: the header scales them.
        channels: number of its axis of channels; None: it has none, and one channel.
        order: C or F, how numbers follow each other (TIFF: C).
        head: what stands before the numbers; of TIFF the description.
    """

    ending: str
    dtype: str
    channels: int | None
    order: str = "C"
    head: bytes = b""


def _read(path: str) -> tuple[NDArray[Any], Container]:
    """All numbers of a file, in its own axes, and what it is. Raises ValueError, and what the libraries raise."""
    plain_file(path)
    ending = next(ending for ending in ENDINGS[::-1] if path.lower().endswith(ending))
    if ending == ".npy":
        return _npy(path)
    return _nifti(path, ending) if ending.startswith(".nii") else _tiff(path, ending)


def _npy(path: str) -> tuple[NDArray[Any], Container]:
    with open(path, "rb") as file:
        if file.read(4)[:2] == b"PK":
            raise ValueError("several arrays in one file")
    numbers = np.load(path, mmap_mode="r", allow_pickle=False)
    size, start = os.path.getsize(path), numbers.offset
    if size != start + numbers.nbytes:
        raise ValueError(f"{size} bytes where {start + numbers.nbytes} belong to the array")
    with open(path, "rb") as file:
        head = file.read(start)
    order = "C" if numbers.flags.c_contiguous else "F"
    return numbers, Container(".npy", numbers.dtype.str, None, order, head)


def _nifti(path: str, ending: str) -> tuple[NDArray[Any], Container]:
    nibabel = extra("nibabel", 'NIfTI needs nibabel: pip install "vqstack[volumes]"')
    with open(path, "rb") as file:
        content = file.read()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    single = nibabel.Nifti1Image if content[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") else nibabel.Nifti2Image
    image = single.from_bytes(content)
    kind, start = image.header.get_data_dtype(), image.dataobj.offset
    count = int(np.prod(image.shape))
    if len(content) != start + count * kind.itemsize:
        raise ValueError(f"{len(content)} bytes where header and numbers are {start + count * kind.itemsize}")
    numbers = np.frombuffer(content, kind, count, start).reshape(image.shape, order="F")
    about = Container(ending, kind.str, None, "F", content[:start])
    if (image.dataobj.slope, image.dataobj.inter) != (1, 0):
        return numbers * image.dataobj.slope + image.dataobj.inter, replace(about, dtype="")
    return numbers, about


def _tiff(path: str, ending: str) -> tuple[NDArray[Any], Container]:
    with bombs_refused(), opened(path) as image:
        if not isinstance(image, TiffImageFile):
            raise ValueError(f"{image.format}, not TIFF")
        said = str(image.tag_v2.get(IMAGEDESCRIPTION, ""))
        pages = []
        for number in range(image.n_frames):
            image.seek(number)
            pages.append(_page(image))
            if pages[-1].shape != pages[0].shape or pages[-1].dtype != pages[0].dtype:
                raise ValueError("pages of several sizes or kinds")
    numbers = pages[0] if len(pages) == 1 else np.stack(pages)
    channels = numbers.ndim - 1 if pages[0].ndim == 3 else None
    if said.startswith("ImageJ"):
        numbers, channels = _of_imagej(numbers, len(pages), channels, dict(re.findall(r"(\w+)=(\d+)", said)))
    elif len(pages) > 1:
        _refuse_other_axes(said, pages)
    return numbers, Container(ending, numbers.dtype.str, channels, head=said.encode())


def _refuse_other_axes(said: str, pages: list[NDArray[Any]]) -> None:
    """ValueError where the description of OME or of tifffile says that pages are not slices of one axis."""
    what = "its description says that pages are of several axes: store it as .npy, one for each volume"
    axes = "ZT" if pages[0].ndim == 3 else "CZT"  # of colour the channels are inside a page
    longer = [name for name, size in re.findall(r'\bSize([CZT])="(\d+)"', said) if int(size) > 1 and name in axes]
    if "<OME" in said and ("C" in longer or len(longer) > 1):
        raise ValueError(what)
    if told := re.match(r'\{"shape": \[([\d, ]+)\]', said):
        shape = [int(size) for size in told[1].split(",")]
        if [size for size in shape if size > 1] != [size for size in (len(pages), *pages[0].shape) if size > 1]:
            raise ValueError(what)


def _page(image: TiffImageFile) -> NDArray[Any]:
    """Rows and columns of the current page, and three channels of colour; what Pillow would change is refused."""
    tags = image.tag_v2
    changed = image.mode == "L" and 2 in tags.get(SAMPLEFORMAT, ())  # signed, taken for unsigned
    changed |= image.mode == "RGB" and more_than_eight_bits(image)  # cut to 8
    if image.mode not in PAGES or changed:
        bits = tags.get(BITSPERSAMPLE, (1,))
        raise ValueError(f"a page of mode {image.mode}, bits {bits}: store grey pages, one for each channel, or .npy")
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:
        raise ValueError("a page in which 0 is white")
    return np.array(image)


def _of_imagej(
    numbers: NDArray[Any], pages: int, channels: int | None, said: dict[str, str]
) -> tuple[NDArray[Any], int | None]:
    """ImageJ writes all channels of a slice, then those of the next, and says how many there are."""
    several, slices, frames = (int(said.get(name, 1)) for name in ("channels", "slices", "frames"))
    if int(said.get("images", 1)) != pages:
        raise ValueError(f"{pages} pages where its description says {said.get('images', 1)}")
    if slices > 1 and frames > 1:
        raise ValueError("slices and frames at once: store a file for each frame")
    if several == 1 or channels is not None:
        return numbers, channels
    if pages == several:
        return numbers, 0
    return numbers.reshape(pages // several, several, *numbers.shape[1:]), 1


def arranged(numbers: NDArray[Any], axes: int, channels: int, axis: int | None) -> tuple[NDArray[Any], int | None]:
    r"""Numbers as [c, \*sites], and the axis that held the channels; the first or the last one where none is known."""
    if axis is None and numbers.ndim == axes + 1:
        fits = [place for place in (0, axes) if numbers.shape[place] == channels]
        if len(fits) != 1:
            raise ValueError(f"{by_axis(numbers.shape)} numbers, of which {channels} channels cannot be told")
        axis = fits[0]
    if numbers.ndim != axes + (axis is not None):
        raise ValueError(f"{by_axis(numbers.shape)} numbers where size has {axes} axes")
    moved = numbers[None] if axis is None else np.moveaxis(numbers, axis, 0)
    if len(moved) != channels:
        raise ValueError(f"{len(moved)} channels where {channels} are asked for")
    return moved, axis


def to_values(numbers: NDArray[Any], values: int, limits: Range) -> Integer[np.ndarray, "..."]:
    """Numbers of a file as values 0 … V-1, of 8 or 16 bits. ValueError where the rule at the top does not say what.

    Args:
        numbers: of any type.
        values: V.
        limits: the numbers that become 0 and V-1.
    """
    if numbers.dtype.kind not in "biuf" or not numbers.size:
        raise ValueError(f"{by_axis(numbers.shape)} numbers of type {numbers.dtype}")
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        raise ValueError("numbers that are not finite")
    kept = np.uint8 if values <= 256 else np.uint16
    low, high = numbers.min(), numbers.max()
    if limits is not None:
        scaled = (numbers.astype(np.float64) - limits[0]) * ((values - 1) / (limits[1] - limits[0]))
        return np.clip(np.rint(scaled), 0, values - 1).astype(kept)
    if numbers.dtype.kind == "f" or low < 0 or high >= values:
        kind = "floats" if numbers.dtype.kind == "f" else "whole numbers"
        raise ValueError(
            f"{kind} from {low} to {high} where whole ones from 0 to {values - 1} are known: set data.range to what "
            "becomes 0 and values - 1, or correct values"
        )
    return numbers.astype(kept)


def from_values(values: NDArray[Any], count: int, limits: Range) -> NDArray[Any]:
    """The numbers that values stand for: whole where the steps between them are, else floats of 32 bits."""
    if limits is None:
        return values.astype(np.uint8 if count <= 256 else np.uint16)
    step = (limits[1] - limits[0]) / (count - 1)
    numbers = limits[0] + values.astype(np.float64) * step
    if not (step.is_integer() and float(limits[0]).is_integer()):
        return numbers.astype(np.float32)
    kinds = [np.iinfo(kind) for kind in (np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64)]
    return numbers.astype(next(kind.dtype for kind in kinds if kind.min <= limits[0] and limits[1] <= kind.max))


@lru_cache(2)  # the blocks of a file are read one after the other
def _values(
    path: str, state: tuple[int, int], axes: int, channels: int, values: int, limits: Range
) -> Integer[np.ndarray, "c *sites"]:
    numbers, about = _read(path)
    return to_values(arranged(numbers, axes, channels, about.channels)[0], values, limits)


def whole(path: str, axes: int, channels: int, values: int, limits: Range) -> Integer[np.ndarray, "c *sites"]:
    """All values of a file; see :func:`to_values`."""
    status = os.stat(path)
    return _values(path, (status.st_size, status.st_mtime_ns), axes, channels, values, limits)


def lossless(
    path: str, axes: int, channels: int, values: int, limits: Range
) -> tuple[Integer[np.ndarray, "c *sites"], Container]:
    """All values of a file and what writes it again: ValueError where a number would come back as another."""
    numbers, about = _read(path)
    if not about.dtype:
        raise ValueError("numbers that the header scales")
    moved, axis = arranged(numbers, axes, channels, about.channels)
    found = to_values(moved, values, limits)
    if not np.array_equal(from_values(found, values, limits), moved):
        raise ValueError(f"numbers between the {values} that the model knows")
    paged = about.ending.startswith(".tif")
    if paged and (about.dtype[1:] not in ("u1", "u2") or (axis == axes and about.channels is None)):
        raise ValueError(f"TIFF of type {about.dtype}, and archives keep pages of 8 or 16 bits")
    return found, replace(about, channels=axis)


def as_npy(shape: tuple[int, ...], values: int, limits: Range) -> Container:
    r"""What numpy would put around the numbers of values [c, \*sites] of that shape."""
    kind = from_values(np.zeros(1), values, limits).dtype.str
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": kind, "fortran_order": False, "shape": shape})
    return Container(".npy", kind, 0, "C", head.getvalue())


def as_tiff(shape: tuple[int, ...], values: int, limits: Range) -> Container | None:
    r"""A stack of pages for values [c, \*sites] of that shape; None where TIFF does not hold such numbers, or axes.

    Several channels are pages of their own, told as ImageJ tells them.
    """
    kind = from_values(np.zeros(1), values, limits).dtype.str
    if kind[1:] not in ("u1", "u2") or len(shape) not in (3, 4):
        return None
    if shape[0] == 1:
        return Container(".tif", kind, None)
    slices = shape[1] if len(shape) == 4 else 1
    said = f"ImageJ=1.54\nimages={shape[0] * slices}\nchannels={shape[0]}\nslices={slices}\n"
    return Container(".tif", kind, len(shape) - 3, head=said.encode())


def save_volume(found: NDArray[Any], about: Container, values: int, limits: Range, stream: io.BufferedIOBase) -> None:
    r"""Writes values [c, \*sites] into a file of that kind; ValueError where they do not fit it."""
    numbers = from_values(found, values, limits).astype(about.dtype)
    numbers = numbers[0] if about.channels is None else np.moveaxis(numbers, 0, about.channels)
    if about.ending.startswith(".tif"):
        _save_tiff(numbers, about, stream)
        return
    content = about.head + numbers.tobytes(order="F" if about.order == "F" else "C")
    stream.write(gzip.compress(content, mtime=0) if about.ending == ".nii.gz" else content)


def _save_tiff(numbers: NDArray[Any], about: Container, stream: io.BufferedIOBase) -> None:
    tags = ImageFileDirectory_v2()
    if about.head:
        tags[IMAGEDESCRIPTION] = about.head.decode()
    colour = about.channels == numbers.ndim - 1 and numbers.shape[-1] == 3
    pages = numbers.reshape(-1, *numbers.shape[-3 if colour else -2 :])
    little = pages.astype(pages.dtype.newbyteorder("<"))
    first, *others = (Image.fromarray(page) for page in little)
    content = io.BytesIO()  # Pillow goes back to what it has written
    first.save(content, format="TIFF", save_all=True, append_images=others, tiffinfo=tags)
    stream.write(content.getvalue())
