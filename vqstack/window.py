"""Window decoders: each site sees the known values near it, what the level above says of it, and nothing else.

    P(x | z) = prod over sites i of P(x_i | known values in the window of i, features_i(z))

What lies outside the window only the code can tell, so an encoder that is trained with such a decoder puts it there
(Chen et al. 2017, "Variational lossy autoencoder"). A masked convolution (van den Oord et al. 2016, PixelCNN) reads the
window; 1×1 residual blocks follow, so that nothing else comes into sight (Zhang, Zhang and McDonagh 2021, "Out of
distribution generalization of deep generative models").

Sites with the same ``slope * row + column`` depend on earlier ones only and are drawn side by side.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int64, Shaped
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vqstack.errors import InputError
from vqstack.likelihood import Distribution, Factor, Head, by_site, site_factors
from vqstack.schedule import Schedule
from vqstack.shapes import AnyCodes, Nats, Pixels, widened


class DecoderSettings(BaseModel):
    """Settings of what a level's decoder sees beside the map above; its network is sized in the level's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    family: Literal["product", "window"] = Field(
        "product",
        description="product: sites are independent given the code map, drawn in one pass; window: each site also sees "
        "the known values near it, drawn diagonal by diagonal.",
    )
    radius: int = Field(3, ge=1, le=16, description="Rows and columns of a window on each side of its site, count.")
    slope: int = Field(
        0,
        ge=0,
        description="Columns by which a row runs ahead of the next while drawing; a site sees values with a smaller "
        "slope * row + column. 1: fewest steps; radius + 1, or 0: all that comes before it row by row.",
    )
    tile: tuple[int, int] = Field(
        (0, 0),
        description="Rows and columns of tiles that are drawn side by side, sites; they divide the map. A window ends "
        "at the border of its tile. 0 0: the map is one tile.",
    )
    features: int = Field(24, ge=1, description="Features that the code map gives to each site below, count.")
    width: int = Field(64, ge=1, description="Features of a site between masked convolution and likelihood, count.")
    blocks: int = Field(1, ge=0, description="Residual blocks of two 1x1 convolutions, count.")

    @property
    def steepness(self) -> int:
        """The slope, with 0 resolved: radius + 1 columns ahead no window tells row by row from diagonals."""
        return self.slope or self.radius + 1


class WindowNetwork(nn.Module):
    """Known values and features of the sites to the numbers of a likelihood; plain tensors in and out.

    Args:
        settings: see :class:`DecoderSettings`.
        map_shape: rows and columns of the map that is modelled.
        channels: features of a known value.
        head: the likelihood; it says where its numbers start and what they are relative to.

    Attributes:
        tile: rows and columns of a tile.
        schedule: of the sites of one tile.
        offsets: (rows, columns) from a site to those in its window, [O, 2].
    """

    offsets: Tensor

    def __init__(self, settings: DecoderSettings, map_shape: tuple[int, int], channels: int, head: Head) -> None:
        super().__init__()
        self.settings, self.map_shape, self.head = settings, map_shape, head
        self.tile = (settings.tile[0] or map_shape[0], settings.tile[1] or map_shape[1])
        if map_shape[0] % self.tile[0] or map_shape[1] % self.tile[1]:
            raise InputError(
                f"decoder.tile: {self.tile[0]}x{self.tile[1]} does not divide a map of {map_shape[0]}x{map_shape[1]}: "
                "choose divisors of both sides"
            )
        slope, radius, width = settings.steepness, settings.radius, settings.width
        self.schedule = Schedule.wavefront(self.tile, slope)
        reach = torch.arange(-radius, radius + 1)
        offsets = torch.cartesian_prod(reach, reach)
        offsets = offsets[slope * offsets[:, 0] + offsets[:, 1] < 0]
        self.register_buffer("offsets", offsets, persistent=False)
        self.below = max(0, int(offsets[:, 0].max()))  # rows of the window under its site
        self.look = nn.Parameter(torch.empty(width, channels + 1, len(offsets)))
        self.enter = nn.Conv2d(settings.features, width, 1)
        self.blocks = nn.ModuleList(PointwiseBlock(width) for _ in range(settings.blocks))
        self.leave = nn.Conv2d(width, head.parameters, 1)
        nn.init.normal_(self.look, std=(len(offsets) * channels) ** -0.5)
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        with torch.no_grad():
            self.leave.bias.copy_(head.start())

    def forward(self, known: Float[Tensor, "b c h w"], features: Float[Tensor, "b F h w"]) -> Float[Tensor, "b P h w"]:
        """Numbers of every site, each from the values in its window: one convolution over the whole map."""
        r, (rows, columns) = self.settings.radius, self.tile
        padded = F.pad(_with_inside(self.split(known)), (r, r, r, self.below))
        size = (r + self.below + 1, 2 * r + 1)
        places = (self.offsets[:, 0] + r) * size[1] + self.offsets[:, 1] + r
        kernel = self.look.new_zeros(*self.look.shape[:2], size[0] * size[1]).index_copy(2, places, self.look)
        seen = F.conv2d(padded, kernel.unflatten(2, size))

        def near(row: int, column: int) -> Tensor:
            return padded[:, :-1, r + row : r + row + rows, r + column : r + column + columns]

        return self.join(self._numbers(seen, self.split(features), near))

    def step(self, windows: Float[Tensor, "b n O i"], features: Float[Tensor, "b F 1 n"]) -> Float[Tensor, "b P 1 n"]:
        """The same of a few sites, from the values at all offsets of their windows (see :meth:`gather`)."""
        seen = torch.einsum("b n o c, d c o -> b d n", windows, self.look)[:, :, None]

        def near(row: int, column: int) -> Tensor:
            place = int((self.offsets == torch.tensor([row, column], device=windows.device)).all(1).nonzero())
            return rearrange(windows[:, :, place, :-1], "b n c -> b c 1 n")

        return self._numbers(seen, features, near)

    def _numbers(self, seen: Tensor, features: Tensor, near: Callable[[int, int], Tensor]) -> Tensor:
        hidden = seen + self.enter(features)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head.relative(widened(self.leave(F.relu(hidden))), near)

    def split(self, maps: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "tiles c th tw"]:
        """The tiles of maps, each a map of its own."""
        return rearrange(maps, "b c (p h) (q w) -> (b p q) c h w", h=self.tile[0], w=self.tile[1])

    def tile_sites(self) -> Int64[Tensor, "t n"]:
        """Numbers, in the whole map, of the sites of each tile."""
        site = torch.arange(self.map_shape[0] * self.map_shape[1], device=self.offsets.device)
        return self.split(site.view(1, 1, *self.map_shape)).flatten(1)

    def join(self, tiles: Float[Tensor, "tiles c th tw"]) -> Float[Tensor, "b c h w"]:
        """The inverse of :meth:`split`."""
        rows, columns = self.map_shape[0] // self.tile[0], self.map_shape[1] // self.tile[1]
        return rearrange(tiles, "(b p q) c h w -> b c (p h) (q w)", p=rows, q=columns)


