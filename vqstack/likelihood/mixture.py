"""Pixels of many grey values: a mixture of discretized logistics whose colour channels are coupled."""

from collections.abc import Callable, Iterator
from functools import partial
from math import log, prod

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor

from vqstack.likelihood.base import Distribution
from vqstack.likelihood.factors import Factor, Ordered
from vqstack.likelihood.neighbours import Near
from vqstack.shapes import Nats, finest, value_dtype, widened


class LogisticMixture(Distribution):
    r"""Mixture of discretized logistics with channel coupling (Salimans et al. 2017, PixelCNN++).

    For one pixel with channels x_1 … x_c scaled to [-1, 1], and h = 1 / (V-1):

        P(x) = sum_k pi_k prod_i [ s((x_i + h - m_ki) / s_ki) - s((x_i - h - m_ki) / s_ki) ]
        m_ki = mu_ki + sum_{j<i} a_kij x_j

    The outer bins reach to infinity, so every channel sums to one. The factors are the channels: given the earlier
    channels of its pixel, a channel is a mixture with the posterior weights of the components. There is no density
    fallback for narrow bins: the logarithm of the difference is computed exactly in the tails,
    ``log(s(a) - s(b)) = -softplus(-a) - softplus(b) + log(1 - exp(b - a))``.

    Args:
        parameters: [b, K (1 + 2c + c(c-1)/2), \*map], as :func:`logistic_parameters` counts them.
        channels: c.
        size: V, number of grey values.
    """

    def __init__(self, parameters: Float[Tensor, "b P *map"], channels: int, size: int = 256) -> None:
        pairs = channels * (channels - 1) // 2
        self.batch, total, *sites = parameters.shape
        components = total // (1 + 2 * channels + pairs)
        parameters = rearrange(widened(parameters).flatten(2), "b (q k) s -> q b s k", k=components)
        self.log_weights = parameters[0].log_softmax(-1)
        self.means = parameters[1 : 1 + channels]
        self.log_scales = parameters[1 + channels : 1 + 2 * channels].clamp(*scale_bounds(size))
        self.coupling = parameters[1 + 2 * channels :].tanh()
        self.shape, self.size, self.dtype = (channels, *sites), size, value_dtype(size)
        self.device = parameters.device
        self._own = list[Float[Tensor, "b s k"]]()  # mean grey values of components, of the first channels

    def _component_mean(self, channel: int, earlier: list[Tensor]) -> Float[Tensor, "b s k"]:
        """m_ki given the scaled values [b, s, 1 or k] of the earlier channels."""
        mean, first = self.means[channel], channel * (channel - 1) // 2
        for j, x in enumerate(earlier):
            mean = mean + self.coupling[first + j] * x
        return mean

    def unchecked_log_prob(self, x: Tensor) -> Nats:
        channels = x.flatten(2).unbind(1)
        total, earlier = self.log_weights, list[Tensor]()
        for i, value in enumerate(channels):
            total = total + log_bin(value[..., None], self._component_mean(i, earlier), self.log_scales[i], self.size)
            earlier.append(scaled(value, self.size)[..., None])
        found = total.logsumexp(-1)
        return (found if x.dtype == torch.uint8 else found.where(channels[0] >= 0, 0)).sum(1)

    def channel_mean(self, channel: int) -> Float[Tensor, "b s"]:
        """The mean grey value of a channel, whatever the earlier ones are: that of each component, by weight.

        In each component the earlier channels stand at their own means, which is exact but where the outer bins cut.
        The mean *given* the means of the earlier channels would be another: no component may have such a colour.
        """
        for i in range(len(self._own), channel + 1):  # of channels before it they are known
            earlier = [scaled(value, self.size) for value in self._own]
            self._own.append(mean_value(self._component_mean(i, earlier), self.log_scales[i], self.size))
        return (self.log_weights.exp() * self._own[channel]).sum(-1)

    def factors(self, values: Int64[Tensor, "b N"]) -> Iterator[Factor]:
        sites_per_channel = prod(self.shape[1:])
        posterior, earlier = self.log_weights, list[Tensor]()
        for i in range(self.shape[0]):
            mean, log_scale = self._component_mean(i, earlier), self.log_scales[i]
            sites = torch.arange(i * sites_per_channel, (i + 1) * sites_per_channel, device=self.device)
            yield MixtureFactor(sites, posterior, mean, log_scale, self.size, partial(self.channel_mean, i))
            chosen = values[:, sites]
            posterior = (posterior + log_bin(chosen[..., None], mean, log_scale, self.size)).log_softmax(-1)
            earlier.append(scaled(chosen, self.size)[..., None])


