"""Quantizers whose codes are fixed, a grid or frozen random vectors, and seen through learned linear maps."""

import torch
from jaxtyping import Float
from torch import Tensor
from vector_quantize_pytorch import FSQ, LFQ, SimVQ

from vqstack.nets import rename_state
from vqstack.quantizer.base import NearestCode, Quantizer
from vqstack.quantizer.settings import QuantizerSettings, fsq_levels


class FiniteScalar(Quantizer):
    """FSQ (Mentzer et al. 2023): each of a few dimensions is bounded and rounded; the codebook is the product grid."""

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings)
        self.library = FSQ(levels=list(fsq_levels(settings)), dim=settings.dim)
        rename_state(self, {"project_in": "library.project_in", "project_out": "library.project_out"})

    def codebook(self) -> Float[Tensor, "K d"]:
        return self.library.project_out(self.library.implicit_codebook)

    def _encode(self, flat: Float[Tensor, "b n d"]) -> Tensor:
        return self.library(flat)[1]

    def _train_step(self, flat: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor, Tensor]:
        vectors, codes = self.library(flat)
        return vectors, codes, flat.new_zeros(())


class LookupFree(Quantizer):
    """LFQ (Yu et al. 2023, MAGVIT-v2): the code is the signs of log2 K features; an entropy loss spreads their use."""

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings)
        self.library = LFQ(
            dim=settings.dim,
            codebook_size=settings.codebook_size,
            entropy_loss_weight=settings.entropy,
            commitment_loss_weight=settings.commitment,
        )
        rename_state(
            self,
            {"project_in": "library.project_in", "project_out": "library.project_out", "bit_values": "library.mask"},
        )

    def codebook(self) -> Float[Tensor, "K d"]:
        return self.library.indices_to_codes(torch.arange(self.size, device=self.library.codebook.device))

    def _encode(self, flat: Float[Tensor, "b n d"]) -> Tensor:
        signs: Tensor = self.library.project_in(flat) > 0
        return (signs * self.library.mask).sum(-1)

    def _train_step(self, flat: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(self.library(flat))


class LinearlyTransformed(NearestCode):
    """SimVQ (Zhu et al. 2024): a frozen random codebook seen through one learned linear map, so no code is left out."""

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings)
        self.library = SimVQ(
            dim=settings.dim,
            codebook_size=settings.codebook_size,
            rotation_trick=settings.gradient == "rotation",
            # The library's total is weight * (codebook term + ratio * commitment term).
            input_to_quantize_commit_loss_weight=settings.commitment,
            commitment_weight=1.0,
        )
        rename_state(self, {"transform": "library.code_transform", "frozen_codebook": "library.frozen_codebook"})

    def codebook(self) -> Float[Tensor, "K d"]:
        return self.library.codebook

    def _train_step(self, flat: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor, Tensor]:
        return self.library(flat)
