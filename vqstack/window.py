"""Window decoders: each site sees the known values near it, what the level above says of it, and nothing else.

    P(x | z) = prod over sites i of P(x_i | known values in the window of i, features_i(z))

What lies outside the window only the code can tell, so an encoder that is trained with such a decoder puts it there
(Chen et al. 2017, "Variational lossy autoencoder"). A masked convolution (van den Oord et al. 2016, PixelCNN) reads the
window; 1×1 residual blocks follow, so that nothing else comes into sight (Zhang, Zhang and McDonagh 2021, "Out of
distribution generalization of deep generative models").

Sites with the same ``slope * row + column`` depend on earlier ones only and are drawn side by side (maps of other
numbers of axes: see :func:`vqstack.schedule.advance`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from math import prod
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int64, Shaped
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from vqstack.errors import InputError
from vqstack.likelihood import Distribution, Factor, Head, Near, by_site, site_factors
from vqstack.nets import convolution, over_map
from vqstack.registry import Registry
from vqstack.schedule import Schedule, advance, raveled
from vqstack.settings import Settings
from vqstack.shapes import AnyCodes, Nats, Pixels, by_axis, filled, tiled, untiled, widened

FAMILIES = Registry[Any]("family", dict.fromkeys(("product", "window")))
"""What a decoder has after its way up, by family: nothing for a product, else a network as :class:`WindowNetwork`."""
register_family = FAMILIES.register
"""Let ``decoder.family`` name a class of yours, whose sites see known values of the map below.

