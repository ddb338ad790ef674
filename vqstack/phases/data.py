"""The batches of a run: images and codes as they are trained on, or validated."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from vqstack.codes import MapCache, fingerprint
from vqstack.conditions import GIVEN
from vqstack.config import RunConfig
from vqstack.features import trained_judge
from vqstack.fit import FitSettings, Source
from vqstack.images import AugmentSettings, ImageSplit, center, open_stream
from vqstack.phases.encoding import encode_once
from vqstack.renderer import PERCEPTUAL, Distance, Layers
from vqstack.shapes import Pixels
from vqstack.sources import (
    CodeSource,
    EncodingSource,
    PixelSource,
    RefinerSource,
    RenderedSource,
    StreamSource,
    UnifiedSource,
)
from vqstack.stack import Stack


class RunData:
    """Where the batches of each phase come from. Given the settings of a training, images may be augmented or streamed.

    Args:
        config, folder: of the run, whose ``codes/`` keeps codes that were encoded once.
        splits: the images.
        stored: the stored images of each split, where they are kept (see :func:`vqstack.sources.resident_images`).
        stack: encodes.
        accelerator: device and processes.
        judging: settings of the training of the classifier that pictures are compared by; default: its own.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        splits: Mapping[str, ImageSplit],
        stored: Mapping[str, Pixels],
        stack: Stack,
        accelerator: Accelerator,
        judging: FitSettings | None = None,
    ) -> None:
        self.config, self.folder, self.splits, self.stored = config, folder, splits, stored
        self.stack, self.accelerator, self.judging = stack, accelerator, judging

    def pixels(self, split: str) -> Pixels:
        """All images of a split as they are scored; on the device if they fit."""
        return center(self.stored[split], self.splits[split].size)

    def maps(self, split: str, fit: FitSettings | None, level: int = 0, reads: Sequence[str] = ()) -> Source:
        """Codes of a level, stored or encoded on the way, and the conditions that are read; of level 0 the images."""
        augmentation = self.config.augment if fit and fit.augmented else AugmentSettings()
        share, seed = fit.augmented if fit else 0.0, self.config.seed + level
        if fit and self.config.data.streaming:
            images: Source = self._stream(fit, augmentation, seed, reads)
            return EncodingSource(images, self.stack, level) if level else images
        labels, condition = self.splits[split].labels, self.splits[split].condition
        every = {"label": labels if labels is None else labels.to(self.accelerator.device), GIVEN: condition}
        given = [value for name in reads if (value := every[name]) is not None]
        images = self._images(split, augmentation, share, seed, given)
        if level == 0:
            return images
        if augmentation.active and not augmentation.views:
            return EncodingSource(images, self.stack, level)
        return CodeSource(self._stored_codes(split, level, augmentation, share), self.accelerator.device, given)

    def refined(self, split: str, fit: FitSettings | None, level: int) -> Source:
        """Maps below a level, and what its refiner sees of the map above."""
        settings = next(refiner for refiner in self.config.refiners if refiner.level == level)
        above = self.stack.level(level + 1) if level < len(self.stack) else None
        below = self.maps(split, fit, level - 1, settings.reads)
        return RefinerSource(below, self.stack.level(level), settings, above)

    def rendered(self, split: str, fit: FitSettings | None) -> Source:
        """Images, and the vectors of their codes of level 1."""
        return RenderedSource(self.maps(split, fit, 0), self.stack)

    def perceptual(self, kind: str) -> Distance:
        """What pictures are compared by. The classifier is trained on the images of the run, and kept in its folder."""

        def classifier() -> Layers:
            train, validation = self.splits["train"], self.splits.get("validation", self.splits["train"])
            where = self.folder / "features", self.accelerator
            judge = trained_judge(train, validation, *where, self.judging, turned=True)
            return judge.network.layers

        return PERCEPTUAL.find(kind)(classifier, self.accelerator.device)

    def all_maps(self, split: str, fit: FitSettings | None) -> Source:
        """Maps of all levels, and what each says of the one below it."""
        return UnifiedSource(self.maps(split, fit, 1, self.config.prior.reads), self.stack)

    def _images(
        self, split: str, augmentation: AugmentSettings, share: float, seed: int, given: Sequence[Tensor] = ()
    ) -> PixelSource:
        whole, device = self.splits[split], self.accelerator.device
        return PixelSource(self.stored[split], whole.size, augmentation, share, seed, device, given, whole.beyond)

    def _stream(self, fit: FitSettings, augmentation: AugmentSettings, seed: int, reads: Sequence[str]) -> StreamSource:
        """Training images that are read as they are needed; what is kept of train serves for scoring alone."""
        train, rank, world = self.splits["train"], self.accelerator.process_index, self.accelerator.num_processes
        batch, shape = fit.batch_size // fit.accumulate // world, tuple(train.stored.shape[1:])
        stream = open_stream(
            self.config.data, shape, train.num_classes, batch, seed, rank, world, train.condition_shape
        )
        reads = [name for name in reads if name != "label" or train.labels is not None]
        changes = augmentation, fit.augmented, seed
        return StreamSource(stream, world, train.size, *changes, self.accelerator.device, reads, train.beyond)

    def _stored_codes(self, split: str, level: int, augmentation: AugmentSettings, share: float) -> NDArray[Any]:
        """Codes [views, n, *map] of a split, encoded once, by all processes together, and kept under ``codes/``."""
        stack = self.stack
        images = self._images(split, augmentation, share, self.config.seed)
        made_from = {name: value for name, value in stack.encoder_state().items() if _level_of(name) <= level}
        batch_size, seed = self.config.encode_batch, self.config.seed
        about = {"batch_size": batch_size, "seed": seed, "share": share, **augmentation.model_dump()}
        cache = MapCache(
            self.folder / "codes" / f"level-{level}",
            split,
            views=augmentation.views if augmentation.active else 1,
            images=len(images),
            map_shape=stack.map_shapes[level - 1],
            vocabulary=stack.codebook_sizes[level - 1],
            fingerprint=f"{fingerprint(made_from)} {self.splits[split].fingerprint} {images.size} {json.dumps(about)}",
        )
        return encode_once(cache, images, stack, level, self.accelerator, batch_size)


def _level_of(name: str) -> int:
    """Number of the level that a name in the state of a stack belongs to."""
    return int(name.split(".")[1]) + 1
