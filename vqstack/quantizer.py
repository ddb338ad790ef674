"""Vector quantizers behind one interface.

``vector-quantize-pytorch`` supplies the training rules (exponential moving averages, straight-through gradients,
entropy terms). This adapter hides its differences: one return type, int64 codes, flat ``[b, n, d]`` calls, float32
distances, no side effect outside training, revival of dead codes relative to expected use, and a nearest-code search
for encoding that needs bounded memory.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, LFQ, SimVQ, VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import kmeans

from vqstack.nets import rename_state
from vqstack.shapes import Codes, Vectors


class QuantizerSettings(BaseModel):
    """Settings of one level's quantizer."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["vq", "cosine", "fsq", "lfq", "simvq"] = Field(
        "vq",
        description="vq: nearest code, codebook by moving average; cosine: the same on the unit sphere; fsq: finite "
        "scalar quantization; lfq: lookup-free, one bit a dimension; simvq: a linear map of a frozen codebook.",
    )
    codebook_size: int = Field(64, ge=2, le=2**20, description="K, count of codes.")
    dim: int = Field(32, ge=1, description="d, count of features of a code vector.")
    commitment: float = Field(
        0.25,
        ge=0,
        description="Weight of the commitment loss (unused by fsq), nats a site per mean squared error of a feature.",
    )
    decay: float = Field(
        0.99, ge=0, lt=1, description="Share of the codebook's moving average kept at each step (vq, cosine)."
    )
    revival: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="A code whose average use falls below this share of the mean use is moved to an encoder output "
        "(vq, cosine); 0 switches revival off.",
    )
    kmeans: bool = Field(True, description="Start the codebook by k-means on the first training batch (vq, cosine).")
    stochastic: float = Field(
        0.0,
        ge=0,
        description="Temperature T at which training draws codes, P(k) ~ exp(-|x - c_k| / T), in units of a feature "
        "(vq; cosine: exp(x·c_k / T), no unit); 0: always the nearest, as in everything but training.",
    )
    gradient: Literal["identity", "rotation"] = Field(
        "identity", description="How gradients pass the quantizer: copied, or rotated and scaled (vq, cosine, simvq)."
    )
    fsq_levels: tuple[int, ...] | None = Field(
        None,
        description="Values of each dimension, count (fsq); their product is codebook_size. Default: balanced.",
    )
    entropy: float = Field(0.1, ge=0, description="Weight of the entropy loss, which is in nats a site (lfq), no unit.")

    @model_validator(mode="after")
    def check(self) -> "QuantizerSettings":
        if self.kind == "lfq" and self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"codebook_size {self.codebook_size} is no power of two, which lfq needs: choose one")
        if self.kind == "fsq" and math.prod(fsq_levels(self)) != self.codebook_size:
            raise ValueError(
                f"codebook_size {self.codebook_size} must be the product of fsq_levels, each at least 3: set fsq_levels"
            )
        if self.fsq_levels is not None and min(self.fsq_levels, default=0) < 3:
            raise ValueError("fsq_levels has a value below 3: give 3 or more for each dimension")
        return self


