"""One stored image -> uint8 values [c, h, w], whatever the file. Sounds: see ``sounds.py``.

An 8-bit number p of a file becomes the value ``round(p (V-1) / 255)``: unchanged for V = 256, ``p >= 128`` for V = 2.
PNG files hold value v as ``round(255 v / (V-1))``, which reads back as v for every V. Arrays and scikit-learn's digits
hold the values themselves; V or more is refused.

Sixteen-bit grey is scaled to eight bits, transparent parts are laid on ``background``, EXIF rotation is applied, of an
animation the first frame is taken, colour profiles are ignored. docs/data.md has the table of what becomes of odd
files.
"""

import io
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqstack.errors import InputError, in_one_line
from vqstack.images.fitting import channels_first, fitted, to_values
from vqstack.images.formats import bombs_refused, opened, upright
from vqstack.images.pieces import CUTS, cut_of, stored
from vqstack.images.settings import ImageSettings
from vqstack.images.sounds import begins_as_sound
from vqstack.images.views import center
from vqstack.paths import check_local
from vqstack.shapes import Pixels, filled

CHUNK = 32  # images a thread decodes at a time: taking them one by one costs as much as decoding small ones


def decode(record: Any, settings: ImageSettings) -> Integer[np.ndarray, "c *map"]:
    r"""An array of values, a picture, a path or a {bytes, path} record -> values at the size that is kept.

    Arrays are [h, w] or [h, w, c] of images, [c, \*map] of other signals; of a piece of a larger input the record has
    the values (``piece``), or its ``start``.

    Decoders raise what they like (OSError, SyntaxError, struct.error, …), and so does this.
    """
    if isinstance(record, np.ndarray):
        if record.max() >= settings.values or record.min() < 0:
            raise ValueError(
                f"values {record.min()} to {record.max()} where 0 to {settings.values - 1} are known; set values?"
            )
        if not settings.pictures:
            return record.astype(np.uint8 if settings.values <= 256 else np.int32)
        pixels = channels_first(_fitted(Image.fromarray(record.astype(np.uint8)), settings))
        return np.minimum(pixels, settings.values - 1)  # resizing overshoots at edges
    if isinstance(record, Image.Image):
        return to_values(channels_first(_fitted(upright(record), settings)), settings.values)
    if (cut := cut_of(settings)) is not None:
        record = record if isinstance(record, dict) else {"path": record, "start": (0,) * len(settings.size or ())}
        if "problem" in record:
            raise ValueError(record["problem"])
        return np.array(record["piece"]) if "piece" in record else cut.read(record, record["start"], settings)
    record = {"bytes": None, "path": None} if record is None else record
    file = stored(record, settings, "image") if isinstance(record, dict) else record
    if isinstance(file, bytes) and begins_as_sound(file):
        raise ValueError("a sound: give size one number, and set rate")
    with opened(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        pixels = channels_first(_fitted(upright(image), settings))
    return to_values(pixels, settings.values)


def decode_all(
    records: Sequence[Any],
    names: Sequence[str],
    settings: ImageSettings,
    size: tuple[int, ...] | None,
    pool: Executor | None = None,
) -> list[NDArray[Any] | str]:
    """Each image, or in one line why it cannot be had: broken, or not of ``size``, if None that of the first.

    A pool of threads decodes in parallel, because Pillow lets go of the interpreter's lock.
    """

    def one(record: Any, name: str) -> NDArray[Any] | str:
        try:
            return decode(record, settings)
        except FileNotFoundError:
            return f"{name}: there is no such file; give the path of one"
        except Exception as error:
            return f"{name}: cannot be read ({in_one_line(error)}); repair or remove it"

    def some(start: int) -> list[NDArray[Any] | str]:
        part = slice(start, start + CHUNK)
        return [one(record, name) for record, name in zip(records[part], names[part], strict=True)]

    starts = range(0, len(records), CHUNK)
    with bombs_refused():
        parts = map(some, starts) if pool is None else pool.map(some, starts)
        images = [image for part in parts for image in part]
    wanted = size or next((image.shape[1:] for image in images if not isinstance(image, str)), None)
    return [
        f"{name}: {image.shape[1:]} pixels, not {wanted}; set size for all"
        if not isinstance(image, str) and image.shape[1:] != wanted
        else image
        for image, name in zip(images, names, strict=True)
    ]


def stacked(images: Sequence[NDArray[Any] | str], then: str = "") -> NDArray[Any]:
    """Images of :func:`decode_all` as one array; InputError for the first that cannot be had, ``then`` behind it."""
    for problem in (image for image in images if isinstance(image, str)):
        raise InputError(problem + then)
    return np.stack([np.asarray(image) for image in images])


def load_images(paths: Sequence[Path], settings: ImageSettings) -> Pixels:
    """Image files given by hand -> uint8 [n, c, h, w], with the geometry of ``settings``.

    They are seen as those of a data set are, the centre of ``resize`` included; one that has ``size`` already, as those
    that a model drew, is taken as it is. Raises InputError naming the file that cannot be read or has another size than
    the first.
    """
    if not paths:
        raise InputError("no image files given; name at least one")
    if settings.source not in CUTS and not settings.pictures:  # as arrays are stored and drawn
        settings = settings.model_copy(update={"source": "audiofolder" if settings.sounds else "volumefolder"})
    cut = settings.source in CUTS  # a piece of the size, the first one
    native = settings.model_copy(update={"resize": None} | ({} if cut else {"size": None}))
    images: list[Tensor] = []
    for name in map(str, paths):
        check_local(name)
        first = images[0].shape[1:] if images and settings.size is None else None
        (image,) = decode_all([name], [name], native, first)
        if settings.size is not None and not isinstance(image, str) and image.shape[1:] != settings.size:
            (image,) = decode_all([name], [name], settings, settings.kept)
        if isinstance(image, str):
            raise InputError(image)
        pixels = torch.tensor(image)
        images.append(pixels if settings.size is None else center(pixels[None], settings.size)[0])
    return filled(torch.stack(images), settings.values)


def _fitted(image: Image.Image, settings: ImageSettings) -> NDArray[Any]:
    return fitted(image, settings.kept, settings.channels, settings.background)