It is a module, built as ``network(settings, map_shape, channels, head)``, with a method ``distribution(features, read,
support)`` as :meth:`WindowNetwork.distribution`. Refiners correct, and cluster levels have, decoders of the project's
own families only: there ``support`` is not None.
"""


class DecoderSettings(Settings):
    """Settings of what a level's decoder sees beside the map above; its network is sized in the level's settings."""

    family: Annotated[str, AfterValidator(FAMILIES.check)] = Field(
        default="product",
        max_length=80,
        description="product: sites are independent given the code map, drawn in one pass; window: each site also sees "
        "the known values near it, drawn diagonal by diagonal; or the name under which a class of yours is registered "
        "(register_family).",
    )
    options: dict[str, int | float | str | bool] = Field(
        default={}, description="What a family of yours is given beside the other settings; any unit."
    )
    radius: int = Field(
        default=3, ge=1, le=256, description="Sites of a window on each side of its own, along each axis, count."
    )
    slope: int = Field(
        default=0,
        ge=0,
        description="Columns by which a row runs ahead of the next while drawing; a site sees values with a smaller "
        "slope * row + column. 1: fewest steps; radius + 1, or 0: all that comes before it row by row.",
    )
    tile: tuple[int, ...] = Field(
        default=(0, 0),
        description="Sites along each axis (of images: rows and columns) of tiles that are drawn side by side; they "
        "divide the map. A window ends at the border of its tile. Zeros: the map is one tile.",
    )
    adaptive: bool = Field(
        default=False,
        description="Known values are read, and widths of logistics given, in units of how much neighbours in the "
        "window differ: for sounds, which are loud and quiet (pixels or numbers of a logistic_mixture only).",
    )
    features: int = Field(default=24, ge=1, description="Features that the code map gives to each site below, count.")
    width: int = Field(
        default=64, ge=1, description="Features of a site between masked convolution and likelihood, count."
    )
    blocks: int = Field(default=1, ge=0, description="Residual blocks of two 1x1 convolutions, count.")

    def unused(self) -> dict[str, str]:
        """Name of each field that is read by nothing -> why, and what to do."""
        why = "of window decoders alone: set family to window, or leave it out"
        fields = [name for name in type(self).model_fields if name not in ("family", "options")]
        return dict.fromkeys(fields, why) if self.family == "product" else {}

    @property
    def steepness(self) -> int:
        """The slope, with 0 resolved: radius + 1 columns ahead no window tells row by row from diagonals."""
        return self.slope or self.radius + 1


class WindowNetwork(nn.Module):
    """Known values and features of the sites to the numbers of a likelihood; plain tensors in and out.

    Args:
        settings: see :class:`DecoderSettings`.
        map_shape: sites along each axis of the map that is modelled.
        channels: features of a known value.
        head: the likelihood; it says where its numbers start and what they are relative to.

    Attributes:
        tile: sites of a tile along each axis.
        schedule: of the sites of one tile.
        offsets: from a site to those in its window, [O, axes]; ``places`` says where one stands among them.
        after: how far the window reaches past its site along each axis; before it that is the radius.
    """

    offsets: Tensor
    pairs: Tensor

    def __init__(self, settings: DecoderSettings, map_shape: tuple[int, ...], channels: int, head: Head) -> None:
        super().__init__()
        self.settings, self.map_shape, self.head = settings, map_shape, head
        self.chain = head.network
        self.tile = tile_of(settings, map_shape)
        slope, radius, width, axes = settings.steepness, settings.radius, settings.width, len(map_shape)
        self.schedule = Schedule.wavefront(self.tile, slope)
        offsets = torch.cartesian_prod(*[torch.arange(-radius, radius + 1)] * axes).view(-1, axes)
        offsets = offsets[advance(offsets, slope) < 0]
        self.register_buffer("offsets", offsets, persistent=False)
        self.places = {tuple(offset): place for place, offset in enumerate(offsets.tolist())}
        self.after = (max(0, int(offsets[:, 0].max())), *(radius,) * (axes - 1))
        # Pairs of sites in the window that lie beside each other along the last axis, the later one first.
        step = offsets[:, None] - offsets
        pairs = ((step[..., :-1] == 0).all(-1) & (step[..., -1] == 1)).nonzero().T
        self.register_buffer("pairs", pairs, persistent=False)
        if settings.adaptive and (not pairs.numel() or getattr(head, "kind", "") != "logistic_mixture"):
            raise InputError("decoder.adaptive: needs pixels of a logistic_mixture, and a radius of 2: leave it out")
        self.loudness = nn.Parameter(torch.zeros(width)) if settings.adaptive else None
        self.look = nn.Parameter(torch.empty(width, channels + 1, len(offsets)))
        convolve = convolution(axes)
        self.enter = convolve(settings.features, width, 1)
        self.blocks = nn.ModuleList(PointwiseBlock(width, axes) for _ in range(settings.blocks))
        self.leave = convolve(width, head.parameters, 1)
        nn.init.normal_(self.look, std=(len(offsets) * channels) ** -0.5)
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        with torch.no_grad():
            self.leave.bias.copy_(head.start())

    def forward(
        self, known: Float[Tensor, "b c *map"], features: Float[Tensor, "b F *map"]
    ) -> Float[Tensor, "b P *map"]:
        """Numbers of every site, each from the values in its window: one convolution over the whole map."""
        r = self.settings.radius
        padded = F.pad(_with_inside(self.split(known)), [n for after in self.after[::-1] for n in (r, after)])
        size = tuple(r + after + 1 for after in self.after)
        places = raveled(self.offsets + r, size)
        kernel = self.look.new_zeros(*self.look.shape[:2], prod(size)).index_copy(2, places, self.look)
        kernel, convolve = kernel.unflatten(2, size), (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]
        unit = None
        if self.loudness is None:
            seen = convolve(padded, kernel)
        else:
            steps = F.pad(padded[:, :-1].diff(dim=-1), (1, 0)).square().mean(1, keepdim=True)
            pairs = kernel.new_zeros(prod(size)).index_fill(0, places[self.pairs[0]], 1 / self.pairs.shape[1])
            unit = self._unit(convolve(steps, pairs.view(1, 1, *size)))
            seen = convolve(padded[:, :-1], kernel[:, :-1]) / unit + convolve(padded[:, -1:], kernel[:, -1:])

        def at(*offset: int) -> Tensor:
            there = (slice(r + by, r + by + sites) for by, sites in zip(offset, self.tile, strict=True))
            return padded[(slice(None), slice(-1), *there)]

        return self.join(self._numbers(seen, self.split(features), Near(len(size), r, at, unit)))

    def step(self, windows: Float[Tensor, "b n O i"], features: Float[Tensor, "b F *one"]) -> Float[Tensor, "b P *one"]:
        """The same of n sites, along the last axis, from the values at all offsets of their windows."""
        one, read, unit = features.shape[2:], windows, None
        if self.loudness is not None:
            now, before = (windows[:, :, places, :-1] for places in self.pairs)
            measured = self._unit((now - before).square().mean((2, 3), keepdim=True))
            read, unit = torch.cat([windows[..., :-1] / measured, windows[..., -1:]], -1), measured.view(-1, 1, *one)
        seen = torch.einsum("b n o c, d c o -> b d n", read, self.look).unflatten(2, one)

        def at(*offset: int) -> Tensor:
            return windows[:, :, self.places[offset], :-1].mT.unflatten(2, one)

        return self._numbers(seen, features, Near(len(one), self.settings.radius, at, unit))

    def _unit(self, squares: Tensor) -> Tensor:
        """How much neighbours in the window differ, at least half a step between values."""
        return (squares + 1 / (self.head.size - 1) ** 2).sqrt()

    def _numbers(self, seen: Tensor, features: Tensor, near: Near) -> Tensor:
        hidden = seen + self.enter(features)
        if self.loudness is not None and near.unit is not None:
            hidden = hidden + over_map(self.loudness, hidden.ndim - 2) * near.unit.log()
        for block in self.blocks:
            hidden = block(hidden)
        return self.head.relative(widened(self.leave(F.relu(hidden))), near)

    def distribution(
        self,
        features: Float[Tensor, "b F *map"],
        read: Callable[[Tensor], Tensor],
        support: Bool[Tensor, "b P *map"] | None = None,
    ) -> "Seeing":
        """The distribution over the map below, see :class:`Seeing` for the arguments."""
        return Windowed(self, features, read, support)

    def split(self, maps: Shaped[Tensor, "b c *map"]) -> Shaped[Tensor, "tiles c *tile"]:
        """The tiles of maps, each a map of its own."""
        return tiled(maps, self.tile).flatten(0, len(self.tile))

    def tile_sites(self) -> Int64[Tensor, "t n"]:
        """Numbers, in the whole map, of the sites of each tile."""
        site = torch.arange(prod(self.map_shape), device=self.offsets.device)
        return self.split(site.view(1, 1, *self.map_shape)).flatten(1)

    def join(self, tiles: Float[Tensor, "tiles c *tile"]) -> Float[Tensor, "b c *map"]:
        """The inverse of :meth:`split`."""
        counts = (whole // size for whole, size in zip(self.map_shape, self.tile, strict=True))
        return untiled(tiles.unflatten(0, (-1, *counts)))


FAMILIES["window"] = WindowNetwork


def tile_of(settings: DecoderSettings, map_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sites of a tile along each axis; InputError where they do not divide the map."""
    if not any(settings.tile):
        return map_shape
    tile = tuple(size or whole for size, whole in zip(settings.tile, map_shape, strict=False))
    if len(settings.tile) != len(map_shape) or any(whole % size for size, whole in zip(tile, map_shape, strict=True)):
        raise InputError(
            f"decoder.tile: {by_axis(settings.tile)} does not divide a map of {by_axis(map_shape)}: choose divisors of "
            "all sides"
        )
    return tile


