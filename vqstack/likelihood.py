"""Normalised distributions over pixels and over code maps, and how values are drawn from them.

Every distribution is a chain of *factors*: groups of sites that are independent given the groups before, each a table
of probabilities over all values. Sampling, the tests of normalisation and entropy coding all walk the same factors:

    for factor in distribution.factors(values):          # reads what earlier turns wrote into values
        values[:, factor.sites] = choose(factor.log_probs)

Log-likelihoods are in nats and float32; sites are counted in raster order over the last axes of the map.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vqstack.errors import InputError
from vqstack.shapes import Nats, Noise, finest


class Draw(BaseModel):
    """How values are drawn from a table of probabilities. The defaults draw from the distribution as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    temperature: float = Field(
        1.0, gt=0, description="Log-probabilities are divided by it, no unit; 1 draws true samples."
    )
    top_k: int | None = Field(None, ge=1, description="Draw among the k most likely values, count; none: all.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Nucleus: the fewest values whose probability together reaches this share."
    )
    mode: bool = Field(False, description="Take the most likely value instead of drawing.")
    guidance: float = Field(
        1.0,
        ge=0,
        description="Classifier-free guidance, no unit: 1 none, 0 without the label, above 1 away from it.",
    )
    confidence: bool = Field(
        False, description="Masked models: keep what was drawn with most confidence, in place of the schedule's sites."
    )


def noise(seed: int, indices: list[int] | range, level: int, sites: int) -> Noise:
    """The uniforms that draw map ``level`` (0: pixels) of samples number ``indices``: [len(indices), sites], float64.

    Counter-based (Philox keyed by seed and level, counter set by the sample's number), so sample i is the same in any
    batch and on any number of processes.
    """
    key = np.array([seed % 2**64, level], dtype=np.uint64)  # a list with a number past 2**63 would pass through float64
    rows = [np.random.Generator(np.random.Philox(key=key, counter=[0, 0, i, 0])).random(sites) for i in indices]
    return torch.from_numpy(np.stack(rows) if rows else np.empty((0, sites)))


def draw_values(
    log_probs: Float[Tensor, "b n V"], noise: Float[Tensor, "b n"] | None, draw: Draw
) -> Int64[Tensor, "b n"]:
    """Inverse CDF: the first value whose cumulated probability passes the noise. Values of probability 0 never come."""
    if draw.mode or noise is None:
        return log_probs.argmax(-1)
    if draw.temperature != 1.0:
        log_probs = log_probs / draw.temperature
    if draw.top_k is not None and draw.top_k < log_probs.shape[-1]:
        kept = log_probs.topk(draw.top_k, -1)
        log_probs = torch.full_like(log_probs, -torch.inf).scatter(-1, kept.indices, kept.values)
    probs = log_probs.to(finest(log_probs.device)).softmax(-1)
    if draw.top_p < 1.0:
        ordered, order = probs.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= draw.top_p  # the mass before a value already reaches top_p
        probs = probs.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)
    cdf = probs.cumsum(-1)
    total = cdf[..., -1:]
    threshold = noise.to(probs).unsqueeze(-1) * total
    threshold = torch.minimum(threshold, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, threshold, right=True).squeeze(-1)


