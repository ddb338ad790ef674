"""The interface of all quantizers, the search for the nearest code, and how a codebook is used."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vqstack.chains import entries
from vqstack.checks import check_floats, check_map
from vqstack.errors import InputError
from vqstack.quantizer.settings import QuantizerSettings
from vqstack.shapes import AnyCodes, Vectors


@dataclass(frozen=True)
class Quantized:
    """What quantization gives.

    Attributes:
        vectors: code vectors laid out like the input; gradients pass straight through to the input.
        codes: the code of each site, or its D codes.
        loss: the quantizer's own loss (commitment, entropy), a scalar; 0 outside training.
    """

    vectors: Vectors
    codes: AnyCodes
    loss: Tensor


@dataclass(frozen=True)
class Usage:
    """How a codebook is used over a set of codes: share of the codes in [0, 1], perplexity in codes."""

    share: float
    perplexity: float


def usage(counts: Int64[Tensor, "*D K"]) -> Usage:
    """Usage from the counts of each code; perplexity is exp(entropy of the frequencies), of D codebooks their mean."""
    counts = counts.cpu()  # some devices have no float64
    p = counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)
    return Usage((counts > 0).double().mean().item(), torch.special.entr(p).sum(-1).exp().mean().item())


def in_chunks(
    vectors: Float[Tensor, "n d"], codebook: Float[Tensor, "K d"], max_elements: int = 2**21
) -> Iterator[Float[Tensor, "_ d"]]:
    """The vectors in parts, each with at most ``max_elements`` distances to the codes: a table of all has no bound."""
    return iter(vectors.split(max(1, max_elements // len(codebook))))


def nearest(
    vectors: Float[Tensor, "n d"], codebook: Float[Tensor, "K d"], max_elements: int = 2**21
) -> Int64[Tensor, "n"]:
    """Index of the closest code, ``argmin_k |c_k|²/2 - x·c_k``, in chunks of at most ``max_elements`` distances."""
    half_squares = codebook.square().sum(1).div(2)
    # A graph has as many parts whatever it is given: one.
    parts = [vectors] if torch.compiler.is_exporting() else in_chunks(vectors, codebook, max_elements)
    return torch.cat([torch.addmm(half_squares, x, codebook.T, alpha=-1).argmin(1) for x in parts])


class Codebook(nn.Module, ABC):
    """Codes to vectors.

    Attributes:
        size: K, number of codes.
        codes: D, codes of a site.
        chain: what the D codes add to the shape of a map of codes, [b, D, \\*map]: nothing where D is 1.
        dim: d, features of a code vector.
    """

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.size, self.codes = settings.codebook_size, settings.codes
        self.chain = (self.codes,) if self.codes > 1 else ()
        self.dim = settings.dim

    def lookup(self, codes: AnyCodes, num_codes: int | None = None) -> Vectors:
        """The vectors of codes, laid out as a map. InputError where there are no such codes.

        Args:
            codes: see :data:`vqstack.shapes.Codes`.
            num_codes: of the D codes of a site, let only the first so many count: a coarser vector; none: all.
        """
        shape = tuple(getattr(codes, "shape", ()))[1:]
        if self.chain and shape[:1] != self.chain:
            raise InputError(f"codes of images have shape {shape}: a site has {self.codes}, give ({self.codes}, …)")
        check_map(codes, "codes", shape, self.size, self.device)
        return self.unchecked_lookup(codes, num_codes)

    def unchecked_lookup(self, codes: AnyCodes, num_codes: int | None = None) -> Vectors:
        """:meth:`lookup` of codes that are known to fit. One outside 0 … K-1 never wraps around."""
        sites = codes.shape[1 + len(self.chain) :]
        flat = codes.flatten(1) if not self.chain else rearrange(codes[:, :num_codes], "b D ... -> b (...) D")
        with torch.autocast(codes.device.type, enabled=False):
            vectors = self._lookup(flat)
        return rearrange(vectors, "b n d -> b d n").reshape(codes.shape[0], self.dim, *sites)

    def counts(self, codes: AnyCodes) -> Int64[Tensor, "*D K"]:
        """How often each code occurs, of each of the D codebooks."""
        counts = torch.bincount(self.rows(codes).flatten(), minlength=self.codes * self.size)
        return counts.view(*self.chain, self.size)

    def rows(self, codes: AnyCodes) -> AnyCodes:
        """The row of the codebook that each code stands for."""
        return entries(codes.movedim(1, -1), self.size).movedim(-1, 1) if self.chain else codes

    def _lookup(self, codes: Int64[Tensor, "b n *D"]) -> Float[Tensor, "b n d"]:
        return F.embedding(codes, self.codebook())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Codebook":
        """InputError where the vectors would become coarser: the nearest code would be another."""
        if torch.finfo(fn(torch.zeros(0)).dtype).bits < 32:  # the codec alone computes in float64
            raise InputError("a quantizer stays in float32: run what surrounds it under torch.autocast for less")
        return super()._apply(fn, recurse)

    @property
    def device(self) -> torch.device:
        """Where the codebook lives."""
        return next(chain(self.parameters(), self.buffers())).device

    @abstractmethod
    def codebook(self) -> Float[Tensor, "DK d"]:
        """All code vectors, those of the first code of a site first; the vector of a site is the sum over its codes."""


class Quantizer(Codebook):
    """Vectors to codes and back. ``forward`` is for training, ``encode`` and ``lookup`` for everything else.

    Attributes:
        accumulating: set by the training loop while gradients are being accumulated, so that moving averages are
            updated once an optimiser step and not once a micro-batch.
    """

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings)
        self.accumulating = False

    def forward(self, vectors: Vectors) -> Quantized:
        """Quantize with gradients; in training mode the codebook learns, in eval mode nothing changes.

        Distances and the codebook stay in float32 whatever the autocast setting. InputError where these are no vectors
        of its width; whether they are finite, a training step does not wait to know.
        """
        self._check_vectors(vectors)
        shape = vectors.shape
        with torch.autocast(vectors.device.type, enabled=False):
            flat = rearrange(vectors.float(), "b d ... -> b (...) d")
            if self.training:
                out, codes, loss = self._train_step(flat)
            else:
                codes = self._encode(flat).long()
                out, loss = self._lookup(codes), flat.new_zeros(())
            out = rearrange(out, "b n d -> b d n").reshape(shape)
        return Quantized(out, self._laid_out(codes, shape), loss)

    @torch.no_grad()
    def encode(self, vectors: Vectors) -> AnyCodes:
        """The code of each site. Changes nothing, in training mode either. InputError where these are no vectors."""
        self._check_vectors(vectors)
        if not vectors.isfinite().all():
            raise InputError("vectors: not all numbers are finite: the nearest code is that of none")
        return self.unchecked_encode(vectors)

    def _check_vectors(self, vectors: Vectors) -> None:
        axes = max(2, getattr(vectors, "ndim", 0))
        check_floats(vectors, "vectors", (None, self.dim, *[None] * (axes - 2)), self.device)

    @torch.no_grad()
    def unchecked_encode(self, vectors: Vectors) -> AnyCodes:
        """:meth:`encode` of vectors that are known to fit."""
        shape = vectors.shape
        with torch.autocast(vectors.device.type, enabled=False):
            codes = self._encode(rearrange(vectors.float(), "b d ... -> b (...) d"))
        return self._laid_out(codes, shape)

    def _laid_out(self, codes: Tensor, shape: tuple[int, ...]) -> AnyCodes:
        """Codes as a map, from those of the sites of vectors of this shape."""
        return (codes.mT if self.chain else codes).long().reshape(shape[0], *self.chain, *shape[2:])

    @abstractmethod
    def _encode(self, flat: Float[Tensor, "b n d"]) -> Tensor:
        """Codes [b, n], or [b, n, D]."""

    @abstractmethod
    def _train_step(self, flat: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor, Tensor]: ...


class NearestCode(Quantizer):
    """Quantizers whose code is the nearest entry of an explicit codebook."""

    def _encode(self, flat: Float[Tensor, "b n d"]) -> Tensor:
        return nearest(flat.flatten(0, 1), self.codebook()).view(flat.shape[:2])
