"""The renderer's network: from the vectors of a code map to a picture, in stages."""

from math import prod

from jaxtyping import Float
from torch import Tensor, nn

from vqstack.nets import ResidualBlock, convolution, norm, unfold
from vqstack.renderer.settings import RendererSettings
from vqstack.shapes import Vectors, cropped
from vqstack.variables import Variable


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
    """Residual blocks, then a map that is larger: a convolution and a shuffle of its features to sites.

    Args:
        width, out: channels read and put out.
        factors: by how much each axis grows.
        blocks: number of residual blocks before that.
    """

    def __init__(self, width: int, out: int, factors: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        axes, self.factors = len(factors), factors
        self.blocks = nn.Sequential(*(ResidualBlock(width, axes=axes) for _ in range(blocks)))
        self.grow = convolution(axes)(width, out * prod(factors), 3, padding=1)

    def forward(self, x: Vectors) -> Float[Tensor, "b out *larger"]:
        return unfold(self.grow(self.blocks(x)), self.factors)


class Renderer(nn.Module):
    """``g(z_1)``: a picture to look at, from the vectors of the codes.

    Convolutions only, at every resolution from the map's to the image's, so that what lies on both sides of a border
    between two codes is drawn by one hand. It has no positions.

    Args:
        settings: see :class:`RendererSettings`.
        dim: numbers of a code's vector.
        scale: pixels that one code covers along each axis.
        pixels: the variable that it draws.
    """

    def __init__(self, settings: RendererSettings, dim: int, scale: tuple[int, ...], pixels: Variable) -> None:
        super().__init__()
        axes, self.pixels = len(scale), pixels
        convolve, width = convolution(axes), settings.width
        self.enter = convolve(dim, width, 3, padding=1)
        stages = []
        for factors in stages_of(scale):
            out = max(width // 2, min(settings.least_width, width))
            stages.append(Stage(width, out, factors, settings.blocks))
            width = out
        self.stages = nn.Sequential(*stages)
        self.blocks = nn.Sequential(*(ResidualBlock(width, axes=axes) for _ in range(settings.blocks)))
        self.ready = nn.Sequential(norm(width), nn.SiLU())
        self.last = convolve(width, pixels.shape[0], 3, padding=1)

    def floats(self, sites: tuple[int, ...]) -> int:
        """Numbers that a backward pass keeps of a picture, roughly: of each residual block six maps of its width."""
        kept, here = 0, prod(sites)
        for stage in self.stages:
            assert isinstance(stage, Stage)
            kept += here * stage.grow.in_channels * (6 * len(stage.blocks) + 1)
            here *= prod(stage.factors)
        return kept + here * self.last.in_channels * (6 * len(self.blocks) + 3)

    def forward(self, vectors: Vectors) -> Float[Tensor, "b c *pixels"]:
        """Pictures, about -1 … 1, without the padding of images that were padded."""
        drawn = self.last(self.ready(self.blocks(self.stages(self.enter(vectors)))))
        return cropped(drawn, self.pixels.shape[1:])
