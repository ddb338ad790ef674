"""Codebooks that are moving averages of the vectors they stand for."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from vqstack.nets import rename_state
from vqstack.quantizer.base import NearestCode, nearest
from vqstack.quantizer.settings import QuantizerSettings

KMEANS_ITERATIONS = 10
KMEANS_DISTANCES = 2**31  # distances at most; at 64 features two cores take some four seconds


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
        # The library draws on each process for itself, and not what one process with the whole batch would draw.
        self._state.replace = self._revive
        self._pending, self._sites = 0, 1
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
        self._sites = flat.shape[1]
        self._pending += flat.shape[0] * self._sites * world
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
        self.library.zero.requires_grad_(False)  # marked by the library; moved to a device it would be no leaf any more
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
        data = self._state.transform_input(self._of_all(flat)).flatten(0, 1)
        spread = data.std(0)
        if not (torch.isfinite(data).all() and spread.max() > 0):
            return  # a probe with constant input is not a real batch
        if self.settings.kmeans:
            if len(data) < self.size:  # too few vectors for K distinct means: add jittered copies
                copies = data.repeat(math.ceil(self.size / len(data)), 1)
                data = torch.cat([data, copies + 0.1 * spread * torch.randn_like(copies)])
                data = self._state.transform_input(data)
            self._state.embed.copy_(self._from_first(self._means(data)))
        # Every code starts with the use it can expect: neither dead at the first step nor too heavy to move.
        self._state.cluster_size.fill_(mean_use)
        self._state.embed_avg.copy_(self._state.embed * mean_use)
        self._state.initted.fill_(True)

    def _means(self, data: Float[Tensor, "n d"]) -> Float[Tensor, "K d"]:
        """K-means from K of the vectors; a code that no vector is nearest to stays where it is.

        At most ``KMEANS_DISTANCES`` distances: of many vectors a sample is taken, and large codebooks get fewer
        iterations, at last none. Then each code is a vector of the batch, as many vectors as codes would give anyway.
        """
        room = KMEANS_DISTANCES // self.size
        data = data[torch.randperm(len(data), device=data.device)[: max(self.size, room // KMEANS_ITERATIONS)]]
        means = data[: self.size].clone()
        for _ in range(min(KMEANS_ITERATIONS, room // len(data))):
            codes = nearest(data, means)
            sums = torch.zeros_like(means).index_add_(0, codes, data)
            counts = torch.bincount(codes, minlength=self.size)[:, None]
            means = torch.where(counts > 0, self._state.transform_input(sums / counts.clamp(min=1)), means)
        return means

    @torch.no_grad()
    def _revive(self, vectors: Float[Tensor, "1 n d"], batch_mask: Bool[Tensor, "1 K"], seq_mask: None = None) -> None:
        """Move dead codes to vectors of the whole batch, no two to the same; the rest waits for a later step.

        Takes the place of the library's ``replace``, whose arguments these are.
        """
        own, dead = self._state.transform_input(vectors)[0], batch_mask[0].nonzero()[:, 0]
        rank, world = self._place()
        total = len(own) * world
        if len(dead) > total:
            dead = dead[self._from_first(torch.randperm(len(dead), device=own.device)[:total])].sort().values
        chosen = self._from_first(torch.randperm(total, device=own.device)[: len(dead)])
        image, site = chosen // self._sites, chosen % self._sites
        mine = image % world == rank  # process r has every world-th image of the batch
        new = own.new_zeros(len(dead), self.dim)
        new[mine] = own[(image // world * self._sites + site)[mine]]
        if world > 1:
            torch.distributed.all_reduce(new)
        self._state.embed[0, dead] = new
        self._state.cluster_size[0, dead] = self._state.reset_cluster_size
        self._state.embed_avg[0, dead] = new * self._state.reset_cluster_size

    def _place(self) -> tuple[int, int]:
        """Number of this process, and of all."""
        if not self._state.use_ddp:
            return 0, 1
        return torch.distributed.get_rank(), torch.distributed.get_world_size()

    def _of_all(self, flat: Float[Tensor, "b n d"]) -> Float[Tensor, "B n d"]:
        """The vectors of the whole batch, in the order that one process would have them in."""
        _, world = self._place()
        if world == 1:
            return flat
        parts = [torch.empty_like(flat) for _ in range(world)]
        torch.distributed.all_gather(parts, flat.contiguous())
        return rearrange(torch.stack(parts), "w b n d -> (b w) n d")

    def _from_first(self, drawn: Tensor) -> Tensor:
        """What the first process has drawn, which draws what one process alone would."""
        if self._state.use_ddp:
            torch.distributed.broadcast(drawn, src=0)
        return drawn


class CosineVQ(MovingAverageVQ):
    """The same on the unit sphere: inputs and codes have length one (Yu et al. 2022, ViT-VQGAN)."""

    cosine = True

    def _encode(self, flat: Float[Tensor, "b n d"]) -> Tensor:
        return super()._encode(self._state.transform_input(flat))  # short vectors would drown in rounding
