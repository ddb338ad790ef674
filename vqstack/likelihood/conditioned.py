"""Distributions made of others: guided by a label, or clamped at known sites."""

from collections.abc import Iterator
from dataclasses import dataclass

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
            yield Held(factor, self.values[:, factor.sites], self.given[:, factor.sites])


class Held(Factor):
    """A factor some of whose values are known. A table is made only where one is read.

    Args:
        inner: of the same sites.
        value: [b, n], which count where ``given`` says so.
    """

    def __init__(self, inner: Factor, value: Int64[Tensor, "b n"], given: Bool[Tensor, "b n"]) -> None:
        super().__init__(inner.sites)
        self.inner, self.value, self.given, self.size = inner, value, given, inner.size

    @property
    def log_probs(self) -> Float[Tensor, "b n V"]:
        table = self.inner.log_probs
        certain = torch.full_like(table, -torch.inf).scatter(-1, self.value[..., None], 0.0)
        return torch.where(self.given[..., None], certain, table)

    def log_prob(self, values: Int64[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        found = self.inner.log_prob(values)
        certain = torch.zeros_like(found).masked_fill(values != self.value, -torch.inf)
        return torch.where(self.given, certain, found)

    def mean(self) -> Float[Tensor, "b n"]:
        return torch.where(self.given, self.value.float(), self.inner.mean())

    def ends(self) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
        first, last = self.inner.ends()
        known = [(self.value == end).to(first) for end in (0, self.size - 1)]
        return torch.where(self.given, known[0], first), torch.where(self.given, known[1], last)

    def _draw(self, noise: Float[Tensor, "b n"] | None, draw: Draw) -> Int64[Tensor, "b n"]:
        return torch.where(self.given, self.value, self.inner._draw(noise, draw))
