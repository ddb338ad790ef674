"""What the codes of a level stand for: how often each is used, by which images, and what these look like there.

use = use_of_codes(model, pixels, level=1)
use.counts, use.patches, use.places(17)        # of code 17: where it occurs
neighbours(model, 1, 17)                       # the codes whose vectors are nearest to its own
"""

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vqstack.checks import check_number
from vqstack.model import HierarchicalModel
from vqstack.quantizer import Codebook
from vqstack.shapes import Pixels, tiled

BATCH = 64


@dataclass(frozen=True)
class CodeUse:
    """How images use the codes of one level. Where a site has D codes, row ``d K + k`` is code k of the d-th codebook.

    Attributes:
        level: its number.
        rows: of each image and site, [images, sites] or [images, D, sites], sites in raster order.
        counts: how often each row occurs, [D K].
        patches: mean of the pixels that a site of the row covers, values of pixels, [D K, c, \\*patch]; 0 where unused.
    """

    level: int
    rows: Int64[Tensor, "images ..."]
    counts: Int64[Tensor, "DK"]
    patches: Float[Tensor, "DK c *patch"]

    def places(self, row: int, count: int = 8) -> list[tuple[int, int]]:
        """(image, site in raster order) of the first images in which a row occurs, one place an image."""
        here = self.rows == row
        here = here.any(1) if here.ndim == 3 else here
        images = here.any(1).nonzero().flatten()[:count]
        return [(int(image), int(here[image].int().argmax())) for image in images]


@torch.no_grad()
def use_of_codes(model: HierarchicalModel, pixels: Pixels, level: int) -> CodeUse:
    r"""How the codes of a level are used by images [n, c, \*map]."""
    here = model.stack.level(level)
    quantizer, shape = here.quantizer, patch_shape(model, level)
    maps, rows = [n * size for n, size in zip(here.map_shape, shape, strict=True)], list[Tensor]()
    total = torch.zeros(quantizer.codes * quantizer.size, model.stack.shape[0] * prod(shape), dtype=torch.float64)
    for part in pixels.split(BATCH):
        codes = model.stack.encode(part.to(model.device), level)[-1]
        found = quantizer.rows(codes).flatten(1 + len(quantizer.chain)).cpu()
        ends = [end for n, size in zip(maps, part.shape[2:], strict=True) for end in (n - size, 0)][::-1]
        patches = tiled(F.pad(part.cpu().double(), ends), shape).flatten(1, len(shape)).flatten(2)
        for one in found.unbind(1) if quantizer.chain else [found]:
            total.index_add_(0, one.flatten(), patches.flatten(0, 1))
        rows.append(found)
    every = torch.cat(rows)
    counts = torch.bincount(every.flatten(), minlength=len(total))
    means = (total / counts.clamp(min=1)[:, None]).view(len(total), model.stack.shape[0], *shape)
    return CodeUse(level, every, counts, means.float())


def patch_shape(model: HierarchicalModel, level: int) -> tuple[int, ...]:
    """Pixels along each axis that a site of a level covers, padding included."""
    scales = [model.stack.level(number).scale for number in range(1, level + 1)]
    return tuple(prod(along) for along in zip(*scales, strict=True))


@torch.no_grad()
def neighbours(model: HierarchicalModel, level: int, row: int, count: int = 8) -> list[int]:
    """Rows of a level's codebook by the distance of their vectors to that of a row, nearest first, without itself."""
    book = model.stack.level(level).quantizer.codebook()
    check_number(row, "row", 0, len(book) - 1)
    order = (book - book[row]).square().sum(1).argsort(stable=True).tolist()
    return [other for other in order if other != row][:count]


@torch.no_grad()
def colours(quantizer: Codebook) -> UInt8[Tensor, "DK 3"]:
    """A colour for each row of a codebook: its place along the three principal axes as red, green and blue.

    Codes whose vectors are near each other have colours that are. Each axis points where its largest entry is positive.
    """
    book = quantizer.codebook().double().cpu()
    axes = torch.linalg.svd(book - book.mean(0), full_matrices=False).Vh[:3]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    along = F.pad((book - book.mean(0)) @ axes.T, (0, 3 - len(axes)))
    low, high = along.amin(0), along.amax(0)
    shares = (along - low) / (high - low).clamp(min=1e-9)
    return (40 + 200 * shares).round().to(torch.uint8)
