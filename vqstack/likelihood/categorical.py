"""Independent sites with a table each: codes, and pixels of few grey values."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from vqstack.likelihood.base import Distribution
from vqstack.likelihood.factors import Factor, Table
from vqstack.shapes import PADDING, Nats, widened


class Categorical(Distribution):
    """Independent sites, each with its own table: ``P(x) = prod_i softmax(logits_i)[x_i]``.

    Args:
        logits: [b, \\*shape, V].
        dtype: of the maps.
    """

    def __init__(self, logits: Float[Tensor, "b ..."], dtype: torch.dtype = torch.int64) -> None:
        self.logits = widened(logits)
        self.batch, *shape, self.size = logits.shape
        self.shape, self.dtype, self.device = tuple(shape), dtype, logits.device

    def unchecked_log_prob(self, x: Tensor) -> Nats:
        ignored = PADDING if x.dtype == torch.int32 else -100
        loss = F.cross_entropy(self.logits.flatten(0, -2), x.flatten().long(), reduction="none", ignore_index=ignored)
        return -loss.view(self.batch, -1).sum(1)

    def factors(self, values: Int64[Tensor, "b N"]) -> Iterator[Factor]:
        table = self.logits.flatten(1, -2).log_softmax(-1)
        yield Table(torch.arange(self.sites, device=self.device), table)


class Frequencies(Distribution):
    """Independent sites whose probabilities are kept as they are: ``P(x) = prod_i probs_i[x_i]``.

    Args:
        probs: [b, \\*shape, V], each row summing to one.
    """

    def __init__(self, probs: Float[Tensor, "b ..."]) -> None:
        self.probs = probs
        self.batch, *shape, self.size = probs.shape
        self.shape, self.dtype, self.device = tuple(shape), torch.int64, probs.device

    def unchecked_log_prob(self, x: Tensor) -> Nats:
        return self.probs.gather(-1, x[..., None]).log().flatten(1).sum(1)

    def factors(self, values: Int64[Tensor, "b N"]) -> Iterator[Factor]:
        probs = self.probs.view(self.batch, self.sites, self.size)
        yield Table(torch.arange(self.sites, device=self.device), probs.log(), probs=probs)


class Bernoulli(Distribution):
    r"""Independent binary pixels: ``P(x) = prod_i s(l_i)^x_i s(-l_i)^(1-x_i)``, s the logistic function.

    Args:
        logits: log-odds of value 1, [b, c, \*map].
    """

    def __init__(self, logits: Float[Tensor, "b c *map"]) -> None:
        self.logits = widened(logits)
        self.batch, *shape = logits.shape
        self.shape, self.size, self.dtype, self.device = tuple(shape), 2, torch.uint8, logits.device

    def unchecked_log_prob(self, x: Tensor) -> Nats:
        found = F.logsigmoid(torch.where(x > 0, self.logits, -self.logits))
        return (found if x.dtype == torch.uint8 else found.where(x >= 0, 0)).flatten(1).sum(1)

    def factors(self, values: Int64[Tensor, "b N"]) -> Iterator[Factor]:
        logits = self.logits.flatten(1)
        table = torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], -1)
        yield Table(torch.arange(self.sites, device=self.device), table)
