r"""Several codes a site, one after the other: ``P(z) = prod_i prod_d P(z_{i,d} | z_{i,1} … z_{i,d-1}, x_i)``.

Sites are independent given their features x_i, the D codes of a site are not: a small network reads the codes that the
site has so far (the depth transformer of Lee et al. 2022, RQ-Transformer, with a sum in the place of attention):

    h_d = x_i + p_d + sum_{e<d} E_e[z_{i,e}]        logits_d = W_d f(h_d)
"""

from collections.abc import Iterator
from copy import deepcopy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vqstack.likelihood.base import Distribution
from vqstack.likelihood.factors import Factor, Table
from vqstack.likelihood.heads import CodeHead, Head
from vqstack.shapes import AnyCodes, Nats, widened


class ChainNetwork(nn.Module):
    """Features of a site, and the codes that it has so far, to logits of the next one.

    Args:
        codes: D.
        size: K, number of values of each.
        width: features of a site.
    """

    def __init__(self, codes: int, size: int, width: int) -> None:
        super().__init__()
        self.codes, self.size = codes, size
        self.before = nn.Embedding((codes - 1) * size, width)
        self.place = nn.Parameter(torch.randn(codes, width) * 0.1)
        self.norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.leave = nn.Parameter(torch.zeros(codes, width, size))  # starts as the uniform distribution
        self.bias = nn.Parameter(torch.zeros(codes, size))
        nn.init.normal_(self.before.weight, std=0.1)

    def forward(self, hidden: Float[Tensor, "*n d"], place: int) -> Float[Tensor, "*n K"]:
        """Logits of the code at a place of the chain, counted from 0."""
        h = hidden + self.place[place]
        h = self.last_norm(h + self.outer(F.gelu(self.inner(self.norm(h)))))
        return widened(h @ self.leave[place] + self.bias[place])

    def told(self, hidden: Float[Tensor, "*n d"], code: Int64[Tensor, "*n"], place: int) -> Float[Tensor, "*n d"]:
        """The features for the codes after the one at a place, which is known now."""
        if place + 1 == self.codes:
            return hidden
        return hidden + F.embedding(code + place * self.size, self.before.weight)


class ChainHead(Head):
    """Features of each site to its D codes.

    Args:
        codes, size, width: see :class:`ChainNetwork`; the numbers of a site are its features.
    """

    ordered = False
    network: ChainNetwork

    def __init__(self, codes: int, size: int, width: int) -> None:
        self.channels, self.size, self.parameters = codes, size, width
        self.network = ChainNetwork(codes, size, width)

    def __call__(self, parameters: Float[Tensor, "b P *map"]) -> Distribution:
        return Chained(self.network, parameters)

    def copied(self) -> "ChainHead":
        """The same with weights of its own, equal at first."""
        return deepcopy(self)


def code_head(chain: tuple[int, ...], size: int, width: int) -> Head:
    """The likelihood of codes, one a site or (D,) of them, whose features are ``width`` numbers then."""
    return ChainHead(chain[0], size, width) if chain else CodeHead(size)


class Chained(Distribution):
    """One factor a code: of all sites the first, then the second, …

    Args:
        network: see :class:`ChainNetwork`.
        features: of each site.
    """

    def __init__(self, network: ChainNetwork, features: Float[Tensor, "b P *map"]) -> None:
        self.network, self.features = network, features.flatten(2).mT
        self.batch, self.device = features.shape[0], features.device
        self.shape, self.size, self.dtype = (network.codes, *features.shape[2:]), network.size, torch.int64

    def unchecked_log_prob(self, x: AnyCodes) -> Nats:
        hidden, codes = self.features, x.flatten(2)
        nats = torch.zeros(self.batch, device=self.device)
        for place in range(self.network.codes):
            code = codes[:, place]
            nats = nats + F.cross_entropy(self.network(hidden, place).mT, code, reduction="none").sum(1)
            hidden = self.network.told(hidden, code, place)
        return -nats

    def factors(self, values: Int64[Tensor, "b M"]) -> Iterator[Factor]:
        hidden, count = self.features, self.features.shape[1]
        for place in range(self.network.codes):
            sites = torch.arange(place * count, (place + 1) * count, device=self.device)
            yield Table(sites, self.network(hidden, place).log_softmax(-1))
            hidden = self.network.told(hidden, values[:, sites], place)
