"""Entropy coding of a distribution: its factors, as tables of whole numbers, through constriction's range coder.

Both sides must use the same probabilities to the last bit, so there is one representation: float64 tables of whole
numbers, ``floor(2^24 P)``, of which constriction makes its exact 24-bit model (each value keeps at least 2^-24). Sums
of whole numbers are exact in float64 in any order. Values of an ordered factor are coded digit by digit to the base 16,
each given those before it, in steps of its CDF. By the chain rule this costs what one step costs.

With a ``Rounding`` (``portable.py``) the whole numbers are those of that rounding, which every machine finds.
"""

import hashlib
from abc import ABC, abstractmethod
from math import log2

import constriction
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from vqstack.codec.portable import Rounding
from vqstack.errors import InputError
from vqstack.likelihood import Distribution, Factor, Ordered

PRECISION = 2**24
AHEAD = 2
"""Words that a decoder holds beyond the place it has reached."""

_FAMILY = constriction.stream.model.Categorical(perfect=False)


class Damaged(Exception):
    """The bytes are not what an encoder with this model has written."""


def code(
    coder: "Coder",
    distribution: Distribution,
    rows: int,
    truth: Int64[Tensor, "m N"] | None,
    known: tuple[Int64[Tensor, "m N"], Bool[Tensor, "m N"]] | None = None,
) -> Tensor:
    """Code one map for each of the first ``rows`` images of a batch, factor by factor; returns the maps [m, N].

    Args:
        coder: the direction.
        distribution: of the whole batch; the images past ``rows`` fill it up to its fixed shape.
        rows: m, images that are there.
        truth: their maps, where they are known, as to an encoder.
        known: values that both sides know, and where; these are not coded.
    """
    values = torch.zeros(distribution.batch, distribution.sites, dtype=torch.int64)
    for factor in distribution.factors(values):
        chosen = None if truth is None else truth[:, factor.sites]
        told = None if known is None else (known[0][:, factor.sites], known[1][:, factor.sites])
        values[:rows, factor.sites] = _code_factor(coder, distribution, factor, rows, chosen, told)
    return values[:rows]