class PointwiseBlock(nn.Module):
    """``x + conv(relu(conv(relu(x))))`` with 1×1 convolutions; the last starts at zero, so the block starts as x."""

    is_block = True  # see vqstack/fit/blocks.py

    def __init__(self, width: int, axes: int) -> None:
        super().__init__()
        convolve = convolution(axes)
        self.first, self.last = convolve(width, width, 1), convolve(width, width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "b d *map"]) -> Float[Tensor, "b d *map"]:
        return x + self.last(F.relu(self.first(F.relu(x))))


class SeeingDecoder(nn.Module):
    """From vectors of z_l to a distribution over the map below: features of its sites, then what sees known values.

    Args:
        up: vectors to features of each site below, padding included.
        window: a network of :data:`FAMILIES`.
    """

    def __init__(self, up: nn.Module, window: nn.Module) -> None:
        super().__init__()
        self.up, self.window = up, window


class Seeing(Distribution, ABC):
    """A distribution whose sites see known values: scored in one pass, drawn step by step.

    Args:
        network: a module with ``map_shape`` and ``head``, as :class:`WindowNetwork`.
        features: what the map above says of each site, [b, F, \\*map].
        read: values of sites [b, n, channels] to what the network reads of them, [b, n, c].
        support: numbers of each site that stay; the others become -inf. None: all.
    """

    def __init__(
        self,
        network: Any,
        features: Float[Tensor, "b F *map"],
        read: Callable[[Tensor], Tensor],
        support: Bool[Tensor, "b P *map"] | None = None,
    ) -> None:
        self.network, self.features, self.read, self.support = network, features, read, support
        self.batch, self.device = features.shape[0], features.device
        head = network.head
        of_one_image = head(torch.zeros(1, head.parameters, *network.map_shape, device=self.device))
        self.shape, self.size, self.dtype = of_one_image.shape, of_one_image.size, of_one_image.dtype

    @abstractmethod
    def parameters(self, values: Int64[Tensor, "b N channels"]) -> Float[Tensor, "b P *map"]:
        """Numbers of every site given the values that it sees."""

    @abstractmethod
    def walk(self, values: Int64[Tensor, "b M"]) -> Iterator[tuple[Int64[Tensor, "n"], Float[Tensor, "b P *one"]]]:
        """Sites of each step and their numbers; before the next is asked for, ``values`` must hold their values."""

    def unchecked_log_prob(self, x: AnyCodes | Pixels) -> Nats:
        known = by_site(filled(x, self.size), self.network.head.channels)
        return self.network.head(self.parameters(known)).unchecked_log_prob(x)

    @torch.no_grad()
    def factors(self, values: Int64[Tensor, "b M"]) -> Iterator[Factor]:
        for sites, numbers in self.walk(values):
            yield from site_factors(self.network.head, numbers, sites, values)


