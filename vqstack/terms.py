"""Terms: a hierarchy is an ordered list of them, top first, and its likelihood is their product.

    P(label) P(z_L | label) P(z_{L-1} | z_L, …) … P(pixels | z_1, …)

Scoring, drawing and coding are one loop each over the list: :func:`code_lengths`, :func:`descend`, and
:meth:`vqstack.codec.blocks.BlockCodec`. Values travel as a mapping from the names of variables to tensors of one batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import Tensor

from vqstack.level import Level
from vqstack.likelihood import Clamped, Distribution, Draw, Frequencies, Known, noise, walked_by_site
from vqstack.shapes import Nats
from vqstack.variables import Variable

Values: TypeAlias = Mapping[str, Tensor]
"""Values of variables by their names, of the same images."""


class Term(ABC):
    """``P(target | given)``: one factor of the likelihood, one row of the ledger.

    Args:
        row: its name in the ledger.
        target: the variable that it is a distribution over.
    """

    def __init__(self, row: str, target: Variable) -> None:
        self.row, self.target = row, target

    @abstractmethod
    def distribution(
        self, given: Values, num: int, *, known: Known | None = None, guidance: float = 1.0
    ) -> Distribution:
        """Of the target, for ``num`` images.

        Args:
            given: values of the variables above the target; others are not read.
            num: how many images.
            known: sites of the target whose values are given.
            guidance: scale of classifier-free guidance, where the term reads labels; 1: none.
        """


class LabelTerm(Term):
    """``P(label)``, by frequencies.

    Args:
        target: see :class:`Term`.
        probs: of each class, [classes].
    """

    def __init__(self, target: Variable, probs: Tensor) -> None:
        super().__init__("label", target)
        self.probs = probs

    def distribution(
        self, given: Values, num: int, *, known: Known | None = None, guidance: float = 1.0
    ) -> Distribution:
        return Frequencies(self.probs.expand(num, -1))


class DecoderTerm(Term):
    """``P_dec_l(z_{l-1} | z_l)``: what a level's own decoder says."""

    def __init__(self, level: Level) -> None:
        super().__init__(f"level-{level.number}", level.lower)
        self.level = level

    def distribution(
        self, given: Values, num: int, *, known: Known | None = None, guidance: float = 1.0
    ) -> Distribution:
        codes = given[self.level.upper.name]
        decoded = self.level.distribution(self.level.quantizer.unchecked_lookup(codes), codes)
        return decoded if known is None else Clamped(decoded, known)


def code_lengths(terms: Sequence[Term], values: Values, num: int) -> dict[str, Nats]:
    """``-ln P(target | given)`` of each image by row, nats; the sum over rows is that of the product."""
    return {term.row: -term.distribution(values, num).unchecked_log_prob(values[term.target.name]) for term in terms}


def code_lengths_by_site(terms: Sequence[Term], values: Values, num: int) -> dict[str, Tensor]:
    """What :func:`code_lengths` adds up, nats: of each site given those drawn before it, as the target is laid out."""
    lengths = dict[str, Tensor]()
    for term in terms:
        target = values[term.target.name]
        lengths[term.row] = -walked_by_site(term.distribution(values, num), target).view(target.shape)
    return lengths


def descend(
    terms: Sequence[Term],
    given: Values,
    draws: Sequence[Draw],
    seed: int,
    indices: Sequence[int],
    known: Mapping[int, Known] | None = None,
) -> dict[str, Tensor]:
    """``given`` and the targets of the terms, each drawn given those before it.

    Args:
        terms: in their order.
        given: values of variables above the first target.
        draws: how each target is drawn.
        seed, indices: name the noise of each image (see :func:`vqstack.likelihood.noise`).
        known: partly filled maps by the number of their variable.
    """
    values = dict(given)
    for term, how in zip(terms, draws, strict=True):
        number = term.target.number
        told = None if known is None else known.get(number)
        distribution = term.distribution(values, len(indices), known=told, guidance=how.guidance)
        values[term.target.name] = distribution.sample(noise(seed, list(indices), number, distribution.sites), how)
    return values
