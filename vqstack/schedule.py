"""Schedules: in which order, and how many at a time, the sites of a map are drawn."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """One fixed ordered partition of N sites into K groups.

    Attributes:
        order: the sites, group after group, [N].
        group: number of the group of each site, counted from 0, [N].
        sizes: sites of each group, [K].
    """

    order: Int64[Tensor, "N"]
    group: Int64[Tensor, "N"]
    sizes: tuple[int, ...]

    @classmethod
    def raster(cls, sites: int) -> "Schedule":
        """One site a group, row by row."""
        return cls(torch.arange(sites), torch.arange(sites), (1,) * sites)

    @classmethod
    def dispersed(cls, map_shape: tuple[int, ...], groups: int, *, even: bool = False) -> "Schedule":
        """Groups whose sites lie far apart: a function of the shape, the number of groups and ``even``.

        The order is that of an ordered-dithering matrix (Bayer 1973): every beginning of it covers the map evenly. By
        default groups end where ``1 - cos(pi k / 2K)`` of the sites are drawn, as in MaskGIT (Chang et al. 2022): what
        is drawn early fixes the coarse layout and knows little, so few sites are drawn at once. ``even`` groups are as
        equal as can be, for maps whose layout is known from above; of 16 × 16 sites in 16 groups each is a lattice.
        """
        order = _bayer_order(map_shape)
        sizes = _even_sizes(len(order), groups) if even else _cosine_sizes(len(order), groups)
        group = torch.empty_like(order)
        group[order] = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        return cls(order, group, sizes)

    @classmethod
    def wavefront(cls, map_shape: tuple[int, ...], slope: int) -> "Schedule":
        """Diagonals from the top left: site (row, column) belongs to group ``slope * row + column``.

        With one axis they are its sites, with three (slice, row, column) is in that of ``slope² * slice + slope * row +
        column``.

        A site knows the neighbours that it has in raster order, left and above; of those above on the right it knows
        ``slope - 1``. With slope 1, 16 × 16 sites are 31 groups, with slope 2 they are 46.
        """
        places = torch.cartesian_prod(*map(torch.arange, map_shape)).view(-1, len(map_shape))
        group = torch.unique(advance(places, slope), return_inverse=True)[1]
        return cls(group.argsort(stable=True), group, tuple(torch.bincount(group).tolist()))

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """How many sites come before each group, [K]."""
        return tuple(accumulate(self.sizes, initial=0))[:-1]

    def on(self, device: torch.device) -> "Schedule":
        """The same, its indices on a device: taken there once, before a walk."""
        return Schedule(self.order.to(device), self.group.to(device), self.sizes)

    def sites(self, group: int) -> Int64[Tensor, "n"]:
        """The sites of one group."""
        return self.order[self.starts[group] : self.starts[group] + self.sizes[group]]

    def before(self, group: Int64[Tensor, "b"]) -> Bool[Tensor, "b N"]:
        """Which sites belong to groups before the given ones."""
        return self.group < group[:, None]


def advance(places: Int64[Tensor, "n axes"], slope: int) -> Int64[Tensor, "n"]:
    """When a wavefront reaches each place, or how much later than another one: ``sum over axes of slope^k place_k``."""
    return (places * slope ** torch.arange(places.shape[1] - 1, -1, -1)).sum(1)


def raveled(places: Int64[Tensor, "*n axes"], shape: tuple[int, ...]) -> Int64[Tensor, "*n"]:
    """Numbers in raster order of places, or of steps between them, in a map of that shape."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return (places * torch.tensor(strides, device=places.device)).sum(-1)


def neighbours(
    map_shape: tuple[int, ...], offsets: Int64[Tensor, "O axes"]
) -> tuple[Int64[Tensor, "N O"], Bool[Tensor, "N O"]]:
    """For each site, in raster order, the site at each offset from it and whether that lies on the map; 0 if not."""
    near = torch.cartesian_prod(*map(torch.arange, map_shape)).view(-1, 1, len(map_shape)) + offsets
    inside = ((near >= 0) & (near < torch.tensor(map_shape))).all(-1)
    return raveled(near, map_shape).where(inside, 0), inside


def _even_sizes(sites: int, groups: int) -> tuple[int, ...]:
    small, more = divmod(sites, groups)
    return (small,) * (groups - more) + (small + 1,) * more


def _cosine_sizes(sites: int, groups: int) -> tuple[int, ...]:
    """Sites of each group: at least one, never fewer than before, along a cosine."""
    sizes: list[int] = []
    left = sites
    for k in range(groups):
        wanted = sites * (math.cos(math.pi * k / (2 * groups)) - math.cos(math.pi * (k + 1) / (2 * groups)))
        smallest = sizes[-1] if sizes else 1
        largest = left // (groups - k)  # what still lets every later group be as large
        sizes.append(max(smallest, min(round(wanted), largest)))
        left -= sizes[-1]
    sizes[-1] += left
    return tuple(sizes)


def _bayer_order(map_shape: tuple[int, ...]) -> Int64[Tensor, "N"]:
    """Sites by their rank in a dithering matrix of the next power of two; a map with one axis is one column."""
    rows, columns = (math.prod(map_shape[:-1]), map_shape[-1]) if len(map_shape) > 1 else (map_shape[0], 1)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    bits = max(rows - 1, columns - 1).bit_length()
    rank = torch.zeros_like(row)
    for bit in range(bits):  # the lowest bits of the position are the highest of the rank
        r, c = row >> bit & 1, column >> bit & 1
        rank = rank * 4 + 2 * (r ^ c) + r
    return rank.flatten().argsort(stable=True)