class Factor:
    """Sites that are independent given the factors before.

    Args:
        sites: their numbers in raster order, [n].
        log_probs: see the attribute; or a function that builds it, called when somebody asks.
        cdf: where values are ordered and P(x < edge) costs less than a table: a function from edges [b, n, m] (or what
            broadcasts to that), whole numbers from 0 to V, to those probabilities, float64 [b, n, m].
    """

    def __init__(
        self,
        sites: Int64[Tensor, "n"],
        log_probs: Float[Tensor, "b n V"] | Callable[[], Tensor],
        cdf: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.sites, self.cdf, self._table = sites, cdf, log_probs

    @property
    def log_probs(self) -> Float[Tensor, "b n V"]:
        """For each image and site the log-probability of every value, [b, n, V], each row summing to one."""
        return self._table if isinstance(self._table, Tensor) else self._table()

    def at(self, sites: Int64[Tensor, "n"]) -> "Factor":
        """The same tables at other sites."""
        return Factor(sites, self._table, self.cdf)


class Distribution(ABC):
    """A normalised distribution over maps, one for each image of a batch.

    Attributes:
        batch: b, number of images.
        shape: shape of one map, such as (h, w) for codes and (c, h, w) for pixels.
        size: V, number of values a site can take.
        dtype: of the maps: int64 for codes, uint8 for pixels.
        device: where the parameters live.
    """

    batch: int
    shape: tuple[int, ...]
    size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def sites(self) -> int:
        """N, number of sites."""
        return int(np.prod(self.shape))

    @abstractmethod
    def log_prob(self, x: Tensor) -> Nats:
        """ln P(x) of each image, nats; ``x`` is [b, \\*shape]."""

    @abstractmethod
    def factors(self, values: Int64[Tensor, "b N"]) -> Iterator[Factor]:
        """The chain of factors. Before asking for the next one, write the values of this one into ``values``."""

    def sample(self, noise: Noise, draw: Draw = Draw()) -> Tensor:
        """One map per image by the inverse CDF of each factor at ``noise`` [b, N] (see :func:`noise`)."""
        return self._walk(noise.to(self.device, finest(self.device)), draw)

    def mode(self) -> Tensor:
        """The most likely map where sites are independent; otherwise the most likely value of each factor in turn."""
        return self._walk(None, Draw(mode=True))

    def _walk(self, noise: Tensor | None, draw: Draw) -> Tensor:
        values = torch.zeros(self.batch, self.sites, dtype=torch.int64, device=self.device)
        for factor in self.factors(values):
            chosen = None if noise is None else noise[:, factor.sites]
            values[:, factor.sites] = draw_values(factor.log_probs, chosen, draw)
        return values.view(self.batch, *self.shape).to(self.dtype)


class Categorical(Distribution):
    """Independent sites, each with its own table: ``P(x) = prod_i softmax(logits_i)[x_i]``.

    Args:
        logits: [b, \\*shape, V].
        dtype: of the maps.
    """

    def __init__(self, logits: Float[Tensor, "b ..."], dtype: torch.dtype = torch.int64) -> None:
        self.logits = logits.float()
        self.batch, *shape, self.size = logits.shape
        self.shape, self.dtype, self.device = tuple(shape), dtype, logits.device

    def log_prob(self, x: Tensor) -> Nats:
        loss = F.cross_entropy(self.logits.flatten(0, -2), x.flatten().long(), reduction="none")
        return -loss.view(self.batch, -1).sum(1)

    def factors(self, values: Int64[Tensor, "b N"]) -> Iterator[Factor]:
        table = self.logits.flatten(1, -2).log_softmax(-1)
        yield Factor(torch.arange(self.sites, device=self.device), table)


class Bernoulli(Distribution):
    """Independent binary pixels: ``P(x) = prod_i s(l_i)^x_i s(-l_i)^(1-x_i)``, s the logistic function.

    Args:
        logits: log-odds of value 1, [b, c, h, w].
    """

    def __init__(self, logits: Float[Tensor, "b c h w"]) -> None:
        self.logits = logits.float()
        self.batch, *shape = logits.shape
        self.shape, self.size, self.dtype, self.device = tuple(shape), 2, torch.uint8, logits.device

    def log_prob(self, x: Tensor) -> Nats:
        return F.logsigmoid(torch.where(x > 0, self.logits, -self.logits)).flatten(1).sum(1)

    def factors(self, values: Int64[Tensor, "b N"]) -> Iterator[Factor]:
        logits = self.logits.flatten(1)
        table = torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], -1)
        yield Factor(torch.arange(self.sites, device=self.device), table)


