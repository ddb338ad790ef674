"""Transformers over code maps: the prior over the top map.

A code model is a normalised distribution over maps of N codes, in raster order, given an optional class label. The
autoregressive one factorises ``P(z) = prod_i P(z_i | z_<i, label)``; x-transformers supplies the blocks. ``prefill``
and ``step`` are the two ways to run the network with its key-value cache.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from x_transformers import Decoder
from x_transformers.x_transformers import LayerIntermediates

from vqstack.likelihood import Distribution, Factor
from vqstack.nets import rename_state
from vqstack.shapes import Codes, Labels, Nats, Objective


class CodeModelSettings(BaseModel):
    """Settings of a transformer over codes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    depth: int = Field(4, ge=1, description="Transformer blocks.")
    dim: int = Field(128, ge=1, description="Features a site.")
    heads: int = Field(4, ge=1, description="Attention heads; divides dim.")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of features and attention weights dropped, training only."
    )
    labels: bool = Field(True, description="Condition on the class label where the data set has one.")

    @model_validator(mode="after")
    def check(self) -> "CodeModelSettings":
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} must be a multiple of heads {self.heads}")
        return self


class CodeModel(nn.Module, ABC):
    """A normalised model of code maps. ``forward`` is the training objective, ``distribution`` everything else.

    Attributes:
        map_shape: shape of one map.
        size: K, number of codes.
        classes: number of class labels; 0: unconditional.
    """

    def __init__(self, map_shape: tuple[int, ...], size: int, classes: int) -> None:
        super().__init__()
        self.map_shape, self.size, self.classes = map_shape, size, classes
        self.sites = int(torch.tensor(map_shape).prod())

    @abstractmethod
    def log_prob(self, codes: Codes, labels: Labels | None) -> Nats:
        """ln P(codes | label) of each image, nats."""

    @abstractmethod
    def distribution(self, batch: int, labels: Labels | None, device: torch.device) -> Distribution:
        """P(. | label) for each of ``batch`` images."""

    def forward(self, codes: Codes, labels: Labels | None = None) -> Objective:
        """Nats per site."""
        nats = -self.log_prob(codes, labels).mean()
        return Objective(nats / self.sites, {"nats": nats.detach()})


