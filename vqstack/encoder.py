"""Batches of images to batches of codes, for engines that share out rows by themselves: Ray Data, ``datasets`` …"""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vqstack.codes import to_stored
from vqstack.errors import InputError, in_one_line
from vqstack.images import center, decode_all
from vqstack.images.decode import stacked
from vqstack.images.pieces import cut_of
from vqstack.model import HierarchicalModel
from vqstack.paths import check_local
from vqstack.phases import data_of_run
from vqstack.shapes import Pixels, by_axis
from vqstack.threads import cores

FILES = (str, Path, Mapping, Image.Image, BytesIO)


class Encoder:
    """Takes a batch as a dict of columns (or a frame of pandas), and gives one with codes in the place of the images.

    Column ``codes_l`` is the map of level l, [images, *map], in the smallest unsigned integer that holds its codes, as
    in a code data set; the other columns stay. Images become those of the model as its data set's do: resized, cropped,
    of its values. A batch without rows gives maps without rows.

    The column of the images is a list or an array of them, each in one of these forms:

    - a file, as bytes, a {bytes, path} record or a path; or a picture of PIL
    - an array, or lists in lists, of the whole numbers 0 … V-1 that the model has: [h, w], or [h, w, c] with 1 or 3
      channels; of 256 values also 2 or 4, the last of which is transparency
    - where inputs are sounds, series, volumes and such: an array [c, *map] of the model's shape, and nothing else, for
      files of these are cut into pieces (``vqstack encode``)

    Args:
        model: folder of a finished run or of a released model, or OWNER/NAME on the hub.
        column: name of the images.
        device: cpu, cuda …; default: a GPU where there is one.

    Raises:
        InputError: an image cannot be read, or is in none of these forms; its place in the batch is told.
    """

    def __init__(self, model: str | Path, column: str = "image", device: str | None = None) -> None:
        self.model: HierarchicalModel = HierarchicalModel.from_pretrained(model)
        self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.column = column
        channels, *size = self.model.stack.shape
        self.size = tuple(size)
        shape = {"size": self.size, "channels": channels, "values": self.model.stack.values}
        self.settings = data_of_run(Path(model)).model_copy(update=shape)

    def __call__(self, batch: Any) -> dict[str, Any]:
        """The batch with codes in the place of its images."""
        if not (hasattr(batch, "keys") and hasattr(batch, "items")):
            raise InputError(
                f"a batch of type {type(batch).__name__}: give a dict of columns or a frame of pandas; of an iterator "
                "each of its batches, of a table of Arrow its to_pandas()"
            )
        if self.column not in batch:
            known = ", ".join(map(str, batch.keys()))
            raise InputError(f"{self.column}: no such column, there are {known}: name that of the images")
        others = {name: values for name, values in batch.items() if name != self.column}
        images = self._images(batch[self.column], others)
        maps = self.model.encode(self._pixels(images).to(self.model.device))
        sized = enumerate(zip(maps, self.model.stack.codebook_sizes, strict=True), 1)
        return others | {f"codes_{level}": to_stored(codes, vocabulary) for level, (codes, vocabulary) in sized}

    def _images(self, column: Any, others: Mapping[str, Any]) -> list[Any]:
        """The images of a batch; InputError where a column may mean another thing, or would be written over."""
        if isinstance(column, str | bytes | bytearray | Mapping) or not hasattr(column, "__iter__"):
            raise InputError(f"{self.column}: one {type(column).__name__}, not a column: give a list, [image]")
        if not others and isinstance(column, np.ndarray) and self.settings.pictures and column.ndim == 3:
            if column.shape[2] in (1, 3) or len(column) == self.settings.channels == 3:
                raise InputError(
                    f"{self.column}: an array of {column.shape} may be one image or several grey ones: give "
                    "[n, h, w, c], or a list of images"
                )
        images = list(column)
        for name, values in others.items():
            if re.fullmatch(r"codes_\d+", str(name)):
                raise InputError(f"{name}: the batch has such a column already: rename it, or leave it out")
            if hasattr(values, "__len__") and len(values) != len(images):
                raise InputError(
                    f"{self.column}: {len(images)} images where column {name} has {len(values)} rows: give one for each"
                )
        return images

    def _pixels(self, images: list[Any]) -> Pixels:
        names = [f"image {place} of the batch" for place in range(len(images))]
        records = [self._record(*pair) for pair in zip(images, names, strict=True)]
        with ThreadPoolExecutor(cores()) as pool:
            found = decode_all(records, names, self.settings, self.settings.kept, pool)
        if not found:
            return torch.empty(0, *self.model.stack.shape, dtype=torch.uint8)
        return center(torch.from_numpy(stacked(found)), self.size)

    def _record(self, image: Any, name: str) -> Any:
        """An image as it is decoded; InputError where it is in none of the forms."""
        if isinstance(image, list):
            try:
                image = np.array(image)
            except ValueError as error:
                raise InputError(f"{name}: a list that is no array ({in_one_line(error)}): mend it") from error
        if isinstance(image, np.ndarray):
            return self._array(image, name)
        if not self.settings.pictures or cut_of(self.settings) is not None:
            shape = by_axis(self.model.stack.shape)
            raise InputError(
                f"{name}: a {type(image).__name__}, and inputs of this model are arrays of {shape} whole numbers: give "
                "these, or have files cut into pieces by vqstack encode"
            )
        if isinstance(image, bytes | bytearray | memoryview):
            return {"bytes": bytes(image), "path": None}
        if isinstance(image, str):
            check_local(image)
        if image is not None and not isinstance(image, FILES):  # None: a row without an image, which decoding tells
            raise InputError(f"{name}: a {type(image).__name__}: give a file, a picture of PIL, or an array of numpy")
        return image

    def _array(self, image: NDArray[Any], name: str) -> NDArray[Any]:
        """An array as it is decoded, [h, w] or [h, w, c]; of inputs that are no images of 8 bits [c, *map]."""
        settings, values = self.settings, self.model.stack.values
        if image.dtype.kind not in "iu":
            floats = f"; of floats from 0 to 1 these are (image * {values - 1}).round().astype(int)"
            raise InputError(
                f"{name}: an array of {image.dtype}: give whole numbers from 0 to {values - 1}"
                + floats * (image.dtype.kind == "f")
            )
        if image.size and not 0 <= image.min() <= image.max() < values:
            raise InputError(
                f"{name}: numbers from {image.min()} to {image.max()}: give whole numbers from 0 to {values - 1}"
            )
        if not settings.pictures:
            shape = (settings.channels, *(settings.kept or self.size))
            image = image[None] if settings.channels == 1 and image.shape == shape[1:] else image
            if image.shape != shape:
                raise InputError(f"{name}: an array of {image.shape}: give {shape}, as the model takes inputs")
            return image
        known = (1, 3) if values < 256 else (1, 2, 3, 4)
        if not image.size or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in known):
            raise InputError(
                f"{name}: an array of {image.shape}: give [h, w], or [h, w, c], whose channels come last: "
                "image.transpose(1, 2, 0) of [c, h, w]"
            )
        return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
