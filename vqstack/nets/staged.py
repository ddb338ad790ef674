"""Several stages between a map and a smaller one, with convolutions at every resolution and no positions.

For large patches, which one fold would leave to a single layer.
"""

from abc import ABC, abstractmethod
from math import prod
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from vqstack.nets.blocks import Attention, ResidualBlock, convolution, fold, norm_layer, unfold
from vqstack.shapes import Vectors


def stages_of(scale: tuple[int, ...]) -> list[tuple[int, ...]]:
    """By how much each stage enlarges each axis: the prime factors of ``scale``, the largest first.

    ``(8, 8)`` gives three stages of (2, 2); an axis that has fewer factors than another stays as it is in the last.
    """
    factors = [_primes(size) for size in scale]
    count = max(map(len, factors))
    return [tuple(axis[i] if i < len(axis) else 1 for axis in factors) for i in range(count)]


def _primes(number: int) -> list[int]:
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found[::-1]


class Stage(nn.Module):
    """Between two resolutions: residual blocks at the larger map, a convolution and a shuffle from or to the smaller.

    Args:
        width: channels at the larger map.
        small: channels at the smaller map.
        factors: how many sites of the larger map one of the smaller covers along each axis.
        blocks: residual blocks, count.
        dropout, norm: of these.
    """

    def __init__(
        self, width: int, small: int, factors: tuple[int, ...], blocks: int, dropout: float, norm: str = "group"
    ) -> None:
        super().__init__()
        self.width, self.factors = width, factors
        self.blocks = nn.Sequential(*(ResidualBlock(width, dropout, len(factors), norm) for _ in range(blocks)))


class Growing(Stage):
    """From the smaller map to the larger.

    All sites under one start with the same numbers (Aitken et al. 2017): a shuffle of unrelated ones would begin with a
    pattern of dots, which training has to remove.
    """

    def __init__(self, width: int, small: int, factors: tuple[int, ...], *of_blocks: Any) -> None:
        super().__init__(width, small, factors, *of_blocks)
        self.grow = convolution(len(factors))(small, width * prod(factors), 3, padding=1)
        patch = prod(factors)
        for parameter in self.grow.parameters():
            parameter.data = parameter.data[::patch].repeat_interleave(patch, 0)  # in the order of unfold

    def forward(self, x: Vectors) -> Float[Tensor, "b out *larger"]:
        return self.blocks(unfold(self.grow(x), self.factors))


class Shrinking(Stage):
    """From the larger map to the smaller."""

    def __init__(self, width: int, small: int, factors: tuple[int, ...], *of_blocks: Any) -> None:
        super().__init__(width, small, factors, *of_blocks)
        self.shrink = convolution(len(factors))(width * prod(factors), small, 3, padding=1)

    def forward(self, x: Vectors) -> Float[Tensor, "b out *smaller"]:
        return self.shrink(fold(self.blocks(x), self.factors))


