"""Values of one site that form a chain: the colours of a pixel, the codes of a residual or product quantizer.

A map whose sites have D values each is stored as [b, D, \\*map]; with one value a site as [b, \\*map]. Networks read
the D values of a site together, as the sum of a vector for each.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


def entries(values: Int64[Tensor, "*n D"], size: int) -> Int64[Tensor, "*n D"]:
    """Rows of a table that has ``size`` rows for the first value of a site, then as many for the second, …"""
    return values + torch.arange(values.shape[-1], device=values.device) * size


def last(values: Tensor, chain: int) -> Tensor:
    """A map [b, D, \\*map], or [b, \\*map] where D is 1, with the values of a site together: [b, \\*map, D]."""
    return values[..., None] if chain == 1 else values.movedim(1, -1)


class ChainEmbedding(nn.Embedding):
    """The values of a site to the sum of a vector for each.

    Args:
        chain: D.
        size: K, number of values of each.
        dim: d.
    """

    def __init__(self, chain: int, size: int, dim: int) -> None:
        super().__init__(chain * size, dim)
        self.size = size

    def forward(self, values: Int64[Tensor, "*n D"]) -> Float[Tensor, "*n d"]:
        return super().forward(entries(values, self.size)).sum(-2)
