"""Distributions made of others: guided by a label, or clamped at known sites."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vqstack.likelihood.base import Distribution, walked_log_prob
from vqstack.likelihood.drawing import Draw
from vqstack.likelihood.factors import Factor, Table
from vqstack.shapes import Nats, Noise


class Guided(Distribution):
    """Classifier-free guidance (Ho and Salimans 2022), table by table.

    ``P(x_i | before) ~ P_without(x_i | before) (P_with(x_i | before) / P_without(x_i | before))^scale``; 1 is no
    guidance, 0 leaves the label out. Each table is normalised, so the whole is a distribution too.

    Args:
        given, without: the same family and schedule with the label and without it.
        scale: see above.
    """

    def __init__(self, given: Distribution, without: Distribution, scale: float) -> None:
        self.given, self.without, self.scale = given, without, scale
        self.batch, self.shape, self.size = given.batch, given.shape, given.size
        self.dtype, self.device = given.dtype, given.device

    def unchecked_log_prob(self, x: Tensor) -> Nats:
        return walked_log_prob(self, x)

    def factors(self, values: Int64[Tensor, "b N"]) -> Iterator[Factor]:
        for one, other in zip(self.given.factors(values), self.without.factors(values), strict=True):
            mixed = other.log_probs + self.scale * (one.log_probs - other.log_probs)
            mixed = mixed.masked_fill(other.log_probs == -torch.inf, -torch.inf)  # impossible with and without a label
            yield Table(one.sites, mixed.log_softmax(-1))


@dataclass(frozen=True)
class Known:
    """A partly filled map: ``values`` [b, \\*shape] count where ``given`` (the same shape) says so."""

    values: Tensor
    given: Bool[Tensor, "b ..."]


class Clamped(Distribution):
    """A distribution whose known sites take their known value with probability one when their turn comes.

    Sites drawn earlier than a known one have not seen it, unless the distribution itself was told: for a chain of
    several factors this is not the posterior given all known sites.
    """

    def __init__(self, inner: Distribution, known: Known) -> None:
        self.inner = inner
        self.batch, self.shape, self.size = inner.batch, inner.shape, inner.size
        self.dtype, self.device = inner.dtype, inner.device
        self.values = known.values.to(self.device).long().flatten(1)
        self.given = known.given.to(self.device).flatten(1)
        inner.fixed = self.given.all(0)

    def unchecked_log_prob(self, x: Tensor) -> Nats:
        other = (x.flatten(1).long() != self.values) & self.given
        return walked_log_prob(self, x).masked_fill(other.any(1), -torch.inf)

    def sample(self, noise: Noise, draw: Draw = Draw()) -> Tensor:
        own = draw.confidence and self.inner.own_order
        return self.inner.sample(noise, draw) if own else super().sample(noise, draw)

    def factors(self, values: Int64[Tensor, "b N"]) -> Iterator[Factor]:
        values.copy_(torch.where(self.given, self.values, values))
        for factor in self.inner.factors(values):
            value, given = self.values[:, factor.sites, None], self.given[:, factor.sites, None]
            certain = torch.full_like(factor.log_probs, -torch.inf).scatter(-1, value, 0.0)
            mean = partial(self._mean, factor, value[..., 0], given[..., 0])
            yield Table(factor.sites, torch.where(given, certain, factor.log_probs), mean)

    @staticmethod
    def _mean(factor: Factor, value: Int64[Tensor, "b n"], given: Bool[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        return torch.where(given, value.float(), factor.mean())
