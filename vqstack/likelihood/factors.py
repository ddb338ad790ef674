"""Factors: sites that are independent given the factors before, and how their values are drawn.

A factor of ordered values is drawn in steps of its CDF, one a digit of the value to the base 16: first the run of 16
values that the noise falls into, then the value (with 65,536 values in four steps). That takes P(x < edge) at 34 edges
instead of a table of 256 probabilities, and gives what the table would give. Entropy coding takes the same steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from vqstack.likelihood.drawing import Draw, draw_values

BASE = 16
"""Runs of values that a step of the CDF tells apart."""
PLAIN = 0.8
"""Probability from which a picture shows black or white itself: the mean would be a little grey."""
PART = 2**16
"""Probabilities that a table holds at a time where it need not be whole: half a megabyte, which the caches hold and the
allocator keeps, where larger tables would be mapped, and cleared, anew each time."""


class Factor(ABC):
    """Sites that are independent given the factors before.

    Args:
        sites: their numbers in raster order, [n].

    Attributes:
        size: V, number of values.
    """

    size: int

    def __init__(self, sites: Int64[Tensor, "n"]) -> None:
        self.sites = sites

    @property
    @abstractmethod
    def log_probs(self) -> Float[Tensor, "b n V"]:
        """For each image and site the log-probability of every value, [b, n, V], each row summing to one."""

    def log_prob(self, values: Int64[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """ln P of a value of each site."""
        return self.log_probs.gather(-1, values[..., None]).squeeze(-1)

    @property
    def probs(self) -> Float64[Tensor, "b n V"]:
        """The probabilities that entropy coding reads."""
        return self.log_probs.double().exp()

    @abstractmethod
    def _draw(self, noise: Float[Tensor, "b n"] | None, draw: Draw) -> Int64[Tensor, "b n"]: ...

    @abstractmethod
    def mean(self) -> Float[Tensor, "b n"]:
        """The mean of each site where values are ordered: sum over v of v P(v), before rounding."""

    def draw(self, noise: Float[Tensor, "b n"] | None, draw: Draw) -> Int64[Tensor, "b n"]:
        """The value of each site by the inverse CDF at ``noise``; without noise the most likely one, or the mean."""
        return self._picture() if draw.mean else self._draw(noise, draw)

    @abstractmethod
    def ends(self) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
        """P(first value) and P(last value) of each site."""

    def _picture(self) -> Int64[Tensor, "b n"]:
        """The mean, rounded; black and white where they hold most of the mass, so that plain grounds stay plain."""
        first, last = self.ends()
        value = self.mean().round().long().masked_fill(first >= PLAIN, 0)
        return torch.where(last >= PLAIN, self.size - 1, value)

    def at(self, sites: Int64[Tensor, "n"]) -> "Factor":
        """The same probabilities at other sites."""
        moved = copy(self)
        moved.sites = sites
        return moved


class Table(Factor):
    """A factor that is a table.

    Args:
        sites: see :class:`Factor`.
        log_probs: see the property.
        probs: the probabilities themselves, where they are known; default: from their logarithms.
    """

    def __init__(
        self, sites: Int64[Tensor, "n"], log_probs: Float[Tensor, "b n V"], probs: Float[Tensor, "b n V"] | None = None
    ) -> None:
        super().__init__(sites)
        self._log_probs, self._probs, self.size = log_probs, probs, log_probs.shape[-1]

    @property
    def log_probs(self) -> Float[Tensor, "b n V"]:
        return self._log_probs

    @property
    def probs(self) -> Float64[Tensor, "b n V"]:
        return super().probs if self._probs is None else self._probs.double()

    def mean(self) -> Float[Tensor, "b n"]:
        values = torch.arange(self._log_probs.shape[-1], device=self.sites.device, dtype=self._log_probs.dtype)
        return self._log_probs.exp() @ values

    def ends(self) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
        return self._log_probs[..., 0].exp(), self._log_probs[..., -1].exp()

    def _draw(self, noise: Float[Tensor, "b n"] | None, draw: Draw) -> Int64[Tensor, "b n"]:
        return draw_values(self.log_probs, noise, draw)


class Ordered(Factor):
    """A factor whose values are ordered, and whose P(x < edge) costs less than a table.

    Attributes:
        batch: b, number of images.
    """

    batch: int

    @abstractmethod
    def cdf(self, edges: Int64[Tensor, "*places m"], precision: torch.dtype | None = None) -> Float[Tensor, "b n m"]:
        """P(x < edge) at whole numbers from 0 to V: 0 at edge 0, 1 at edge V; by default as fine as the device can."""

    @abstractmethod
    def part(self, places: slice) -> "Ordered":
        """The factor of some of its sites."""

    def ends(self) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
        below = self.cdf(torch.tensor([1, self.size - 1], device=self.sites.device))
        return below[..., 0], 1 - below[..., 1]

    @property
    def widths(self) -> list[int]:
        """How many values a run holds in each step: 16 and 1, or with more than 256 values 4,096, 256, 16 and 1."""
        steps = 2
        while BASE**steps < self.size:
            steps += 1
        return [BASE**step for step in range(steps - 1, -1, -1)]

    def runs(self, first: Int64[Tensor, "b n"], width: int) -> Float[Tensor, "b n m"]:
        """P(x < edge) at the edges of runs of ``width`` values from ``first`` on, 16 or all.

        Past the last value it is 1.
        """
        count = min(BASE, -(-self.size // width))
        edges = torch.arange(count + 1, device=first.device) * width
        return self.cdf((first[..., None] + edges).clamp(max=self.size))

    def _draw(self, noise: Float[Tensor, "b n"] | None, draw: Draw) -> Int64[Tensor, "b n"]:
        if draw.mode or noise is None:
            return self._by_parts(lambda part, _: part.most_likely())
        u = noise.clamp(max=1 - torch.finfo(noise.dtype).eps / 2)  # in float32 it may have been rounded to 1
        if not draw.plain:
            return self._by_parts(lambda part, places: draw_values(part.log_probs, u[:, places], draw))
        value = torch.zeros(self.batch, len(self.sites), dtype=torch.int64, device=self.sites.device)
        for width in self.widths:
            value = value + width * _bin(self.runs(value, width), u)
        return value.clamp(max=self.size - 1)

    def most_likely(self) -> Int64[Tensor, "b n"]:
        """The most likely value of each site: where float32 puts it, then the best of the 16 values around that."""
        edges = torch.arange(self.size + 1, device=self.sites.device)
        near = self.cdf(edges, torch.float32).diff(dim=-1).argmax(-1)
        first = (near - BASE // 2).clamp(min=0)
        return first + self.cdf((first[..., None] + edges[: BASE + 1]).clamp(max=self.size)).diff(dim=-1).argmax(-1)

    def _by_parts(self, choose: Callable[["Ordered", slice], Tensor]) -> Int64[Tensor, "b n"]:
        """Values chosen from a few sites at a time."""
        step = max(1, PART // (self.batch * self.size))
        parts = [slice(start, start + step) for start in range(0, len(self.sites), step)]
        return torch.cat([choose(self.part(places), places) for places in parts], 1)


def _bin(cdf: Float[Tensor, "b n m"], noise: Float[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
    """The first bin whose upper edge passes the noise."""
    return (cdf[..., 1:-1] <= noise[..., None]).sum(-1)
