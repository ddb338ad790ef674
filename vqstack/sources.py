"""Where training batches come from: images, stored codes, or codes encoded on the way."""

import torch
from jaxtyping import Int64
from torch import Tensor

from vqstack.images import AugmentSettings, augment
from vqstack.shapes import Codes, Labels, Pixels
from vqstack.stack import Stack


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
    """Stored codes of one level, with labels if the module takes them."""

    def __init__(self, codes: Codes, labels: Labels | None = None) -> None:
        self.codes, self.labels = codes, labels

    def __len__(self) -> int:
        return len(self.codes)

    def batch(self, indices: Int64[Tensor, "b"], generator: torch.Generator | None) -> tuple[Tensor, ...]:
        indices = indices.to(self.codes.device)
        codes = self.codes[indices]
        return (codes,) if self.labels is None else (codes, self.labels[indices])


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
