"""Quantizers with several codes a site: each says what those before it left over, or each says a part of the vector.

    residual:  z_1 = nearest(x), z_2 = nearest(x - c_1), …          vector = c_1 + c_2 + … + c_D
    product:   x = (x_1, …, x_D), z_d = nearest(x_d)                vector = (c_1, …, c_D)

Residual quantization is that of SoundStream (Zeghidour et al. 2021) and RQ-VAE (Lee et al. 2022), product quantization
that of Jégou et al. (2011). In both the vector is a sum of one row of a table for each code; without the later rows it
is a coarser one.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vqstack.chains import entries
from vqstack.quantizer.base import Quantizer
from vqstack.quantizer.moving_average import MovingAverageVQ
from vqstack.quantizer.settings import QuantizerSettings

Step: TypeAlias = Callable[[MovingAverageVQ, Tensor], tuple[Tensor, Tensor, Tensor]]
"""A stage and vectors [b, n, d] to code vectors, codes [b, n] and the loss of the stage."""


class SeveralCodes(Quantizer):
    """D codebooks of K codes; each is a :class:`MovingAverageVQ` with its revival and its start by k-means.

    Args:
        settings: ``codes`` is D.
        dim: numbers of a vector that a stage reads.

    Attributes:
        stages: the quantizers of the D codes.
    """

    def __init__(self, settings: QuantizerSettings, dim: int) -> None:
        super().__init__(settings)
        own = settings.model_copy(update={"kind": "vq", "codes": 1, "dim": dim})
        modules = nn.ModuleList(MovingAverageVQ(own) for _ in range(settings.codes))
        self.stages = cast(Iterable[MovingAverageVQ], modules)

    @abstractmethod
    def _by_stage(self, flat: Float[Tensor, "b n d"], step: Step) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Code vectors [b, n, d] without a gradient, and codes and losses of all stages."""

    def _train_step(self, flat: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor, Tensor]:
        vectors, codes, losses = self._by_stage(flat, lambda stage, x: stage._train_step(x))
        return flat + (vectors - flat).detach(), torch.stack(codes, -1), torch.stack(losses).sum()

    def _encode(self, flat: Float[Tensor, "b n d"]) -> Int64[Tensor, "b n D"]:
        def step(stage: MovingAverageVQ, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            codes = stage._encode(x)
            return stage._lookup(codes), codes, x.new_zeros(())

        return torch.stack(self._by_stage(flat, step)[1], -1)

    def _lookup(self, codes: Int64[Tensor, "b n D"]) -> Float[Tensor, "b n d"]:
        return F.embedding(entries(codes, self.size), self.codebook()).sum(-2)


class ResidualVQ(SeveralCodes):
    """Each code stands for what those before it leave over of the vector."""

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings, settings.dim)

    def codebook(self) -> Float[Tensor, "DK d"]:
        return torch.cat([stage.codebook() for stage in self.stages])

    def _by_stage(self, flat: Float[Tensor, "b n d"], step: Step) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        left, codes, losses = flat, list[Tensor](), list[Tensor]()
        for stage in self.stages:
            vectors, chosen, loss = step(stage, left)
            left = left - vectors.detach()
            codes.append(chosen)
            losses.append(loss)
        return (flat - left).detach(), codes, losses


class ProductVQ(SeveralCodes):
    """Each code stands for a part of the vector of its own."""

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings, settings.dim // settings.codes)

    def codebook(self) -> Float[Tensor, "DK d"]:
        """The rows of a code are zero outside of its part of the vector."""
        return torch.block_diag(*(stage.codebook() for stage in self.stages))

    def _by_stage(self, flat: Float[Tensor, "b n d"], step: Step) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        parts = flat.chunk(self.codes, -1)
        vectors, codes, losses = zip(
            *(step(stage, part) for stage, part in zip(self.stages, parts, strict=True)), strict=True
        )
        return torch.cat(vectors, -1).detach(), list(codes), list(losses)