class LogisticMixture(Distribution):
    """Mixture of discretized logistics with channel coupling (Salimans et al. 2017, PixelCNN++).

    For one pixel with channels x_1 … x_c scaled to [-1, 1], and h = 1 / (V-1):

        P(x) = sum_k pi_k prod_i [ s((x_i + h - m_ki) / s_ki) - s((x_i - h - m_ki) / s_ki) ]
        m_ki = mu_ki + sum_{j<i} a_kij x_j

    The outer bins reach to infinity, so every channel sums to one. The factors are the channels: given the earlier
    channels of its pixel, a channel is a mixture with the posterior weights of the components. There is no density
    fallback for narrow bins: the logarithm of the difference is computed exactly in the tails,
    ``log(s(a) - s(b)) = -softplus(-a) - softplus(b) + log(1 - exp(b - a))``.

    Args:
        parameters: [b, K (1 + 2c + c(c-1)/2), h, w], as :func:`logistic_parameters` counts them.
        channels: c.
        size: V, number of grey values.
    """

    MIN_LOG_SCALE = -7.0
    MAX_LOG_SCALE = 20.0  # past about 95 the inverse scale is 0 in float32 and an inner bin would have probability 0

    def __init__(self, parameters: Float[Tensor, "b P h w"], channels: int, size: int = 256) -> None:
        pairs = channels * (channels - 1) // 2
        self.batch, total, rows, columns = parameters.shape
        components = total // (1 + 2 * channels + pairs)
        parameters = rearrange(parameters.float(), "b (q k) h w -> q b (h w) k", k=components)
        self.log_weights = parameters[0].log_softmax(-1)
        self.means = parameters[1 : 1 + channels]
        self.log_scales = parameters[1 + channels : 1 + 2 * channels].clamp(self.MIN_LOG_SCALE, self.MAX_LOG_SCALE)
        self.coupling = parameters[1 + 2 * channels :].tanh()
        self.shape, self.size, self.dtype = (channels, rows, columns), size, torch.uint8
        self.device = parameters.device

    def _scaled(self, values: Tensor) -> Tensor:
        return values.float() * (2 / (self.size - 1)) - 1

    def _component_mean(self, channel: int, earlier: list[Tensor]) -> Float[Tensor, "b s k"]:
        """m_ki given the scaled values [b, s] of the earlier channels."""
        mean, first = self.means[channel], channel * (channel - 1) // 2
        for j, x in enumerate(earlier):
            mean = mean + self.coupling[first + j] * x[..., None]
        return mean

    def _log_bin(self, value: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
        """ln P(value | one component); ``value`` holds grey values and broadcasts against the parameters."""
        inverse, half = torch.exp(-log_scale), 1 / (self.size - 1)
        distance = self._scaled(value) - mean
        upper, lower = (distance + half) * inverse, (distance - half) * inverse
        inside = -F.softplus(-upper) - F.softplus(lower) + torch.log(-torch.expm1(-2 * half * inverse))
        return torch.where(
            value == 0, F.logsigmoid(upper), torch.where(value == self.size - 1, F.logsigmoid(-lower), inside)
        )

    def log_prob(self, x: Tensor) -> Nats:
        channels = x.flatten(2).unbind(1)
        total, earlier = self.log_weights, list[Tensor]()
        for i, value in enumerate(channels):
            total = total + self._log_bin(value[..., None], self._component_mean(i, earlier), self.log_scales[i])
            earlier.append(self._scaled(value))
        return total.logsumexp(-1).sum(1)

    def factors(self, values: Int64[Tensor, "b N"]) -> Iterator[Factor]:
        sites_per_channel = self.shape[1] * self.shape[2]
        posterior, earlier = self.log_weights, list[Tensor]()
        for i in range(self.shape[0]):
            mean, log_scale = self._component_mean(i, earlier), self.log_scales[i]
            sites = torch.arange(i * sites_per_channel, (i + 1) * sites_per_channel, device=self.device)
            mixture = (posterior, mean, log_scale)
            yield Factor(sites, partial(self._table, *mixture), partial(self._cdf, *mixture))
            chosen = values[:, sites]
            posterior = (posterior + self._log_bin(chosen[..., None], mean, log_scale)).log_softmax(-1)
            earlier.append(self._scaled(chosen))

    def _table(self, log_weights: Tensor, mean: Tensor, log_scale: Tensor) -> Float[Tensor, "b s V"]:
        """ln P(v) for every grey value v of one channel, whose mixture the arguments [b, s, k] describe."""
        grey = torch.arange(self.size, device=self.device)
        table = None
        for k in range(mean.shape[-1]):  # one component at a time: K tables at once would take K times the memory
            term = log_weights[..., k : k + 1] + self._log_bin(grey, mean[..., k : k + 1], log_scale[..., k : k + 1])
            table = term if table is None else torch.logaddexp(table, term)
        assert table is not None
        return table.log_softmax(-1)

    def _cdf(self, log_weights: Tensor, mean: Tensor, log_scale: Tensor, edges: Tensor) -> Float[Tensor, "b s m"]:
        """``P(x < edge) = sum_k pi_k s((edge - h - m_k) / s_k)`` of one channel; 0 at edge 0 and 1 at edge V."""
        weights, mean, inverse = log_weights.double().softmax(-1), mean.double(), torch.exp(-log_scale.double())
        boundary = (2 * edges.double() - 1) / (self.size - 1) - 1
        total = boundary.new_zeros(())
        for k in range(mean.shape[-1]):
            one = slice(k, k + 1)
            total = total + weights[..., one] * torch.sigmoid((boundary - mean[..., one]) * inverse[..., one])
        return torch.where(edges <= 0, 0.0, torch.where(edges >= self.size, 1.0, total))


def logistic_parameters(channels: int, components: int) -> int:
    """Numbers a pixel needs: for each component its weight, c means, c scales and c(c-1)/2 couplings."""
    return components * (1 + 2 * channels + channels * (channels - 1) // 2)


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

    def log_prob(self, x: Tensor) -> Nats:
        return walked_log_prob(self, x)

    def factors(self, values: Int64[Tensor, "b N"]) -> Iterator[Factor]:
        for one, other in zip(self.given.factors(values), self.without.factors(values), strict=True):
            mixed = other.log_probs + self.scale * (one.log_probs - other.log_probs)
            yield Factor(one.sites, mixed.log_softmax(-1))


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

    def log_prob(self, x: Tensor) -> Nats:
        return walked_log_prob(self, x)

    def sample(self, noise: Noise, draw: Draw = Draw()) -> Tensor:
        return self.inner.sample(noise, draw) if draw.confidence else super().sample(noise, draw)

    def factors(self, values: Int64[Tensor, "b N"]) -> Iterator[Factor]:
        for factor in self.inner.factors(values):
            value, given = self.values[:, factor.sites, None], self.given[:, factor.sites, None]
            certain = torch.full_like(factor.log_probs, -torch.inf).scatter(-1, value, 0.0)
            yield Factor(factor.sites, torch.where(given, certain, factor.log_probs))


def walked_log_prob(distribution: Distribution, x: Tensor) -> Nats:
    """ln P(x) by walking the factors, nats."""
    flat = x.flatten(1).long()
    values, nats = torch.zeros_like(flat), torch.zeros(len(flat), device=flat.device)
    for factor in distribution.factors(values):
        chosen = flat[:, factor.sites]
        values[:, factor.sites] = chosen
        nats = nats + factor.log_probs.gather(-1, chosen[..., None]).squeeze(-1).sum(1)
    return nats


class PixelSettings(BaseModel):
    """Settings of the likelihood of the pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["auto", "bernoulli", "categorical", "logistic_mixture"] = Field(
        "auto",
        description="auto: bernoulli for 2 grey values, categorical up to 32, mixed discretized logistics above.",
    )
    components: int = Field(10, ge=1, description="Logistics a pixel, count (logistic_mixture).")


class Head(ABC):
    """Turns numbers of each site into a distribution over a map.

    Attributes:
        channels: values of one site that form a chain among themselves.
        size: V, number of values each of them can take.
        parameters: numbers a site needs.
    """

    channels: int
    size: int
    parameters: int

    @abstractmethod
    def __call__(self, parameters: Float[Tensor, "b P h w"]) -> Distribution:
        """The distribution over maps of h × w sites."""


class CodeHead(Head):
    """Logits of each site to independent codes.

    Args:
        size: K, number of codes.
    """

    def __init__(self, size: int) -> None:
        self.channels, self.size, self.parameters = 1, size, size

    def __call__(self, parameters: Float[Tensor, "b P h w"]) -> Distribution:
        return Categorical(rearrange(parameters, "b k h w -> b h w k"))


class PixelHead(Head):
    """Numbers of each pixel to a distribution over pixels.

    Args:
        settings: which family.
        channels: c.
        size: V, number of grey values.
    """

    def __init__(self, settings: PixelSettings, channels: int, size: int) -> None:
        automatic = "bernoulli" if size == 2 else "categorical" if size <= 32 else "logistic_mixture"
        self.kind = automatic if settings.kind == "auto" else settings.kind
        if self.kind == "bernoulli" and size != 2:
            raise InputError(f"pixels.kind: bernoulli needs 2 grey values, the images have {size}: choose another")
        self.channels, self.size = channels, size
        self.parameters = {
            "bernoulli": channels,
            "categorical": channels * size,
            "logistic_mixture": logistic_parameters(channels, settings.components),
        }[self.kind]
        """Numbers a pixel needs: channels of the decoder's output."""

    def __call__(self, parameters: Float[Tensor, "b P h w"]) -> Distribution:
        if self.kind == "bernoulli":
            return Bernoulli(parameters)
        if self.kind == "categorical":
            return Categorical(rearrange(parameters, "b (c v) h w -> b c h w v", v=self.size), torch.uint8)
        return LogisticMixture(parameters, self.channels, self.size)