class MixtureFactor(Ordered):
    """One channel of a :class:`LogisticMixture`, given the earlier ones.

    Args:
        sites: see :class:`Factor`.
        log_weights, centre, log_scale: of each component at each site, [b, n, k].
        size: V, number of grey values.
        overall: the mean of the channel whatever the earlier ones are.
    """

    def __init__(
        self,
        sites: Int64[Tensor, "n"],
        log_weights: Float[Tensor, "b n k"],
        centre: Float[Tensor, "b n k"],
        log_scale: Float[Tensor, "b n k"],
        size: int,
        overall: Callable[[], Float[Tensor, "b n"]],
    ) -> None:
        super().__init__(sites)
        self.log_weights, self.centre, self.log_scale = log_weights, centre, log_scale
        self.batch, self.size, self.overall = centre.shape[0], size, overall

    def part(self, places: slice) -> "MixtureFactor":
        log_weights, centre, log_scale = (x[:, places] for x in (self.log_weights, self.centre, self.log_scale))
        return MixtureFactor(
            self.sites[places], log_weights, centre, log_scale, self.size, lambda: self.overall()[:, places]
        )

    def mean(self) -> Float[Tensor, "b n"]:
        return self.overall()

    def log_prob(self, values: Int64[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        return (self.log_weights + log_bin(values[..., None], self.centre, self.log_scale, self.size)).logsumexp(-1)

    @property
    def log_probs(self) -> Float[Tensor, "b n V"]:
        table = None
        for k in range(self.centre.shape[-1]):  # one at a time: K tables at once would take K times the memory
            one = slice(k, k + 1)
            term = log_bins(self.centre[..., one], self.log_scale[..., one], self.size) + self.log_weights[..., one]
            table = term if table is None else torch.logaddexp(table, term)
        assert table is not None
        return table.log_softmax(-1)

    def cdf(self, edges: Int64[Tensor, "*places m"], precision: torch.dtype | None = None) -> Float[Tensor, "b n m"]:
        """``P(x < edge) = sum_k pi_k s((edge - h - m_k) / s_k)``; 0 at edge 0 and 1 at edge V."""
        precision = precision or finest(self.centre.device)
        weights, centre = self.log_weights.to(precision).softmax(-1), self.centre.to(precision)
        inverse = torch.exp(-self.log_scale.to(precision))
        boundary = (2 * edges.to(precision) - 1) / (self.size - 1) - 1
        total = boundary.new_zeros(())
        for k in range(centre.shape[-1]):
            one = slice(k, k + 1)
            total = total + weights[..., one] * torch.sigmoid((boundary - centre[..., one]) * inverse[..., one])
        return torch.where(edges <= 0, 0.0, torch.where(edges >= self.size, 1.0, total))


def scale_bounds(size: int) -> tuple[float, float]:
    """Bounds of the logarithm of a scale: a quarter of a bin (of 1/128 where values are 256 or fewer), and e^20.

    Past about e^95 the inverse scale is 0 in float32, and an inner bin would have probability 0.
    """
    return -7.0 - log(max(size - 1, 255) / 255), 20.0


def scaled(values: Tensor, size: int) -> Tensor:
    """Grey values 0 … V-1 on [-1, 1]."""
    return values.float() * (2 / (size - 1)) - 1


def log_bin(value: Tensor, mean: Tensor, log_scale: Tensor, size: int) -> Tensor:
    """ln P(value | one component); ``value`` holds grey values and broadcasts against the parameters."""
    upper, lower, inside = _bin(value, mean, log_scale, size)
    return torch.where(value == 0, F.logsigmoid(upper), torch.where(value == size - 1, F.logsigmoid(-lower), inside))


def log_bins(mean: Float[Tensor, "*n 1"], log_scale: Float[Tensor, "*n 1"], size: int) -> Float[Tensor, "*n V"]:
    """:func:`log_bin` of every grey value; what the outer two need is computed for them alone."""
    upper, lower, inside = _bin(torch.arange(size, device=mean.device), mean, log_scale, size)
    return torch.cat([F.logsigmoid(upper[..., :1]), inside[..., 1:-1], F.logsigmoid(-lower[..., -1:])], -1)


def mean_value(mean: Tensor, log_scale: Tensor, size: int) -> Tensor:
    """The mean grey value of one component: ``sum_e P(x >= e)`` over e = 1 … V-1, within 0.03 of it.

    From half a bin of scale on the sum is its integral, ``s (softplus(m / s) - softplus((m - (V-1)) / s))``, with m and
    s in grey values. Of a narrower component the eight edges around the mean are added, below them all are passed.
    """
    last = size - 1
    m = (mean.to(finest(mean.device)) + 1) * (last / 2)
    s = (log_scale.to(m).exp() * (last / 2)).clamp(max=1e4 * last)  # so wide that both ends are equally likely
    wide = s * (F.softplus(m / s) - F.softplus((m - last) / s))
    below = m.round() - 4
    narrow = below.clamp(0, last)
    for j in range(1, 9):
        edge = below + j
        narrow = narrow + torch.sigmoid((m - edge + 0.5) / s) * ((edge >= 1) & (edge <= last))
    return torch.where(s < 0.5, narrow, wide).to(mean)


def _bin(value: Tensor, mean: Tensor, log_scale: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where a bin ends above and below, in scales from the mean, and ln P of it if it is no outer one."""
    inverse, half = torch.exp(-log_scale), 1 / (size - 1)
    distance = scaled(value, size) - mean
    upper, lower = (distance + half) * inverse, (distance - half) * inverse
    return upper, lower, -F.softplus(-upper) - F.softplus(lower) + torch.log(-torch.expm1(-2 * half * inverse))


def logistic_parameters(channels: int, components: int) -> int:
    """Numbers a pixel needs: for each component its weight, c means, c scales and c(c-1)/2 couplings."""
    return components * (1 + 2 * channels + channels * (channels - 1) // 2)


def correction_units(parameters: Float[Tensor, "*n P"], channels: int, size: int) -> Float[Tensor, "*n P"]:
    """What each number of a mixture is moved in: a mean in its scale and half a bin, the others in ones."""
    quantities = 1 + 2 * channels + channels * (channels - 1) // 2
    numbers = parameters.unflatten(-1, (quantities, -1))
    log_scales = numbers[..., 1 + channels : 1 + 2 * channels, :]
    widths = log_scales.clamp(*scale_bounds(size)).exp() + 1 / (size - 1)
    ones = torch.ones_like(numbers)
    return torch.cat([ones[..., :1, :], widths, ones[..., 1 + channels :, :]], -2).flatten(-2)


def starting_point(channels: int, parameters: int) -> Float[Tensor, "P"]:
    """Numbers of a pixel before anything is learned: logistics from narrow to wide, alike otherwise."""
    numbers = torch.zeros(1 + 2 * channels + channels * (channels - 1) // 2, parameters)
    numbers = numbers[:, : parameters // len(numbers)]
    numbers[1 + channels : 1 + 2 * channels] = torch.linspace(-5, -2, numbers.shape[1])
    return numbers.flatten()


def around_neighbours(
    parameters: Float[Tensor, "b P *map"], near: Near, channels: int, size: int
) -> Float[Tensor, "b P *map"]:
    """Numbers of a mixture from numbers relative to known neighbours; scales and weights stay as they are.

    Component k is centred on a prediction p_k from its neighbours, which are taken in turn
    (:meth:`~vqstack.likelihood.neighbours.Near.predictions`). Couplings act on what the earlier channels lie beside
    their prediction:

        mu_ki = p_ki + (s_ki + h) d_ki - sum_{j<i} a_kij p_kj
    """
    pairs = channels * (channels - 1) // 2
    numbers = parameters.unflatten(1, (1 + 2 * channels + pairs, -1))  # [b, quantities, K, *map]
    predictions = near.predictions()
    predicted = torch.stack([predictions[k % len(predictions)] for k in range(numbers.shape[2])], 2)
    log_scales = numbers[:, 1 + channels : 1 + 2 * channels]
    if near.unit is not None:  # a logistic starts between e^-2 and e times as wide
        log_scales = log_scales + (near.unit.log() + 3)[:, :, None]
    widths = log_scales.clamp(*scale_bounds(size)).exp() + 1 / (size - 1)
    means = list((predicted + widths * numbers[:, 1 : 1 + channels]).unbind(1))
    coupling = numbers[:, 1 + 2 * channels :].tanh()
    for i in range(channels):
        for j in range(i):
            means[i] = means[i] - coupling[:, i * (i - 1) // 2 + j] * predicted[:, j]
    return torch.cat([numbers[:, :1], torch.stack(means, 1), log_scales, numbers[:, 1 + 2 * channels :]], 1).flatten(
        1, 2
    )
