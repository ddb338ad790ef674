"""What an image file may be, and how one is opened: data sets, ``--images`` and the codec all read through here.

Only the formats listed below are tried. Others that Pillow knows start external programs (EPS runs Ghostscript), or are
read by nobody here. Names do not matter: a JPEG that is called .png is a JPEG.
"""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from vqstack.reading import plain_file

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .webp .gif .bmp .tif .tiff .avif .ppm .pgm .pbm .pnm "
    ".heic .heif .jxl .jp2 .j2k .ico .tga .dng .cr2 .nef .arw".split()
)
"""Endings, in lower case, of what is meant as an image; those of the second line are refused by name."""


@contextmanager
def opened(source: str | Path | BytesIO) -> Iterator[Image.Image]:
    """An image file of one of FORMATS, not decoded yet; of an animation the first frame is current.

    Raises OSError where the file cannot be read, ValueError where it is none of FORMATS, and what decoders like.
    """
    try:
        image = Image.open(source if isinstance(source, BytesIO) else plain_file(Path(source)), formats=_known())
    except UnidentifiedImageError:  # says where in memory the bytes are
        raise ValueError(f"empty, or none of {', '.join(FORMATS)}") from None
    with image:
        yield image


@contextmanager
def bombs_refused() -> Iterator[None]:
    """More pixels than Pillow's ``MAX_IMAGE_PIXELS`` are an error; Pillow alone refuses only twice as many.

    Around all threads that decode, for the filters of warnings belong to the whole process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _known() -> list[str]:
    """The formats that this build of Pillow has: some come without AVIF."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def more_than_eight_bits(image: Image.Image) -> bool:
    """The depth as each format stores it: Pillow's mode says RGB for 16 bits as well. Before it is decoded."""
    assert isinstance(image, ImageFile) and image.fp is not None
    deep = isinstance(image, TiffImageFile) and max(image.tag_v2.get(BITSPERSAMPLE, (1,))) > 8
    if image.format == "AVIF":  # a flag in the settings of the decoder, beside each picture that the file holds
        image.fp.seek(0)
        deep = any(found[1][0] & 0x40 for found in re.finditer(rb"av1C..(.)", image.fp.read(), re.DOTALL))
    for tile in image.tile:
        parts = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        deep |= any(isinstance(part, str) and part.partition(";")[2].startswith("16") for part in parts)
        deep |= tile.codec_name.startswith("ppm") and any(isinstance(part, int) and part > 255 for part in parts)
    return deep


def upright(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it: turned and mirrored as its EXIF data say."""
    return ImageOps.exif_transpose(image)


def is_image(path: str | Path) -> bool:
    """Whether a file in a folder is called an image, or is one whatever it is called: then its header is read."""
    if os.path.isdir(path):
        return False
    if os.path.splitext(path)[1].lower() in SUFFIXES:
        return True  # a link that leads nowhere, too: it is refused by name where it is opened
    if not os.path.isfile(path):
        return False
    try:
        with opened(path):
            return True
    except Exception:  # decoders raise what they like
        return False
