"""What can be done to code maps before they are decoded: images mixed by their vectors, maps put together.

codes = vqstack.interpolate(model, first, second, level=2, steps=8)     # int64 [8, rows, columns]
codes = vqstack.splice(first, second, box=(0, 0, 2, 4))                 # second inside the box
images = model.decode(codes, level=2)                                   # or model.vary(codes, 2).pixels
"""

from collections.abc import Sequence
from math import prod

import torch
from einops import rearrange
from jaxtyping import Int64
from torch import Tensor

from vqstack.checks import check_number
from vqstack.errors import InputError
from vqstack.likelihood import Known, noise
from vqstack.model import Decoder, HierarchicalModel, Sample
from vqstack.model_settings import SamplingSettings
from vqstack.quantizer import Quantizer, nearest
from vqstack.shapes import AnyCodes, Floats, Labels, Pixels, by_axis


@torch.no_grad()
def reconstruct(model: HierarchicalModel, pixels: Pixels, level: int, decoder: Decoder = "likelihood") -> Pixels:
    """What the codes of a level keep of images: they are encoded up to there and decoded again, without a draw."""
    model.stack.level(level)  # refuses what there is not
    return model.decode(model.stack.encode(pixels, level)[-1], level, decoder=decoder)


@torch.no_grad()
def interpolate(
    model: HierarchicalModel, first: AnyCodes, second: AnyCodes, level: int, steps: int = 8
) -> Int64[Tensor, "steps *map"]:
    r"""Codes on the way from one map to another: their vectors are mixed, and each mixture is quantized again.

    Args:
        model: whose codes these are.
        first, second: [1, \*map] of the level, where the way begins and where it ends.
        level: counted from 1.
        steps: how many maps, both ends included.

    Returns:
        [steps, \*map]; the nearest code of ``(1 - s) e[first] + s e[second]`` at each site, s from 0 to 1.
    """
    upper, quantizer = model.stack.level(level).upper, model.stack.level(level).quantizer
    upper.check(first, 1, model.device)
    upper.check(second, 1, model.device)
    shares = torch.linspace(0, 1, check_number(steps, "steps", 2, 10**6), device=model.device)
    shares = shares.view(-1, *[1] * (1 + len(upper.shape) - len(quantizer.chain)))
    mixed = (1 - shares) * quantizer.lookup(first) + shares * quantizer.lookup(second)
    if quantizer.chain:  # several codes a site: what the quantizer itself makes of a vector
        assert isinstance(quantizer, Quantizer)  # a table of clusters has one
        return quantizer.encode(mixed)
    codes = nearest(rearrange(mixed, "b d ... -> (b ...) d"), quantizer.codebook())
    return codes.view(len(mixed), *upper.shape)


def blend(
    model: HierarchicalModel,
    first: Sequence[AnyCodes],
    second: Sequence[AnyCodes],
    shares: Sequence[float],
    labels: Labels | None = None,
    condition: Floats | None = None,
    *,
    seed: int = 0,
    sampling: SamplingSettings | None = None,
    decoder: Decoder = "likelihood",
) -> Sample:
    r"""The layout of one image with the texture of another: each level keeps a share of the sites of the second.

    The top map is that of the first with its share of the second. Every map below is drawn given the map above, with
    its share of sites known to be those of the second. Sites are chosen by noise of their own, the same for any share.

    Args:
        model: whose codes these are.
        first, second: z_1 … z_L, each [b, \*map].
        shares: from 0 (as what lies above asks for) to 1 (as in the second), one for each level, level 1 first.
        labels, condition: of the images, where a refiner reads them.
        seed: of what is drawn, and of which sites are kept.
        sampling: how, default: the model's own settings.
        decoder: what makes pixels of z_1.
    """
    count, num = len(model.stack), len(first[-1])
    if not len(first) == len(second) == len(shares) == count:
        raise InputError(f"blend: give z_1 … z_{count} of both images, and a share for each level")
    if not all(0 <= share <= 1 for share in shares):
        raise InputError(f"shares: {' '.join(map(str, shares))}: each lies from 0 to 1")
    kept = dict[int, Known]()
    for number, (codes, share) in enumerate(zip(second, shares, strict=True), start=1):
        level = model.stack.level(number)
        level.upper.check(codes, num, model.device)
        sites = noise(seed, [2**32 + number], number, prod(level.map_shape)).view(level.map_shape) < share
        kept[number] = Known(codes, sites.to(codes.device).expand(codes.shape))
    top = torch.where(kept[count].given, second[-1], first[-1])
    kept.pop(count)
    return model.vary(top, count, labels, condition, seed=seed, sampling=sampling, known=kept, decoder=decoder)


def splice(first: AnyCodes, second: AnyCodes, box: Sequence[int]) -> AnyCodes:
    r"""The codes of one map with those of another inside a box.

    Args:
        first, second: [b, \*map] of one level.
        box: where the second begins along each axis, then where it ends, which is not inside: of images TOP LEFT
            BOTTOM RIGHT, in sites of the map. Several codes of a site stay together.
    """
    axes = len(box) // 2 if len(box) == 2 * (first.ndim - 2) else first.ndim - 1
    shape = tuple(first.shape[-axes:])
    if first.shape != second.shape:
        found = [by_axis(tuple(codes.shape[1:])) for codes in (first, second)]
        raise InputError(f"splice: maps of {found[0]} and of {found[1]}: give two alike")
    begin, end = tuple(box[: len(shape)]), tuple(box[len(shape) :])
    inside = len(box) == 2 * len(shape) and all(0 <= b < e <= n for b, e, n in zip(begin, end, shape, strict=True))
    if not inside:
        raise InputError(
            f"box: {' '.join(map(str, box))} is no part of a map of {by_axis(shape)} sites: give where it begins along "
            "each axis, then where it ends"
        )
    inner = torch.zeros(shape, dtype=torch.bool, device=first.device)
    inner[tuple(slice(b, e) for b, e in zip(begin, end, strict=True))] = True
    return torch.where(inner, second, first)
