"""Where training batches come from: images, stored codes, or codes encoded on the way; and how codes get stored."""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from vqstack.codes import MapCache
from vqstack.images import AugmentSettings, augment
from vqstack.shapes import Labels, Pixels
from vqstack.stack import Stack

RESIDENT = 2**30  # bytes of code maps that are kept in the device's memory


class PixelSource:
    """Images on the device, augmented as they are taken."""

    def __init__(self, pixels: Pixels, augmentation: AugmentSettings | None = None, share: float = 1.0) -> None:
        self.pixels, self.augmentation, self.share = pixels, augmentation or AugmentSettings(), share

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Int64[Tensor, "b"], generator: torch.Generator | None) -> tuple[Tensor, ...]:
        pixels = self.pixels[indices.to(self.pixels.device)]
        if generator is not None and self.augmentation.active:
            changed = augment(pixels, generator, self.augmentation.shift, self.augmentation.flip)
            chosen = torch.rand(len(pixels), 1, 1, 1, generator=generator) < self.share
            pixels = torch.where(chosen.to(pixels.device), changed, pixels)
        return (pixels,)


class CodeSource:
    """Stored codes of one level, with labels if the module takes them.

    Args:
        maps: unsigned [views, n, *map], as :class:`vqstack.codes.MapCache` gives them; stay where they are (mapped into
            memory) on the CPU and where they take more than ``RESIDENT`` bytes, else they are copied to the device.
        device: of the batches.
        labels: classes, on the device.
    """

    def __init__(self, maps: NDArray[Any], device: torch.device, labels: Labels | None = None) -> None:
        # Tensors of wide unsigned numbers can hardly be indexed: the same bits as signed ones can, and are masked.
        signed = maps.view(np.uint8 if maps.itemsize == 1 else f"i{maps.itemsize}")
        self.maps, self.mask = torch.from_numpy(signed), 2 ** (8 * maps.itemsize) - 1
        if maps.nbytes <= RESIDENT:
            self.maps = self.maps.to(device)
        self.device, self.labels = device, labels

    def __len__(self) -> int:
        return self.maps.shape[1]

    def batch(self, indices: Int64[Tensor, "b"], generator: torch.Generator | None) -> tuple[Tensor, ...]:
        views = torch.zeros_like(indices)
        if generator is not None and len(self.maps) > 1:
            views = torch.randint(len(self.maps), indices.shape, generator=generator)
        rows = self.maps[views.to(self.maps.device), indices.to(self.maps.device)]
        codes = rows.to(self.device).long() & self.mask
        return (codes,) if self.labels is None else (codes, self.labels[indices.to(self.device)])


class EncodingSource:
    """Codes of one level, encoded through the frozen levels as they are taken: every view of an image is a new map."""

    def __init__(self, images: PixelSource, stack: Stack, level: int, labels: Labels | None = None) -> None:
        self.images, self.stack, self.level, self.labels = images, stack, level, labels

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Int64[Tensor, "b"], generator: torch.Generator | None) -> tuple[Tensor, ...]:
        (pixels,) = self.images.batch(indices, generator)
        codes = self.stack.encode(pixels, self.level)[-1]
        return (codes,) if self.labels is None else (codes, self.labels[indices.to(codes.device)])


@torch.no_grad()
def encode_once(
    cache: MapCache,
    images: PixelSource,
    stack: Stack,
    level: int,
    accelerator: Accelerator,
    batch_size: int,
    seed: int,
) -> NDArray[Any]:
    """The maps of ``cache``: those that are stored, else all processes together encode each view of each image once.

    Batches are the same for any number of processes, which take them in turn; none holds more than one.

    Args:
        cache: says which level, how many views, and where.
        images: as they are (one view), or augmented with draws of (``seed``, view, image).
        stack: encodes; in eval mode.
        level: whose maps.
        accelerator: the processes.
        batch_size: images at a time, each process.
        seed: of the views.
    """
    stored = cache.load()
    accelerator.wait_for_everyone()  # all have looked before one of them begins
    if stored is not None:
        return stored
    if accelerator.is_main_process:
        cache.begin()
    accelerator.wait_for_everyone()
    views, count = cache.shape[:2]
    parts = [(view, start) for view in range(views) for start in range(0, count, batch_size)]
    for view, start in parts[accelerator.process_index :: accelerator.num_processes]:
        generator = None
        if images.augmentation.active:
            key = np.random.SeedSequence([seed, view, start]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(key[0] >> 1))
        (pixels,) = images.batch(torch.arange(start, min(start + batch_size, count)), generator)
        cache.write(view, start, stack.encode(pixels, level)[-1])
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        cache.finish()
    accelerator.wait_for_everyone()
    stored = cache.load()
    assert stored is not None
    return stored
