"""The window: what a site reads of the known values around it before any attention.

Attention must learn where a site's neighbours lie; on a map of 16 × 16 that takes longer than many a training run. A
masked convolution (van den Oord et al. 2016, PixelCNN) is given it:

    window_i = sum over offsets o of W_o embed(z_{i+o}) [i + o lies on the map and its value is known to i]
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn


class Window(nn.Module):
    """A convolution around each site that leaves out what is not known to it.

    Args:
        map_shape: rows and columns of the map.
        radius: r; the window has 2r + 1 rows and columns, its centre excepted.
        dim: features a site.
        known: which sites (last axis) may ever be known to a site (first axis); an offset at which none is gets no
            weights.

    Attributes:
        near: the site at each offset from each site, [N, O]; site 0 where there is none.
        inside: where there is one.
    """

    near: Tensor
    inside: Tensor

    @classmethod
    def between(cls, map_shape: tuple[int, int], radius: int, dim: int, known: Bool[Tensor, "N N"]) -> "Window | None":
        """A window, or none where no site would read anything."""
        _, inside = _neighbours(map_shape, radius, known)
        return cls(map_shape, radius, dim, known) if inside.any() else None

    def __init__(self, map_shape: tuple[int, int], radius: int, dim: int, known: Bool[Tensor, "N N"]) -> None:
        super().__init__()
        near, inside = _neighbours(map_shape, radius, known)
        used = inside.any(0)
        self.register_buffer("near", near[:, used], persistent=False)
        self.register_buffer("inside", inside[:, used], persistent=False)
        self.mix = nn.Linear(int(used.sum()) * dim, dim, bias=False)

    def forward(
        self,
        embedded: Float[Tensor, "b N d"],
        sites: Int64[Tensor, "n"],
        known: Bool[Tensor, "b N"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Features of the sites asked for.

        Args:
            embedded: features of the values; what they are where a value is not known to a site makes no difference.
            sites: the sites asked for.
            known: which values are known in each image; none: all that ``known`` of the constructor admits.
        """
        near, visible = self.near[sites], self.inside[sites][None]
        if known is not None:
            visible = visible & known[:, near]
        read = torch.where(visible[..., None], embedded[:, near], 0)
        return self.mix(rearrange(read, "b n o d -> b n (o d)"))


def _neighbours(
    map_shape: tuple[int, int], radius: int, known: Bool[Tensor, "N N"]
) -> tuple[Int64[Tensor, "N O"], Bool[Tensor, "N O"]]:
    """For each site and offset the site there, and whether it lies on the map and may be known."""
    rows, columns = map_shape
    reach = torch.arange(-radius, radius + 1)
    offset = torch.cartesian_prod(reach, reach)
    offset = offset[offset.ne(0).any(1)]
    site = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    row, column = (site[:, None] + offset).unbind(-1)
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    near = (row * columns + column).where(inside, 0)
    return near, inside & known.gather(1, near)
