"""Tables that come out equal on every processor, with any number of threads and any shape of batches.

In float32 they differ by some 1e-7 of a probability, and one step of the grid of 2^-24 ends the decoding. In float64
they differ by some 1e-14 of it (docs/codec.md has what was measured). So networks and likelihoods run in float64,
and of each probability a few binary digits are kept. Where one lies so near to the edge of two roundings that another
machine may choose the other, the encoder *leans* all tables of the block a little, and codes the block again.
"""

from copy import deepcopy

import torch
from jaxtyping import Float64
from torch import Tensor

from vqstack.model import HierarchicalModel

DIGITS = 6
"""Binary digits of a probability that are kept."""
LEAST = 2.0**-16
"""Probabilities below it count as none (constriction gives each value 2^-24), the others are multiples of it."""
LEANS = 16
"""Ways to round a block; which one was taken is its first symbol."""
RELATIVE, ABSOLUTE = 1e-11, 1e-14
"""How far another machine's probability may lie from ours: a share of it, and what the steps of a CDF near 1 add."""


def in_float64(model: HierarchicalModel) -> HierarchicalModel:
    """A copy that computes in float64. For the codec alone: elsewhere models stay in float32, in which they learned."""
    copy = deepcopy(model)
    for part in copy.children():
        part.double()
    return copy


class Rounding:
    """From probabilities to the whole numbers that are coded.

    Args:
        lean: below :data:`LEANS`.

    Attributes:
        unsure: whether some probability so far lay too near to an edge.
    """

    def __init__(self, lean: int) -> None:
        # Edges are numbers of few binary digits, and so are the probabilities of simple tables: never a factor of 1.
        self._factor = 1 + (lean + 0.5) / (LEANS * 2**DIGITS)
        self.unsure = False

    def __call__(
        self, probs: Float64[Tensor, "m n V"], blur: Float64[Tensor, "m n 1"] | float, precision: int
    ) -> Float64[Tensor, "m n V"]:
        """Whole numbers that stand to ``precision`` about as the probabilities do to 1.

        Args:
            probs: each row sums to one.
            blur: how often :data:`ABSOLUTE` fits into what a probability may be off.
            precision: a power of two.
        """
        counts = probs * (precision * self._factor)
        unit = torch.exp2(torch.frexp(counts).exponent.double() - DIGITS).clamp_(min=LEAST * precision)
        steps = counts / unit
        kept = steps.floor()
        off = (counts * RELATIVE + blur * (ABSOLUTE * precision)) / unit
        at_edge = (steps - kept < off) & (kept > 0) | (kept + 1 - steps < off)
        self.unsure |= bool(at_edge.any())
        return kept * unit
