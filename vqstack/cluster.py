"""Cluster levels: a map of the same shape whose code is a table look-up of the code below, so that nothing leaks.

    z_{l+1} = table[z_l],    P_dec_{l+1}(z_l | z_{l+1}) > 0 only where table[z_l] = z_{l+1}

Every map that the decoder can draw has the codes above it that it was drawn from. A code says which cluster a site's
code lies in, the decoder which of the cluster it is (coarse-to-fine tokens, Guo et al. 2025).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from vqstack.level import Level, LevelSettings
from vqstack.likelihood import CodeHead
from vqstack.quantizer import Codebook, Quantized, QuantizerSettings
from vqstack.shapes import AnyCodes, Codes
from vqstack.window import FAMILIES

MOST = 4096
"""Codes that can be merged: the costs of all pairs are kept."""


class Clusters(Codebook):
    """A vector for each cluster, trained with the decoder that reads it."""

    def __init__(self, settings: QuantizerSettings) -> None:
        super().__init__(settings)
        self.vectors = nn.Parameter(torch.randn(self.size, self.dim))

    def codebook(self) -> Float[Tensor, "K d"]:
        return self.vectors


class ClusterTable(nn.Module):
    """The cluster of each code; from a file, too, every cluster has a code and every code a cluster.

    Args:
        codes, clusters: how many there are.
    """

    table: Tensor

    def __init__(self, codes: int, clusters: int) -> None:
        super().__init__()
        self.clusters = clusters
        self.register_buffer("table", torch.arange(codes) % clusters)

    def forward(self, codes: Codes) -> Codes:
        """The clusters of codes."""
        return self.table[codes]

    def members(self) -> Bool[Tensor, "clusters codes"]:
        """Which codes a cluster has."""
        return self.table == torch.arange(self.clusters, device=self.table.device)[:, None]

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *others: Any) -> None:
        table = state.get(f"{prefix}table")
        if table is not None and table.unique().tolist() != list(range(self.clusters)):
            errors: list[str] = others[-1]
            errors.append(f"{prefix}table must name each of 0 … {self.clusters - 1}, and nothing else")
            return
        super()._load_from_state_dict(state, prefix, *others)


class ClusterLevel(Level):
    """A level above 1 that groups the codes of the level below; its encoder is a table, its decoder is trained.

    Args:
        settings: see :class:`LevelSettings`; the encoder's own mean nothing here.
        below: the level whose codes are grouped.
    """

    quantizer: Clusters
    encoder: ClusterTable

    def __init__(self, settings: LevelSettings, below: Level) -> None:
        size, dim = below.quantizer.size, below.quantizer.dim
        super().__init__(below.upper, settings, channels=dim, head=CodeHead(size), padded=below.map_shape)
        self.embedding = nn.Embedding(size, dim) if settings.decoder.family != "product" else None

    def _codebook(self) -> Codebook:
        return Clusters(self.settings.quantizer)

    def _encoder(self, network: Any, channels: int, shared: dict[str, Any]) -> nn.Module:
        return ClusterTable(self.head.size, self.settings.quantizer.codebook_size)

    @property
    def networks(self) -> list[nn.Module]:
        return super().networks[1:]

    def read(self, values: Int64[Tensor, "b n c"]) -> Float[Tensor, "b n d"]:
        assert self.embedding is not None
        return self.embedding(values[..., 0])

    def quantize(self, below: AnyCodes) -> Quantized:
        codes = self.code(below)
        vectors = self.quantizer.unchecked_lookup(codes)
        return Quantized(vectors, codes, vectors.new_zeros(()))

    @torch.no_grad()
    def code(self, below: AnyCodes) -> Codes:
        return self.encoder(below)

    def support(self, codes: Codes) -> Bool[Tensor, "b P *map"]:
        return self.encoder.members()[codes].movedim(-1, 1)

    @torch.no_grad()
    def learn_from(self, below: Level, counts: Int64[Tensor, "K"], beside: Int64[Tensor, "K K"]) -> None:
        """Make the table, and let vectors start from the means of what they stand for.

        Args:
            below: the level whose codes are grouped.
            counts: how often each code is used.
            beside: how often each code has each other one beside it, see :func:`neighbours`.
        """
        codebook = below.quantizer.codebook().double().cpu()
        codebook = (codebook - codebook.mean(0)) / codebook.std().clamp(min=1e-6)
        weights = counts.double().cpu() + 1  # a code that was never met is cheap to merge, but not free
        if self.settings.quantizer.merge == "vectors":
            table = merged(weights, codebook, self.quantizer.size, lambda rows: rows.square().sum(-1))
        else:
            pairs, whole = beside.double().cpu(), beside.double().cpu().sum(0)
            rows = (pairs + whole / whole.sum()) / (pairs.sum(1, keepdim=True) + 1)
            table = merged(weights, rows, self.quantizer.size, lambda rows: -torch.special.entr(rows).sum(-1))
        self.encoder.table.copy_(table)
        shares = self.encoder.members().cpu() * weights
        self.quantizer.vectors.copy_((shares / shares.sum(1, keepdim=True)) @ codebook)


def neighbours(codes: Codes, size: int) -> Int64[Tensor, "K K"]:
    """How often each of ``size`` codes has each other one beside it, in either direction along an axis."""
    found = codes.new_zeros(size * size)
    for axis in range(1, codes.ndim):
        one, other = codes.narrow(axis, 0, codes.shape[axis] - 1), codes.narrow(axis, 1, codes.shape[axis] - 1)
        found += torch.bincount((one * size + other).flatten(), minlength=size * size)
    pairs = found.view(size, size)
    return pairs + pairs.T


def merged(
    weights: Float64[Tensor, "K"],
    rows: Float64[Tensor, "K n"],
    count: int,
    convex: Callable[[Tensor], Tensor],
) -> Int64[Tensor, "K"]:
    """The cluster of each row when the two that lose least are merged until ``count`` clusters are left.

    A cluster is its members' weight w and mean r; merging i and j to m loses ``w_i f(r_i) + w_j f(r_j) - w_m f(r_m)``.
    With f the square that is Ward's distance. With ``f = sum r ln r`` and rows that are distributions it is, in nats,
    what clusters tell less of them than codes did (agglomerative information bottleneck, Slonim and Tishby 1999).

    Args:
        weights: above 0.
        rows: of vectors, or of distributions.
        count: clusters, 1 … K.
        convex: f, of each row.
    """
    weights, rows, table = weights.clone(), rows.clone(), torch.arange(len(rows))
    own = weights * convex(rows)

    def losses(i: int) -> Float64[Tensor, "K"]:
        together = weights[i] + weights
        means = (weights[i] * rows[i] + weights[:, None] * rows) / together[:, None]
        return own[i] + own - together * convex(means)

    costs = torch.stack([losses(i) for i in range(len(rows))]).triu(1)
    costs[torch.ones_like(costs, dtype=torch.bool).tril()] = torch.inf
    for _ in range(len(rows) - count):
        i, j = divmod(int(costs.argmin()), len(rows))
        rows[i] = (weights[i] * rows[i] + weights[j] * rows[j]) / (weights[i] + weights[j])
        weights[i] += weights[j]
        own[i] = weights[i] * convex(rows[i])
        table[table == j] = i
        costs[j], costs[:, j] = torch.inf, torch.inf
        new = losses(i)
        costs[i] = torch.where(costs[i].isinf(), torch.inf, new)
        costs[:, i] = torch.where(costs[:, i].isinf(), torch.inf, new)
    return table.unique(return_inverse=True)[1]


def check_clusters(levels: tuple[LevelSettings, ...]) -> None:
    """What a cluster level needs of the level below it; ValueError where it is not so."""
    for number, level in enumerate(levels):
        if level.quantizer.kind != "cluster":
            continue
        name, below = f"levels.{number}", levels[number - 1]
        if number == 0:
            raise ValueError("levels.0.quantizer.kind: cluster groups codes, and level 1 has pixels below: use vq")
        if below.quantizer.codes > 1:
            raise ValueError(f"{name}.quantizer.kind: cluster groups codes, and a site below has several: use vq")
        if level.decoder.family not in FAMILIES.own:
            raise ValueError(f"{name}.decoder.family: a cluster level has one of {', '.join(sorted(FAMILIES.own))}")
        codes, clusters = below.quantizer.codebook_size, level.quantizer.codebook_size
        if level.map != below.map:
            raise ValueError(f"{name}.map: a cluster level has the map of the level below: set {list(below.map)}")
        if clusters > codes:
            raise ValueError(f"{name}.quantizer.codebook_size: {clusters} clusters of {codes} codes: choose fewer")
        if codes > MOST:
            raise ValueError(f"levels.{number - 1}.quantizer.codebook_size: clusters are made of {MOST} codes at most")
        if level.quantizer.dim != below.quantizer.dim:
            raise ValueError(f"{name}.quantizer.dim: the level below has {below.quantizer.dim}: set the same")
        if level.quantizer.merge == "neighbours" and math.prod(level.map) == 1:
            raise ValueError(f"{name}.quantizer.merge: in a map of one site no code has neighbours: use vectors")