def _code_factor(
    coder: "Coder",
    distribution: Distribution,
    factor: Factor,
    rows: int,
    truth: Int64[Tensor, "m n"] | None,
    known: tuple[Int64[Tensor, "m n"], Bool[Tensor, "m n"]] | None,
) -> Int64[Tensor, "m n"]:
    if not isinstance(factor, Ordered):
        return coder.step(coder.counts(factor.probs[:rows]), truth, known)
    values = torch.zeros(rows, len(factor.sites), dtype=torch.int64)
    there = torch.ones(rows, len(factor.sites), 1, dtype=torch.bool)
    for width in factor.widths:
        cdf = factor.runs(F.pad(values, (0, 0, 0, distribution.batch - rows)), width)[:rows]
        probs, mass = _between(cdf), cdf[..., -1:] - cdf[..., :1]
        if coder.rounding is not None:  # of a run that counts as impossible the values are nothing but rounding
            probs, mass = torch.where(there, probs, 1 / probs.shape[-1]), torch.where(there, mass, torch.inf)
        counts = coder.counts(probs, 1 / mass)
        told = None if known is None else ((known[0] - values) // width, known[1])
        digit = coder.step(counts, None if truth is None else (truth - values) // width, told)
        there = there & (counts.gather(-1, digit[..., None]) > 0)
        values = values + digit * width
    if bool((values >= distribution.size).any()):  # of probability 0, but damaged bytes can name them
        raise Damaged
    return values


def _between(cdf: Float64[Tensor, "m n E"]) -> Float64[Tensor, "m n V"]:
    """Probabilities of the bins between edges, given that the value is in one of them."""
    bins = cdf.diff(dim=-1).clamp(min=0) + 1e-18  # rounding may cross; where all is 0 any table will do
    return bins / bins.sum(-1, keepdim=True)


class Coder(ABC):
    """Codes symbols, each under a table of its own. An encoder is told the symbols, a decoder finds them.

    Attributes:
        rounding: of the tables; none: floor(2^24 P).
    """

    rounding: Rounding | None = None

    def counts(
        self, probs: Float64[Tensor, "m n V"], blur: Float64[Tensor, "m n 1"] | float = 1.0
    ) -> Float64[Tensor, "m n V"]:
        """The table of whole numbers; ``blur``: see :class:`Rounding`."""
        if not bool(torch.isfinite(probs).all()):
            raise InputError("the model's probabilities are not finite: train or export it again")
        return (probs * PRECISION).floor_() if self.rounding is None else self.rounding(probs, blur, PRECISION)

    def step(
        self,
        counts: Float64[Tensor, "m n V"],
        truth: Int64[Tensor, "m n"] | None,
        known: tuple[Int64[Tensor, "m n"], Bool[Tensor, "m n"]] | None = None,
    ) -> Int64[Tensor, "m n"]:
        """Code a symbol 0 … V-1 for each image and site, but where it is known; returns the symbols."""
        if known is not None:
            symbols, coded = known[0].clone(), ~known[1]
            if bool(coded.any()):
                few = self.step(counts[coded][:, None], None if truth is None else truth[coded][:, None])
                symbols[coded] = few[:, 0]
            return symbols
        given = None if truth is None else truth.flatten().to(torch.int32).numpy()
        found = self._step(counts.flatten(0, 1).numpy(), given)
        return torch.from_numpy(found.astype(np.int64)).view(counts.shape[:2])

    @abstractmethod
    def _step(self, counts: NDArray[np.float64], truth: NDArray[np.int32] | None) -> NDArray[np.int32]:
        """Code a symbol for each row of the table."""

    def mark(self, row: str) -> None:  # noqa: B027  # only the encoder counts
        """A row of the ledger ends here."""


class Encoder(Coder):
    """Symbols to bytes.

    Attributes:
        bits: information coded so far, by row of the ledger.
    """

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()
        self._coded = 0.0
        self._cuts: list[int] = []
        self.bits: dict[str, float] = {}

    def _step(self, counts: NDArray[np.float64], truth: NDArray[np.int32] | None) -> NDArray[np.int32]:
        assert truth is not None
        self._coder.encode(truth, _FAMILY, counts)
        return truth

    def mark(self, row: str) -> None:
        words, (_, width) = self._coder.pos()
        coded = 32 * words + 64 - log2(width)
        self.bits[row] = coded - self._coded
        self._coded = coded

    def cut(self) -> None:
        """A section ends here: with what comes before, it holds all that decoding this far needs."""
        self._cuts.append(4 * (self._coder.pos()[0] + AHEAD))

    def sections(self) -> list[bytes]:
        """The bytes of the sections. Together they are one stream, so all but the last cost no tail."""
        stream = _shortest(self._coder)
        ends = [min(end, len(stream)) for end in self._cuts[:-1]] + [len(stream)]
        return [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _shortest(coder: constriction.stream.queue.RangeEncoder) -> bytes:
    """The coder's words, most significant byte first, ended at the first byte after which any bytes may follow."""
    stream = coder.get_compressed().astype(">u4").tobytes()
    finished, (lower, width) = coder.pos()
    base = int.from_bytes(stream[: 4 * finished], "big")
    if lower + width > 2**64 and int.from_bytes(stream[4 * finished :][:4], "big") << 32 < lower:
        base -= 1  # a carry was pending, and the library has settled it by adding it
    for count in range(9):
        unit = 2 ** (64 - 8 * count)
        value = -(-lower // unit) * unit
        if value + unit <= lower + width:
            break
    return ((base << 64) + value).to_bytes(4 * finished + 8, "big")[: 4 * finished + count]


class Decoder(Coder):
    """Bytes to symbols. Where they are not what an encoder wrote, it finds some other symbols or raises Damaged."""

    def __init__(self, stream: bytes) -> None:
        padded = stream + bytes(-len(stream) % 4 + 4 * AHEAD)
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))

    def _step(self, counts: NDArray[np.float64], truth: NDArray[np.int32] | None) -> NDArray[np.int32]:
        try:
            return self._coder.decode(_FAMILY, counts)
        except AssertionError as error:  # what the library raises for bytes that no encoder can have written
            raise Damaged from error


class Probe(Coder):
    """A hash of all tables that coding known symbols goes through, and of constriction's bytes for them."""

    def __init__(self) -> None:
        self._hash, self._encoder = hashlib.sha256(), Encoder()

    def _step(self, counts: NDArray[np.float64], truth: NDArray[np.int32] | None) -> NDArray[np.int32]:
        self._hash.update(counts.tobytes())
        return self._encoder._step(counts, truth)

    def hashed(self) -> bytes:
        """32 bytes."""
        self._encoder.cut()
        hashed = self._hash.copy()
        hashed.update(b"".join(self._encoder.sections()))
        return hashed.digest()