class Windowed(Seeing):
    """One factor a diagonal (times the channels of a pixel), from the network's step; see :class:`WindowNetwork`."""

    def parameters(self, values: Int64[Tensor, "b N channels"]) -> Float[Tensor, "b P *map"]:
        known = self.read(values).mT.unflatten(2, self.network.map_shape)
        return limited(self.network(known, self.features), self.support)

    def walk(self, values: Int64[Tensor, "b M"]) -> Iterator[tuple[Int64[Tensor, "n"], Float[Tensor, "b P *one"]]]:
        """A step computes only its own sites, from a buffer of what is known so far."""
        network, r = self.network, self.network.settings.radius
        features, numbers = network.split(self.features).flatten(2), network.tile_sites()
        size = tuple(sites + r + after for sites, after in zip(network.tile, network.after, strict=True))
        known = network.look.new_zeros(len(features), prod(size), network.look.shape[1])  # exact under autocast, too
        sites_of_tile = torch.cartesian_prod(*(torch.arange(n, device=self.device) for n in network.tile))
        place = raveled(sites_of_tile.view(-1, len(size)) + r, size)
        known[:, place, -1] = 1
        offsets = raveled(network.offsets, size)
        one = (1,) * (len(size) - 1)
        schedule = network.schedule.on(self.device)
        fixed = None if self.fixed is None else by_site(self.fixed[None], network.head.channels).all(-1)[0]
        for group in range(len(schedule)):
            mine = schedule.sites(group)
            sites = numbers[:, mine].flatten()
            if fixed is not None and fixed[sites].all():
                self._learn(known, place[mine], values, sites)
                continue
            above = features[..., mine].unflatten(2, (*one, len(mine)))
            found = network.step(known[:, place[mine, None] + offsets], above).flatten(2)
            together = rearrange(found, "(b t) p n -> b p (t n)", b=self.batch)
            mine_only = None if self.support is None else self.support.flatten(2)[..., sites]
            yield sites, limited(together, mine_only)
            self._learn(known, place[mine], values, sites)

    def _learn(self, known: Tensor, places: Tensor, values: Tensor, sites: Tensor) -> None:
        """Write the values of sites where the steps after them read."""
        chosen = self.read(by_site(values, self.network.head.channels)[:, sites])
        known[:, places, :-1] = rearrange(chosen, "b (t n) c -> (b t) n c", n=len(places))


def limited(numbers: Float[Tensor, "b P *map"], support: Bool[Tensor, "b P *map"] | None) -> Float[Tensor, "b P *map"]:
    """Logits whose values outside of the support are impossible."""
    return numbers if support is None else numbers.masked_fill(~support, -torch.inf)


def _with_inside(maps: Float[Tensor, "b c *map"]) -> Float[Tensor, "b c+1 *map"]:
    """One channel more, which says where the map is: padding is 0 there, too."""
    return torch.cat([maps, torch.ones_like(maps[:, :1])], 1)
