"""Distributions as chains of factors.

Every distribution is a chain of *factors*: groups of sites that are independent given the groups before, each a table
of probabilities over all values. Sampling, the tests of normalisation and entropy coding all walk the same factors:

    for factor in distribution.factors(values):          # reads what earlier turns wrote into values
        values[:, factor.sites] = choose(factor.log_probs)

Log-likelihoods are in nats and float32; sites are counted in raster order over the last axes of the map.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import prod

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vqstack.checks import check_floats, check_map
from vqstack.errors import InputError
from vqstack.likelihood.drawing import Draw
from vqstack.likelihood.factors import Factor
from vqstack.shapes import Nats, Noise, finest


class Distribution(ABC):
    """A normalised distribution over maps, one for each image of a batch.

    Attributes:
        batch: b, number of images.
        shape: shape of one map, such as (h, w) for codes and (c, h, w) for pixels.
        size: V, number of values a site can take.
        dtype: of the maps: int64 for codes, uint8 for pixels, int32 for values past 255.
        device: where the parameters live.
        own_order: whether ``draw.confidence`` makes it draw in an order of its own; it then keeps known values itself.
        fixed: sites [N] whose values are given in all images and stand in ``values`` before a walk begins: factors of
            such sites alone may be left out. None: no such sites.
    """

    batch: int
    shape: tuple[int, ...]
    size: int
    dtype: torch.dtype
    device: torch.device
    own_order: bool = False
    fixed: Bool[Tensor, "N"] | None = None

    @property
    def sites(self) -> int:
        """N, number of sites."""
        return prod(self.shape)

    def log_prob(self, x: Tensor) -> Nats:
        """ln P(x) of each image, nats; ``x`` is [b, \\*shape]. InputError where it is no map of these images."""
        check_map(x, "values", self.shape, self.size, self.device, self.dtype, self.batch)
        return self.unchecked_log_prob(x)

    @abstractmethod
    def unchecked_log_prob(self, x: Tensor) -> Nats:
        """:meth:`log_prob` of a map that is known to fit, as in training."""

    @abstractmethod
    def factors(self, values: Int64[Tensor, "b N"]) -> Iterator[Factor]:
        """The chain of factors. Before asking for the next one, write the values of this one into ``values``."""

    def sample(self, noise: Noise, draw: Draw = Draw()) -> Tensor:
        """One map per image by the inverse CDF of each factor at ``noise`` [b, N] (see :func:`noise`)."""
        self.check_noise(noise)
        return self._walk(noise.to(self.device, finest(self.device)), draw)

    def check_noise(self, noise: Noise) -> None:
        """InputError unless these are numbers from 0 to below 1, one for each site of each image."""
        check_floats(noise, "noise", (self.batch, self.sites), None)
        if noise.numel() and not (noise.min() >= 0 and noise.max() < 1):
            raise InputError("noise: not all numbers lie in [0, 1): take vqstack.likelihood.noise")

    def mode(self) -> Tensor:
        """The most likely map where sites are independent; otherwise the most likely value of each factor in turn."""
        return self._walk(None, Draw(mode=True))

    def mean(self) -> Tensor:
        """Pixels: the mean grey value of each, rounded; where sites are no product, each given those before it."""
        return self._walk(None, Draw(mean=True))

    def _walk(self, noise: Tensor | None, draw: Draw) -> Tensor:
        if draw.mean and self.dtype == torch.int64:
            raise ValueError("codes have no order, so no mean")
        values = torch.zeros(self.batch, self.sites, dtype=torch.int64, device=self.device)
        for factor in self.factors(values):
            chosen = None if noise is None else noise[:, factor.sites]
            values[:, factor.sites] = factor.draw(chosen, draw)
        return values.view(self.batch, *self.shape).to(self.dtype)


def walked_log_prob(distribution: Distribution, x: Tensor, counted: Bool[Tensor, "b N"] | None = None) -> Nats:
    """ln P(x) by walking the factors, nats.

    Args:
        distribution, x: see :meth:`Distribution.log_prob`.
        counted: the sites that are scored given those before; the others are given themselves. None: all.
    """
    scored = walked_by_site(distribution, x)
    return (scored if counted is None else scored.where(counted, 0)).sum(1)


def walked_by_site(distribution: Distribution, x: Tensor) -> Float[Tensor, "b N"]:
    """ln P of each site given those before it in the chain, nats; they add up to ln P(x)."""
    flat, found = x.reshape(len(x), -1).long(), torch.zeros(0)  # a label has no axis of its own
    values = torch.zeros_like(flat)
    for factor in distribution.factors(values):
        chosen = flat[:, factor.sites]
        values[:, factor.sites] = chosen
        scored = factor.log_prob(chosen)
        found = found if len(found) else scored.new_zeros(flat.shape)
        found[:, factor.sites] = scored
    return found