class StagedPath(nn.Module, ABC):
    """Stages between a map and a smaller one; channels are halved from stage to stage towards the larger.

    Args:
        channels, out: features per site of the input and of the output.
        width, blocks, dropout: residual blocks at the smaller map.
        map_shape: of the smaller map; not read.
        scale: how many sites of the larger map one site of the smaller one covers along each axis.
        least: channels that no stage falls below, unless ``width`` does.
        each: residual blocks of each stage, count.
        attention: after how many of the last residual blocks at the smaller map all its sites see each other, count.
        norm: see :func:`vqstack.nets.norm_layer`.
    """

    stage: ClassVar[type[Stage]]

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
        least: int = 32,
        each: int = 1,
        attention: int = 0,
        norm: str = "group",
    ) -> None:
        super().__init__()
        at_map = list[nn.Module]()
        for number in range(blocks):
            at_map.append(ResidualBlock(width, dropout, len(scale), norm))
            if number >= blocks - attention:
                at_map.append(Attention(width, len(scale), norm))
        self.blocks, self.scale = nn.Sequential(*at_map), scale
        stages, here = list[Stage](), width
        for factors in stages_of(scale):  # coarse to fine, whichever way the path goes
            finer = max(here // 2, min(least, here))
            stages.append(self.stage(finer, here, factors, each, dropout, norm))
            here = finer
        self.stages = nn.ModuleList(stages)
        self.width, self.finest = width, here  # channels at either end
        self._add_ends(channels, out, norm)

    @abstractmethod
    def _add_ends(self, channels: int, out: int, norm: str) -> None:
        """The layers before the first block or stage, and after the last."""

    @property
    def reach(self) -> tuple[int, ...] | None:
        """How many sites of the smaller map away along each axis what is read may lie; None: anywhere."""
        if any(isinstance(module, nn.GroupNorm | Attention) for module in self.modules()):
            return None
        return self._reach()

    @abstractmethod
    def _reach(self) -> tuple[int, ...]: ...

    def floats(self, sites: tuple[int, ...]) -> int:
        """Numbers that a backward pass keeps of an image, roughly: of each residual block six maps of its width."""
        here = prod(sites)
        kept = here * self.width * (6 * len(self.blocks) + 3)
        for stage in self.stages:
            assert isinstance(stage, Stage)
            here *= prod(stage.factors)
            kept += here * stage.width * (6 * len(stage.blocks) + 2)
        return kept


class StagedDown(StagedPath):
    """An :class:`EncoderNetwork` in stages; arguments as of :class:`StagedPath`."""

    stage = Shrinking

    def _add_ends(self, channels: int, out: int, norm: str) -> None:
        convolve = convolution(len(self.scale))
        self.enter = convolve(channels, self.finest, 3, padding=1)
        self.leave = nn.Sequential(norm_layer(self.width, norm), nn.SiLU(), convolve(self.width, out, 1))

    def _reach(self) -> tuple[int, ...]:
        far = [2 * len(self.blocks)] * len(self.scale)  # a convolution reads one site more, a residual block two
        for stage in self.stages:  # coarse to fine: back to what a code was made of
            assert isinstance(stage, Stage)
            far = [(n + 1) * factor + 2 * len(stage.blocks) for n, factor in zip(far, stage.factors, strict=True)]
        return tuple(-(-(n + 1) // patch) for n, patch in zip(far, self.scale, strict=True))

    def forward(self, x: Float[Tensor, "b c *below"]) -> Float[Tensor, "b d *map"]:
        x = self.enter(x)
        for stage in reversed(self.stages):
            x = stage(x)
        return self.leave(self.blocks(x))


class StagedUp(StagedPath):
    """A :class:`DecoderNetwork` in stages; arguments as of :class:`StagedPath`.

    Attributes:
        features: of each site of the smaller map.
        last: the convolution that puts out the numbers of the larger map.
    """

    stage = Growing

    def _add_ends(self, channels: int, out: int, norm: str) -> None:
        convolve, self.features = convolution(len(self.scale)), self.width
        self.enter = convolve(channels, self.width, 3, padding=1)
        self.ready = nn.Sequential(norm_layer(self.finest, norm), nn.SiLU())
        self.last = convolve(self.finest, out, 3, padding=1)

    def _reach(self) -> tuple[int, ...]:
        far = [1] * len(self.scale)
        for stage in reversed(self.stages):  # fine to coarse: back to the codes that a pixel was made of
            assert isinstance(stage, Stage)
            far = [-(-(n + 2 * len(stage.blocks)) // f) + 1 for n, f in zip(far, stage.factors, strict=True)]
        return tuple(n + 2 * len(self.blocks) + 1 for n in far)

    def forward(self, x: Vectors) -> tuple[Float[Tensor, "b w *map"], Float[Tensor, "b out *below"]]:
        """What the blocks at the smaller map put out, and the output."""
        features = x = self.blocks(self.enter(x))
        for stage in self.stages:
            x = stage(x)
        return features, self.last(self.ready(x))