class AutoregressiveCodeModel(CodeModel):
    """Raster order, causal transformer: exact likelihood in one pass, a sample in N cached steps.

    The input is a begin token, which carries the class, then the codes; position i predicts code i, so the first code
    is scored like any other.

    Args:
        settings: see :class:`CodeModelSettings`.
        map_shape, size, classes: see :class:`CodeModel`.
    """

    def __init__(self, settings: CodeModelSettings, map_shape: tuple[int, ...], size: int, classes: int) -> None:
        super().__init__(map_shape, size, classes if settings.labels else 0)
        self.begin = nn.Parameter(torch.randn(settings.dim) * 0.02)
        self.label_embedding = nn.Embedding(max(self.classes, 1), settings.dim) if self.classes else None
        self.embedding = nn.Embedding(size, settings.dim)
        self.position = nn.Parameter(torch.randn(self.sites, settings.dim) * 0.02)
        self.backbone = Decoder(
            dim=settings.dim,
            depth=settings.depth,
            heads=settings.heads,
            attn_dim_head=settings.dim // settings.heads,
            attn_flash=True,
            attn_dropout=settings.dropout,
            ff_dropout=settings.dropout,
        )
        self.to_logits = nn.Linear(settings.dim, size)
        for table in (self.embedding, self.label_embedding):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)
        nn.init.zeros_(self.to_logits.weight)  # starts as the uniform distribution
        nn.init.zeros_(self.to_logits.bias)
        rename_state(self, _own_names(settings.depth))

    @property
    def networks(self) -> list[nn.Module]:
        """The plain networks, which can be compiled."""
        return [self.backbone]

    def _start(self, batch: int, labels: Labels | None) -> Float[Tensor, "b 1 d"]:
        start = self.begin.expand(batch, 1, -1)
        if self.label_embedding is None:
            return start
        if labels is None:
            raise ValueError("this model is conditional on the class: labels are needed")
        return start + self.label_embedding(labels)[:, None]

    def logits(self, codes: Int64[Tensor, "b N"], labels: Labels | None) -> Float[Tensor, "b N K"]:
        """Logits of every site given the sites before it, in one pass."""
        inputs = torch.cat([self._start(len(codes), labels), self.embedding(codes[:, :-1])], 1)
        return self.to_logits(self.backbone(inputs + self.position))

    def prefill(self, batch: int, labels: Labels | None) -> tuple[Float[Tensor, "b K"], LayerIntermediates]:
        """Logits of the first site, and the cache."""
        hidden, cache = self.backbone(self._start(batch, labels) + self.position[:1], return_hiddens=True)
        return self.to_logits(hidden[:, -1]), cache

    def step(
        self, codes: Int64[Tensor, "b"], site: int, cache: LayerIntermediates
    ) -> tuple[Float[Tensor, "b K"], LayerIntermediates]:
        """Logits of site ``site`` given the code of the site before it and the cache of all earlier ones."""
        inputs = self.embedding(codes)[:, None] + self.position[site]
        hidden, cache = self.backbone(inputs, cache=cache, return_hiddens=True)
        return self.to_logits(hidden[:, -1]), cache

    def log_prob(self, codes: Codes, labels: Labels | None) -> Nats:
        flat = codes.flatten(1)
        logits = self.logits(flat, labels).float()
        return -F.cross_entropy(logits.flatten(0, 1), flat.flatten(), reduction="none").view(flat.shape).sum(1)

    def distribution(self, batch: int, labels: Labels | None, device: torch.device) -> "Autoregressive":
        return Autoregressive(self, batch, labels, device)


class Autoregressive(Distribution):
    """N factors of one site each; walking them runs the cached network."""

    def __init__(self, model: AutoregressiveCodeModel, batch: int, labels: Labels | None, device: torch.device) -> None:
        self.model, self.labels = model, labels
        self.batch, self.shape, self.size, self.dtype, self.device = (
            batch,
            model.map_shape,
            model.size,
            torch.int64,
            device,
        )

    def log_prob(self, x: Codes) -> Nats:
        return self.model.log_prob(x, self.labels)

    @torch.no_grad()
    def factors(self, values: Int64[Tensor, "b N"]) -> Iterator[Factor]:
        logits, cache = self.model.prefill(self.batch, self.labels)
        for site in range(self.sites):
            if site:
                logits, cache = self.model.step(values[:, site - 1], site, cache)
            yield Factor(torch.tensor([site], device=self.device), logits[:, None].float().log_softmax(-1))


def _own_names(depth: int) -> dict[str, str]:
    """Parameter names of our own for the library's blocks (each is an attention and a feed-forward layer)."""
    names = {"final_norm.gain": "backbone.final_norm.gamma"}
    for block in range(depth):
        attention, feedforward = f"backbone.layers.{2 * block}", f"backbone.layers.{2 * block + 1}"
        names |= {
            f"blocks.{block}.attention_norm.gain": f"{attention}.0.0.gamma",
            f"blocks.{block}.query": f"{attention}.1.to_q",
            f"blocks.{block}.key": f"{attention}.1.to_k",
            f"blocks.{block}.value": f"{attention}.1.to_v",
            f"blocks.{block}.attention_out": f"{attention}.1.to_out",
            f"blocks.{block}.feedforward_norm.gain": f"{feedforward}.0.0.gamma",
            f"blocks.{block}.feedforward_in": f"{feedforward}.1.ff.0.0",
            f"blocks.{block}.feedforward_out": f"{feedforward}.1.ff.2",
        }
    return names
