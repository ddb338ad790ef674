"""The renderer's network: from the vectors of a code map to a picture, in stages."""

from jaxtyping import Float
from torch import Tensor, nn

from vqstack.nets import StagedUp
from vqstack.renderer.settings import RendererSettings
from vqstack.shapes import Vectors, cropped
from vqstack.variables import Variable


class Renderer(nn.Module):
    """``g(z_1)``: a picture to look at, from the vectors of the codes.

    Convolutions only, at every resolution from the map's to the image's, so that what lies on both sides of a border
    between two codes is drawn by one hand. It has no positions.

    Args:
        settings: see :class:`RendererSettings`.
        dim: numbers of a code's vector.
        map_shape: sites of the map along each axis.
        scale: pixels that one code covers along each axis.
        pixels: the variable that it draws.
    """

    def __init__(
        self,
        settings: RendererSettings,
        dim: int,
        map_shape: tuple[int, ...],
        scale: tuple[int, ...],
        pixels: Variable,
    ) -> None:
        super().__init__()
        self.pixels = pixels
        self.up = StagedUp(
            dim,
            settings.width,
            pixels.shape[0],
            blocks=settings.blocks,
            map_shape=map_shape,
            scale=scale,
            least=settings.least_width,
            each=settings.blocks,
            attention=settings.attention,
            norm=settings.norm,
        )

    @property
    def last_weight(self) -> nn.Parameter:
        """Of the last layer, at which the adversarial term is measured."""
        return self.up.last.weight

    def forward(self, vectors: Vectors) -> Float[Tensor, "b c *pixels"]:
        """Pictures, about -1 … 1, without the padding of images that were padded."""
        return cropped(self.up(vectors)[1], self.pixels.shape[1:])
