"""The window: what a site reads of the known values around it before any attention.

Attention must learn where a site's neighbours lie; a masked convolution (van den Oord et al. 2016, PixelCNN) is given
it:

    window_i = sum over offsets o of W_o embed(z_{i+o}) [i + o lies on the map and its value is known to i]
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vqstack.schedule import neighbours


class Window(nn.Module):
    """A convolution around each site that leaves out what is not known to it.

    Args:
        map_shape: sites of the map along each axis.
        radius: r; the window has 2r + 1 sites along each axis, its centre excepted.
        dim: features per site.
        group: number of the group in which each site is drawn, [N]: only sites of earlier groups are known to it; none:
            any may be. An offset at which no site is known gets no weights.

    Attributes:
        near: the site at each offset from each site, [N, O]; N where there is none to be read.
    """

    near: Tensor

    def __init__(
        self, map_shape: tuple[int, ...], radius: int, dim: int, group: Int64[Tensor, "N"] | None = None
    ) -> None:
        super().__init__()
        offsets = torch.cartesian_prod(*[torch.arange(-radius, radius + 1)] * len(map_shape)).view(-1, len(map_shape))
        near, inside = neighbours(map_shape, offsets[offsets.ne(0).any(1)])
        if group is not None:
            inside = inside & (group[near] < group[:, None])
        used = inside.any(0)
        self.register_buffer("near", near.where(inside, len(near))[:, used], persistent=False)
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
            known: which values are known in each image; none: all of earlier groups.
        """
        if known is not None:
            embedded = torch.where(known[..., None], embedded, 0)
        near = self.near[sites]
        readable = F.pad(embedded, (0, 0, 0, 1))  # site N reads as zeros
        # By index_select: what it does backwards repeats to the bit on several threads, unlike plain indexing's.
        return self.mix(readable.index_select(1, near.flatten()).unflatten(1, near.shape).flatten(2))

    def of_few(
        self, embed: Callable[[Int64[Tensor, "m"]], Float[Tensor, "b m d"]], sites: Int64[Tensor, "n"]
    ) -> Float[Tensor, "b n d"]:
        """The same, of which only the values near the sites are embedded.

        Args:
            embed: sites to the features of their values.
            sites: the sites asked for; all of earlier groups are known to them.
        """
        near, outside = self.near[sites], len(self.near)
        embedded = embed(near.clamp(max=outside - 1).flatten()).unflatten(1, near.shape)
        return self.mix(torch.where((near < outside)[..., None], embedded, 0).flatten(2))
