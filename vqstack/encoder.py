"""Batches of images to batches of codes, for engines that share out rows by themselves: Ray Data, ``datasets`` …"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqstack.codes import to_stored
from vqstack.errors import InputError
from vqstack.images import center, decode_all
from vqstack.model import HierarchicalModel
from vqstack.phases import data_of_run
from vqstack.shapes import Pixels
from vqstack.threads import cores


class Encoder:
    """Takes a batch as a dict of columns (or a frame of pandas), and gives one with codes in the place of the images.

    Column ``codes_l`` is the map of level l, [images, *map], in the smallest unsigned integer that holds its codes, as
    in a code data set; the other columns stay. Images become those of the model as its data set's do: resized, cropped,
    of its values.

    Args:
        model: folder of a finished run or of a released model, or OWNER/NAME on the hub.
        column: name of the images: files as bytes, {bytes, path} records, pictures of PIL, or arrays [h, w] or
            [h, w, c] of the values 0 … V-1 that the model has.
        device: cpu, cuda …; default: a GPU where there is one.

    Raises:
        InputError: an image cannot be read; its place in the batch is told.
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
        if self.column not in batch:
            raise InputError(f"{self.column}: no such column, there are {', '.join(batch)}: name that of the images")
        maps = self.model.encode(self._pixels(list(batch[self.column])).to(self.model.device))
        sized = enumerate(zip(maps, self.model.stack.codebook_sizes, strict=True), 1)
        codes = {f"codes_{level}": to_stored(codes, vocabulary) for level, (codes, vocabulary) in sized}
        return {name: values for name, values in batch.items() if name != self.column} | codes

    def _pixels(self, images: list[Any]) -> Pixels:
        records = [{"bytes": image, "path": None} if isinstance(image, bytes) else image for image in images]
        names = [f"image {place} of the batch" for place in range(len(records))]
        with ThreadPoolExecutor(cores()) as pool:
            found = decode_all(records, names, self.settings, self.settings.kept, pool)
        for problem in (image for image in found if isinstance(image, str)):
            raise InputError(problem)
        if not found:
            return torch.empty(0, *self.model.stack.shape, dtype=torch.uint8)
        values = np.stack([image for image in found if not isinstance(image, str)])
        return center(torch.from_numpy(values), self.size)
