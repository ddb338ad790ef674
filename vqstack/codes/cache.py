"""The code maps of a training run: one level's maps of one split, encoded once, read memory-mapped."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from vqstack.codes.storage import ASIDE, smallest_dtype, to_stored
from vqstack.disk import digest, make_folder, remove, sync, write_text, writing
from vqstack.reading import plain_file


class MapCache:
    """``FOLDER/SPLIT.npy`` and what it was made from, ``FOLDER/SPLIT.json``.

    One process calls ``begin``; then any number of them ``write`` parts that do not overlap; when all have, one calls
    ``finish``. ``SPLIT.json`` comes last: a killed run leaves no maps under a fingerprint that they do not have. No
    process holds more than the part that it writes.

    Args:
        folder: of one level.
        split: name of the split.
        views: stored maps of each image.
        images: number of images.
        map_shape: axes of one map.
        vocabulary: number of codes.
        fingerprint: of whatever the maps depend on.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        views: int,
        images: int,
        map_shape: tuple[int, ...],
        vocabulary: int,
        fingerprint: str,
    ) -> None:
        self.shape = (views, images, *map_shape)
        self.vocabulary = vocabulary
        self._about = {"fingerprint": fingerprint, "vocabulary": vocabulary, "shape": list(self.shape)}
        self._maps, self._description = folder / f"{split}.npy", folder / f"{split}.json"
        self._aside = folder / f"{split}.npy{ASIDE}"

    def load(self) -> NDArray[Any] | None:
        """The maps [views, images, *map], memory-mapped; None where none of this fingerprint are as they were written.

        The mapping is private to the process: what is written to the array never reaches the file.
        """
        try:
            about = json.loads(plain_file(self._description).read_text("utf-8"))
            if about != {**self._about, "sha256": digest(self._maps)}:
                return None
        except (OSError, ValueError):  # half a description, or none
            return None
        return np.load(self._maps, mmap_mode="c", allow_pickle=False)

    def begin(self) -> None:
        """Takes away what is there under another fingerprint and makes room for the maps."""
        make_folder(self._maps.parent)
        remove(self._description)
        with writing(self._aside):
            np.lib.format.open_memmap(self._aside, "w+", smallest_dtype(self.vocabulary), self.shape).flush()

    def write(self, view: int, start: int, codes: Int64[Tensor, "b *map"]) -> None:
        """Stores view ``view`` of the images from number ``start``.

        Written through the file and not through a mapping: processes of two hosts may then share a page.
        """
        room = np.lib.format.open_memmap(self._aside, "r")
        stored = to_stored(codes, self.vocabulary)
        fits = 0 <= view < self.shape[0] and 0 <= start <= self.shape[1] - len(stored)
        if not fits or stored.shape[1:] != self.shape[2:]:
            raise ValueError(f"{len(stored)} maps from image {start}, view {view}, do not fit {self.shape}")
        place = (view * self.shape[1] + start) * room[0, 0].nbytes
        with writing(self._aside), self._aside.open("r+b") as file:
            file.seek(room.offset + place)
            file.write(stored.tobytes())

    def finish(self) -> None:
        """Makes the maps readable under their fingerprint."""
        with writing(self._maps):
            sync(self._aside)
            os.replace(self._aside, self._maps)
        text = json.dumps({**self._about, "sha256": digest(self._maps)}) + "\n"
        write_text(self._description, text)
