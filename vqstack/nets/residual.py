"""One fold between a map and a smaller one: networks whose convolutions all run at the resolution of the smaller.

The way down starts by folding pixels into channels, the way up ends in a pixel shuffle. A convolution at full
resolution would cost most of the training time and, where a window decoder sees the neighbours, adds little.
"""

from abc import ABC, abstractmethod
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vqstack.nets.blocks import ResidualBlock, convolution, fold, norm_layer, unfold
from vqstack.shapes import Vectors


class Trunk(nn.Module):
    """Residual blocks of one width after a learned offset for each site.

    The offset tells the otherwise shift-invariant convolutions where in the image they are.

    Args:
        width: channels.
        blocks: number of residual blocks.
        map_shape: sites along each axis at which the trunk runs.
        dropout: share of features dropped inside each block while training.
    """

    def __init__(self, width: int, blocks: int, map_shape: tuple[int, ...], dropout: float = 0.0) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(width, *map_shape))
        self.blocks = nn.Sequential(*(ResidualBlock(width, dropout, len(map_shape)) for _ in range(blocks)))
        self.level: nn.Parameter | None
        self.register_parameter("level", None)

    def share_blocks(self, blocks: list[ResidualBlock]) -> None:
        """Run these blocks, which other trunks run too, from now on; each reads its input with an offset of our own.

        The offsets [blocks, width] are the level's embedding; they start at zero.
        """
        self.blocks = nn.Sequential(*blocks)
        self.level = nn.Parameter(torch.zeros(len(blocks), len(self.position)))

    def forward(self, x: Vectors) -> Vectors:
        x = x + self.position
        for number, block in enumerate(self.blocks):
            x = block(x) if self.level is None else block(x, self.level[number])
        return x


class ScalingPath(nn.Module, ABC):
    """Between a map and a smaller one: a convolution in, a trunk and a 1×1 convolution out, at the smaller map's sites.

    Args:
        channels: features per site of the input.
        width, blocks, dropout: see :class:`Trunk`.
        out: features per site of the output.
        map_shape: sites of the smaller map along each axis.
        scale: how many sites of the larger map one site of the smaller one covers along each axis.

    Attributes:
        features: numbers of a site that the last convolution reads.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        out: int,
        *,
        blocks: int,
        map_shape: tuple[int, ...],
        scale: tuple[int, ...],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale, self.features = scale, width
        read, numbers = self._folded(channels, out, prod(scale))
        convolve = convolution(len(map_shape))
        self.enter = convolve(read, width, 3, padding=1)
        self.trunk = Trunk(width, blocks, map_shape, dropout)
        self.leave = nn.Sequential(norm_layer(width), nn.SiLU(), convolve(width, numbers, 1))

    @staticmethod
    @abstractmethod
    def _folded(channels: int, out: int, patch: int) -> tuple[int, int]:
        """Numbers read and put out for each site of the smaller map, which covers ``patch`` sites of the larger one."""


class Down(ScalingPath):
    """From a map with ``channels`` features per site to a smaller map with ``out`` features per site."""

    @staticmethod
    def _folded(channels: int, out: int, patch: int) -> tuple[int, int]:
        return channels * patch, out

    def forward(self, x: Float[Tensor, "b c *below"]) -> Float[Tensor, "b d *map"]:
        return self.leave(self.trunk(self.enter(fold(x, self.scale))))


class Up(ScalingPath):
    """From a map with ``channels`` features per site to a larger one with ``out`` features per site; mirrors Down."""

    @staticmethod
    def _folded(channels: int, out: int, patch: int) -> tuple[int, int]:
        return channels, out * patch

    def forward(self, x: Vectors) -> tuple[Float[Tensor, "b w *map"], Float[Tensor, "b out *below"]]:
        """What the last layer reads, at the smaller map, and the output."""
        normalise, activate, last = self.leave
        features = activate(normalise(self.trunk(self.enter(x))))
        return features, unfold(last(features), self.scale)
