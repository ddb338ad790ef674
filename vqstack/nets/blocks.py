"""What networks are made of: convolutions of maps of any number of axes, residual and attention blocks."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vqstack.errors import InputError
from vqstack.shapes import Vectors


def convolution(axes: int) -> Any:
    """The convolution of torch for maps of one, two or three axes."""
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]


def over_map(x: Float[Tensor, "d"], axes: int) -> Float[Tensor, "d ..."]:
    """Features that are the same at all sites, to be added to a map."""
    return x.view(-1, *(1,) * axes)


def fold(x: Float[Tensor, "b c *below"], scale: tuple[int, ...]) -> Float[Tensor, "b d *map"]:
    """Space to depth: every patch of ``scale`` sites becomes the channels of one site."""
    apart, together = _patches(len(scale))
    return rearrange(x, f"{apart} -> {together}", **{f"p{axis}": size for axis, size in enumerate(scale)})


def unfold(x: Float[Tensor, "b d *map"], scale: tuple[int, ...]) -> Float[Tensor, "b c *below"]:
    """Depth to space (pixel shuffle), the inverse of :func:`fold`; patches need not be square."""
    apart, together = _patches(len(scale))
    return rearrange(x, f"{together} -> {apart}", **{f"p{axis}": size for axis, size in enumerate(scale)})


def _patches(axes: int) -> tuple[str, str]:
    """For einops: a map of patches of p0 × p1 × … sites, and the map in which each is one site."""
    sites, patch = [f"m{axis}" for axis in range(axes)], [f"p{axis}" for axis in range(axes)]
    apart = " ".join(f"({m} {p})" for m, p in zip(sites, patch, strict=True))
    return f"b c {apart}", f"b (c {' '.join(patch)}) {' '.join(sites)}"


class SiteNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) of each site: ``w (x - mean) / sqrt(variance + 1e-5) + b`` over channels.

    No site enters the statistics of another, so that a part of a map is normalised as it is within the whole.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Vectors) -> Vectors:
        return F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias).movedim(-1, 1)


def norm_layer(width: int, norm: str = "group") -> nn.Module:
    """Normalisation of maps of so many channels.

    Args:
        width: channels.
        norm: ``group``: over the whole map, in groups of at least 16 channels, so that 1×1 maps still have something to
            normalise; ``site``: :class:`SiteNorm`.
    """
    if norm == "site":
        return SiteNorm(width)
    if norm != "group":
        raise InputError(f"networks.options.norm: {norm} is none: choose group or site")
    groups = max(g for g in (1, 2, 4, 8) if width % g == 0 and (g == 1 or width // g >= 16))
    return nn.GroupNorm(groups, width)


class ResidualBlock(nn.Module):
    """``x + conv(silu(norm(conv(silu(norm(x))))))``; the last convolution starts at zero, so the block starts as x."""

    is_block = True  # see vqstack/fit/blocks.py

    def __init__(self, width: int, dropout: float = 0.0, axes: int = 2, norm: str = "group") -> None:
        super().__init__()
        convolve = convolution(axes)
        last = convolve(width, width, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.body = nn.Sequential(
            norm_layer(width, norm),
            nn.SiLU(),
            convolve(width, width, 3, padding=1),
            norm_layer(width, norm),
            nn.SiLU(),
            nn.Dropout(dropout),
            last,
        )

    def forward(self, x: Vectors, offset: Float[Tensor, "d"] | None = None) -> Vectors:
        return x + self.body(x if offset is None else x + over_map(offset, x.ndim - 2))


class Attention(nn.Module):
    """``x + conv(attention(norm(x)))``: every site sees all others (Vaswani et al. 2017).

    Softmax attention over sites by heads of 64 channels, or one where they do not divide; no positions. The last 1×1
    convolution starts at zero, so the block starts as x. Its cost grows with the square of the sites.
    """

    is_block = True

    def __init__(self, width: int, axes: int = 2, norm: str = "group") -> None:
        super().__init__()
        convolve = convolution(axes)
        self.heads = width // 64 if width % 64 == 0 else 1
        self.norm = norm_layer(width, norm)
        self.look, self.leave = convolve(width, 3 * width, 1), convolve(width, width, 1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Vectors) -> Vectors:
        asked = rearrange(self.look(self.norm(x)).flatten(2), "b (three h d) n -> three b h n d", three=3, h=self.heads)
        seen = F.scaled_dot_product_attention(*asked)
        return x + self.leave(rearrange(seen, "b h n d -> b (h d) n").view(x.shape))