def fsq_levels(settings: QuantizerSettings) -> tuple[int, ...]:
    """Values per dimension for FSQ: as given, else ``codebook_size`` in factors of 8 at most (3 at least).

    The original paper finds five or more values a dimension best, so few large factors are preferred.
    """
    if settings.fsq_levels is not None:
        return settings.fsq_levels
    rest, levels = settings.codebook_size, list[int]()
    while rest > 8:
        factor = next((f for f in (8, 7, 6, 5, 4, 3) if rest % f == 0 and rest // f >= 3), 0)
        if not factor:
            return (0,)
        levels.append(factor)
        rest //= factor
    return tuple(sorted([*levels, rest], reverse=True)) if rest >= 3 else (0,)


@dataclass(frozen=True)
class Quantized:
    """What quantization gives.

    Attributes:
        vectors: code vectors laid out like the input; gradients pass straight through to the input.
        codes: the code of each site.
        loss: the quantizer's own loss (commitment, entropy), a scalar; 0 outside training.
    """

    vectors: Vectors
    codes: Codes
    loss: Tensor


@dataclass(frozen=True)
class Usage:
    """How a codebook is used over a set of codes: share of the codes in [0, 1], perplexity in codes."""

    share: float
    perplexity: float


def usage(counts: Int64[Tensor, "K"]) -> Usage:
    """Usage from the counts of each code; perplexity is exp(entropy of the frequencies)."""
    counts = counts.cpu()  # some devices have no float64
    p = counts.double() / counts.sum().clamp(min=1)
    return Usage((counts > 0).double().mean().item(), torch.special.entr(p).sum().exp().item())


def nearest(
    vectors: Float[Tensor, "n d"], codebook: Float[Tensor, "K d"], max_elements: int = 2**21
) -> Int64[Tensor, "n"]:
    """Index of the closest code, ``argmin_k |c_k|²/2 - x·c_k``, in chunks of at most ``max_elements`` distances."""
    half_squares = codebook.square().sum(1).div(2)
    rows = max(1, max_elements // len(codebook))
    return torch.cat([torch.addmm(half_squares, x, codebook.T, alpha=-1).argmin(1) for x in vectors.split(rows)])


class Quantizer(nn.Module, ABC):
    """Vectors to codes and back. ``forward`` is for training, ``encode`` and ``lookup`` for everything else.

    Attributes:
        size: K, number of codes.
        dim: d, features of a code vector.
        accumulating: set by the training loop while gradients are being accumulated, so that moving averages are
            updated once an optimiser step and not once a micro-batch.
    """

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.size = settings.codebook_size
        self.dim = settings.dim
        self.accumulating = False

    def forward(self, vectors: Vectors) -> Quantized:
        """Quantize with gradients; in training mode the codebook learns, in eval mode nothing changes.

        Distances and the codebook stay in float32 whatever the autocast setting.
        """
        shape = vectors.shape
        with torch.autocast(vectors.device.type, enabled=False):
            flat = rearrange(vectors.float(), "b d ... -> b (...) d")
            if self.training:
                out, codes, loss = self._train_step(flat)
            else:
                codes = self._encode(flat).long()
                out, loss = self._lookup(codes), flat.new_zeros(())
            out = rearrange(out, "b n d -> b d n").reshape(shape)
        return Quantized(out, codes.long().reshape(shape[0], *shape[2:]), loss)

    @torch.no_grad()
    def encode(self, vectors: Vectors) -> Codes:
        """The code of each site. Changes nothing, in training mode either."""
        shape = vectors.shape
        with torch.autocast(vectors.device.type, enabled=False):
            codes = self._encode(rearrange(vectors.float(), "b d ... -> b (...) d"))
        return codes.long().reshape(shape[0], *shape[2:])

    def lookup(self, codes: Codes) -> Vectors:
        """The vectors of codes, laid out as a map. A code outside 0 … K-1 is an error (it never wraps around)."""
        with torch.autocast(codes.device.type, enabled=False):
            vectors = self._lookup(codes.flatten(1))
        return rearrange(vectors, "b n d -> b d n").reshape(len(codes), self.dim, *codes.shape[1:])

    def _lookup(self, codes: Int64[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        return F.embedding(codes, self.codebook())

    @abstractmethod
    def codebook(self) -> Float[Tensor, "K d"]:
        """All code vectors."""

    @abstractmethod
    def _encode(self, flat: Float[Tensor, "b n d"]) -> Tensor: ...

    @abstractmethod
    def _train_step(self, flat: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor, Tensor]: ...


class _NearestCode(Quantizer):
    """Quantizers whose code is the nearest entry of an explicit codebook."""

    def _encode(self, flat: Float[Tensor, "b n d"]) -> Tensor:
        return nearest(flat.flatten(0, 1), self.codebook()).view(flat.shape[:2])


class MovingAverageVQ(_NearestCode):
    """VQ-VAE's quantizer (van den Oord et al. 2017): nearest code, codebook as moving average of what it stands for.

    A code whose average use falls below ``revival`` times the mean use is replaced by an encoder output of the batch.
    The library counts use in vectors per step over all processes, so the threshold is set from the size of each step.
    """

    cosine = False

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings)
        self.library = VectorQuantize(
            dim=settings.dim,
            codebook_size=settings.codebook_size,
            decay=settings.decay,
            commitment_weight=settings.commitment,
            threshold_ema_dead_code=1 if settings.revival > 0 else 0,
            kmeans_init=False,
            use_cosine_sim=self.cosine,
            rotation_trick=settings.gradient == "rotation",
            stochastic_sample_codes=settings.stochastic > 0,
            sample_codebook_temp=settings.stochastic,
        )
        # The library would start its k-means on whatever it sees first, in eval mode too; here the flag means "has seen
        # a real training batch" and this class decides when that is.
        self._state.initted.fill_(False)
        self._pending = 0
        rename_state(
            self,
            {
                "codebook": "library._codebook.embed",
                "average_use": "library._codebook.cluster_size",
                "average_sum": "library._codebook.embed_avg",
                "initialised": "library._codebook.initted",
            },
        )

    @property
    def _state(self) -> Any:  # the library's codebook, whose buffers are changed in place
        return self.library._codebook

    def codebook(self) -> Float[Tensor, "K d"]:
        return self._state.embed[0]

    def _train_step(self, flat: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor, Tensor]:
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if self._state.use_ddp != (world > 1):
            raise RuntimeError("quantizers were built before the processes had met: build none before Accelerator()")
        if torch._C._current_graph_task_id() != -1:  # inside a backward pass: a checkpoint runs the forward pass again
            raise RuntimeError("activation checkpointing would move the codebook twice a step: leave the quantizer out")
        self._pending += flat.shape[0] * flat.shape[1] * world
        mean_use = self._pending / self.size
        if not self._state.initted:
            self._initialise(flat.detach(), mean_use)
            if not self._state.initted:  # the library would start its own k-means on this batch
                return self._quantize_only(flat)
        self._state.threshold_ema_dead_code = self.settings.revival * mean_use
        self._state.reset_cluster_size = mean_use
        if self.settings.revival == 0:
            self._keep_unused()
        if not self.accumulating:
            self._pending = 0
        vectors, codes, loss = self.library(flat, accum_ema_update=self.accumulating)
        return vectors, codes, loss.clone()  # without a commitment term the library returns a buffer of its own

    @torch.no_grad()
    def _keep_unused(self) -> None:
        """Hold the weight of a code's average at one vector at least.

        The weight of a code that is never used falls with every step; once it is small beside the constant that the
        library adds to it, the code itself would shrink towards zero.
        """
        scale = (1 / self._state.cluster_size).clamp(min=1)
        self._state.cluster_size.mul_(scale)
        self._state.embed_avg.mul_(scale[..., None])

    def _quantize_only(self, flat: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor, Tensor]:
        """A training step that leaves the codebook alone; gradients are copied."""
        self._pending = 0
        codes, inputs = self._encode(flat), self._state.transform_input(flat)
        vectors = self._lookup(codes)
        loss = self.settings.commitment * F.mse_loss(inputs, vectors)
        return inputs + (vectors - inputs).detach(), codes, loss

    @torch.no_grad()
    def _initialise(self, flat: Float[Tensor, "b n d"], mean_use: float) -> None:
        """Start the codebook on a real batch: k-means, or the random codes with the use they are expected to have."""
        data = self._state.transform_input(flat).flatten(0, 1)
        spread = data.std(0)
        real = (torch.isfinite(data).all() & (spread.max() > 0)).int()
        if self._state.use_ddp:  # one answer for all: k-means on some processes only would wait for the others for ever
            torch.distributed.all_reduce(real, torch.distributed.ReduceOp.MIN)
        if not real:
            return  # a probe with constant input is not a real batch
        if self.settings.kmeans:
            if len(data) < self.size:  # too few vectors for K distinct means: add jittered copies
                copies = data.repeat(math.ceil(self.size / len(data)), 1)
                data = torch.cat([data, copies + 0.1 * spread * torch.randn_like(copies)])
                data = self._state.transform_input(data)
            means, _ = kmeans(
                data[None],
                self.size,
                self._state.kmeans_iters,
                use_cosine_sim=self.cosine,
                sample_fn=self._state.sample_fn,
                all_reduce_fn=self._state.kmeans_all_reduce_fn,
            )
            self._state.embed.copy_(means)
        # Every code starts with the use it can expect: neither dead at the first step nor too heavy to move.
        self._state.cluster_size.fill_(mean_use)
        self._state.embed_avg.copy_(self._state.embed * mean_use)
        self._state.initted.fill_(True)


class CosineVQ(MovingAverageVQ):
    """The same on the unit sphere: inputs and codes have length one (Yu et al. 2022, ViT-VQGAN)."""

    cosine = True

    def _encode(self, flat: Float[Tensor, "b n d"]) -> Tensor:
        return super()._encode(self._state.transform_input(flat))  # short vectors would drown in rounding


class FiniteScalar(Quantizer):
    """FSQ (Mentzer et al. 2023): each of a few dimensions is bounded and rounded; the codebook is the product grid."""

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings)
        self.library = FSQ(levels=list(fsq_levels(settings)), dim=settings.dim)
        rename_state(self, {"project_in": "library.project_in", "project_out": "library.project_out"})

    def codebook(self) -> Float[Tensor, "K d"]:
        return self.library.indices_to_codes(torch.arange(self.size, device=self.library.implicit_codebook.device))

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


class LinearlyTransformed(_NearestCode):
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


_KINDS: dict[str, type[Quantizer]] = {
    "vq": MovingAverageVQ,
    "cosine": CosineVQ,
    "fsq": FiniteScalar,
    "lfq": LookupFree,
    "simvq": LinearlyTransformed,
}


def build_quantizer(settings: QuantizerSettings) -> Quantizer:
    """The quantizer that the settings name."""
    return _KINDS[settings.kind](settings)