class PointwiseBlock(nn.Module):
    """``x + conv(relu(conv(relu(x))))`` with 1×1 convolutions; the last starts at zero, so the block starts as x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        return x + self.last(F.relu(self.first(F.relu(x))))


class WindowDecoder(nn.Module):
    """From vectors of z_l to a distribution over the map below: features of its sites, then the window network.

    Args:
        up: vectors to features of each site below, padding included.
        window: see :class:`WindowNetwork`.
    """

    def __init__(self, up: nn.Module, window: WindowNetwork) -> None:
        super().__init__()
        self.up, self.window = up, window


class Windowed(Distribution):
    """One factor a diagonal (times the channels of a pixel), from the network's step; scored in one pass.

    Args:
        network: see :class:`WindowNetwork`.
        features: what the map above says of each site, [b, F, h, w].
        read: values of sites [b, n, channels] to what the network reads of them, [b, n, c].
        support: numbers of each site that stay; the others become -inf. None: all.
    """

    def __init__(
        self,
        network: WindowNetwork,
        features: Float[Tensor, "b F h w"],
        read: Callable[[Tensor], Tensor],
        support: Bool[Tensor, "b P h w"] | None = None,
    ) -> None:
        self.network, self.features, self.read, self.support = network, features, read, support
        self.batch, self.device = len(features), features.device
        head = network.head
        of_one_image = head(torch.zeros(1, head.parameters, *network.map_shape, device=self.device))
        self.shape, self.size, self.dtype = of_one_image.shape, of_one_image.size, of_one_image.dtype

    def parameters(self, values: Int64[Tensor, "b N channels"]) -> Float[Tensor, "b P h w"]:
        """Numbers of every site given the values in its window."""
        known = rearrange(self.read(values), "b (h w) c -> b c h w", h=self.network.map_shape[0])
        return limited(self.network(known, self.features), self.support)

    def unchecked_log_prob(self, x: AnyCodes | Pixels) -> Nats:
        return self.network.head(self.parameters(by_site(x, self.network.head.channels))).unchecked_log_prob(x)

    @torch.no_grad()
    def factors(self, values: Int64[Tensor, "b M"]) -> Iterator[Factor]:
        for sites, numbers in self.walk(values):
            yield from site_factors(self.network.head, numbers, sites, values)

    def walk(self, values: Int64[Tensor, "b M"]) -> Iterator[tuple[Int64[Tensor, "n"], Float[Tensor, "b P 1 n"]]]:
        """Sites of each diagonal and their numbers; before the next is asked for, ``values`` must hold their values.

        A step computes only its own sites, from a buffer of what is known so far.
        """
        network, r = self.network, self.network.settings.radius
        features, numbers = network.split(self.features).flatten(2), network.tile_sites()
        rows, columns = network.tile[0] + r + network.below, network.tile[1] + 2 * r
        known = self.features.new_zeros(len(features), rows * columns, network.look.shape[1])
        site = torch.arange(network.tile[0] * network.tile[1], device=self.device)
        place = (site // network.tile[1] + r) * columns + site % network.tile[1] + r
        known[:, place, -1] = 1
        offsets = network.offsets[:, 0] * columns + network.offsets[:, 1]
        schedule = network.schedule.on(self.device)
        for group in range(len(schedule)):
            mine = schedule.sites(group)
            sites = numbers[:, mine].flatten()
            found = network.step(known[:, place[mine, None] + offsets], features[:, :, None, mine])
            mine_only = None if self.support is None else self.support.flatten(2)[:, :, None, sites]
            yield sites, limited(rearrange(found, "(b t) p 1 n -> b p 1 (t n)", b=self.batch), mine_only)
            chosen = self.read(by_site(values, network.head.channels)[:, sites])
            known[:, place[mine], :-1] = rearrange(chosen, "b (t n) c -> (b t) n c", n=len(mine))


def limited(numbers: Float[Tensor, "b P h w"], support: Bool[Tensor, "b P h w"] | None) -> Float[Tensor, "b P h w"]:
    """Logits whose values outside of the support are impossible."""
    return numbers if support is None else numbers.masked_fill(~support, -torch.inf)


def _with_inside(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c+1 h w"]:
    """One channel more, which says where the map is: padding is 0 there, too."""
    return torch.cat([maps, torch.ones_like(maps[:, :1])], 1)
