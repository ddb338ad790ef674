"""Codebooks that are moving averages of the vectors they stand for."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import kmeans

from vqstack.nets import rename_state
from vqstack.quantizer.base import NearestCode
from vqstack.quantizer.settings import QuantizerSettings


class MovingAverageVQ(NearestCode):
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
