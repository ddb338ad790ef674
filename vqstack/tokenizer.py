"""Level 1 of a model alone, for inputs of any size: codes z_1 and back, by tiles that overlap.

    tokenizer = vqstack.Tokenizer(model)
    codes = tokenizer.encode(photograph)                             # uint8 [b, c, h, w] -> z_1 of any number of sites
    again = tokenizer.decode(codes, photograph.shape[2:])            # and its pixels

Convolutions read any size, but what surrounds a site, the statistics of the normalisation and learned positions are
those of the size that a model was trained on. So a large input is cut into tiles of that size, or of one that is asked
for, which overlap. Each code comes from the tile in which it lies deepest; pixels of neighbouring tiles are blended.

Staged networks whose normalisation is of each site (``norm: site``), without attention, see no farther than their
``reach``. Where tiles have twice that in common, what comes out is what one tile of the whole input would give.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, product
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqstack.checks import check_number
from vqstack.errors import InputError
from vqstack.model import Decoder, HierarchicalModel
from vqstack.renderer import Renderer, pixels_of
from vqstack.shapes import AnyCodes, Pixels, by_axis, replicated, value_dtype
from vqstack.stack import Stack
from vqstack.window import SeeingDecoder

BATCH = 32
"""Tiles of the model's own size at a time; of larger ones fewer."""


class Part(NamedTuple):
    """A tile along one axis: its first site, and the sites whose codes are taken from it."""

    first: int
    core: range

    @property
    def own(self) -> slice:
        """The core, counted from the tile's first site."""
        return slice(self.core.start - self.first, self.core.stop - self.first)


class Tokenizer(nn.Module):
    """Encoder, codebook, likelihood and renderer of level 1 at another size, with the weights of a model.

    Args:
        model: any; learned positions of its networks are interpolated to the size of a tile.
        tile: sites of a tile along each axis, pixels; multiples of what a code covers. Default: the model's own size.
        overlap: codes that neighbouring tiles have in common along each axis; default: twice the farthest reach, where
            half a tile holds that, else a quarter of a tile.

    Attributes:
        reach: of ``encode`` and of the decoders ``likelihood`` and ``renderer``: how many codes away what is read may
            lie; None: anywhere.
        patch: pixels that a code covers along each axis.
        map_shape: codes of a tile along each axis.
    """

    def __init__(self, model: HierarchicalModel, tile: Sequence[int] | None = None, overlap: int | None = None) -> None:
        super().__init__()
        lowest = model.stack.levels[0]
        self.patch, self.values = lowest.scale, model.stack.values
        padded = tuple(n * p for n, p in zip(lowest.map_shape, lowest.scale, strict=True))
        self.tile = padded if tile is None else tuple(tile)
        if len(self.tile) != len(padded) or any(t < p or t % p for t, p in zip(self.tile, self.patch, strict=True)):
            raise InputError(
                f"tile: {by_axis(self.tile)} is no multiple of a code's {by_axis(self.patch)}: give one along each axis"
            )
        self.map_shape = tuple(t // p for t, p in zip(self.tile, self.patch, strict=True))
        self.batch = min(BATCH, max(1, BATCH * prod(padded) // prod(self.tile)))
        self.reach = {
            "encode": _reach(lowest.encoder),
            "likelihood": None if isinstance(lowest.decoder, SeeingDecoder) else _reach(lowest.up),
            "renderer": None if model.renderer is None else _reach(model.renderer.up),
        }
        twice, smallest = 2 * max((n for n in self.reach.values() if n is not None), default=0), min(self.map_shape)
        usual = twice if 0 < twice <= smallest // 2 else smallest // 4
        self.overlap = check_number(usual if overlap is None else overlap, "overlap", 0, smallest - 1)
        self.model = model
        self.stack, self.renderer = at_size(model, self.map_shape)
        self.to(model.device).eval()

    def seamless(self, part: str) -> bool:
        """Whether tiles agree where they overlap, as far as they are used: of ``encode``, or of a decoder by name."""
        reach = self.reach[part]
        return reach is not None and 2 * reach <= self.overlap

    @torch.no_grad()
    def encode(self, pixels: Pixels) -> AnyCodes:
        """z_1 of inputs of any size, int64 [b, \\*map] (or [b, D, \\*map]); sites beyond the end are replicated.

        A map has as many sites along each axis as patches are begun.
        """
        channels, size = pixels.shape[1], pixels.shape[2:]
        if pixels.ndim != len(self.tile) + 2 or channels != self.stack.shape[0] or not pixels.numel():
            wanted = f"[b, {self.stack.shape[0]}, {', '.join('n' * len(self.tile))}]"
            raise InputError(f"pixels: {list(pixels.shape)} where {wanted} is needed: give inputs of the model's kind")
        sites = tuple(-(-n // p) for n, p in zip(size, self.patch, strict=True))
        held = tuple(max(n, m) for n, m in zip(sites, self.map_shape, strict=True))
        filled = replicated(pixels, tuple(n * p for n, p in zip(held, self.patch, strict=True)))
        level = self.stack.levels[0]
        codes = torch.zeros(len(pixels), *level.upper.shape[: -len(sites)], *held, dtype=torch.int64)
        for batch in _batches(self._parts(held), len(pixels), self.batch):
            tiles = torch.stack([filled[i][self._span(parts, self.patch)] for i, parts in batch])
            found = self.stack.encode(tiles.to(level.device), 1)[0].cpu()
            for (i, parts), own in zip(batch, found, strict=True):
                codes[i][_place(slice(p.core.start, p.core.stop) for p in parts)] = own[_place(p.own for p in parts)]
        return codes[_place(map(slice, sites))]

    @torch.no_grad()
    def decode(self, codes: AnyCodes, size: Sequence[int] | None = None, decoder: Decoder = "likelihood") -> Pixels:
        """Pixels of a map of any size, on the CPU: the mean of the likelihood, or what the renderer draws.

        Tiles that agree (:meth:`seamless`) are put side by side, others are blended where they overlap.

        Args:
            codes: z_1, as :meth:`encode` gives it.
            size: sites of the input along each axis, where it did not fill its last patches.
            decoder: likelihood or renderer.
        """
        self.model.check_decoder(decoder)
        axes, level, size = len(self.tile), self.stack.levels[0], self._size(codes, size)
        sites = tuple(codes.shape[-axes:])
        held = tuple(max(n, m) for n, m in zip(sites, self.map_shape, strict=True))
        filled = replicated(codes, held)
        shape = (self.stack.shape[0], *(n * p for n, p in zip(held, self.patch, strict=True)))
        weigh = self._core if self.seamless(decoder) else self._fading
        found = []
        for each in filled:
            blended, weights = torch.zeros(shape), torch.zeros(shape[1:])
            for batch in _batches(self._parts(held), 1, self.batch):
                tiles = torch.stack([each[self._span(parts, (1,) * axes)] for _, parts in batch])
                for (_, parts), own in zip(batch, self.pictures(tiles.to(level.device), decoder).cpu(), strict=True):
                    place, weight = self._span(parts, self.patch), weigh(parts)
                    blended[place] += own * weight
                    weights[place] += weight
            found.append((blended / weights).round().to(value_dtype(self.values)))
        return torch.stack(found)[_place(map(slice, size))]

    def _size(self, codes: AnyCodes, size: Sequence[int] | None) -> tuple[int, ...]:
        """The size that codes are decoded to, or InputError where they are none of one."""
        axes, shape = len(self.tile), self.stack.levels[0].upper.shape
        if codes.ndim != 1 + len(shape) or not codes.numel():
            wanted = f"[b{''.join(f', {n}' for n in shape[:-axes])}, {', '.join('n' * axes)}]"
            raise InputError(f"codes: {list(codes.shape)} where {wanted} is needed: give what encode gave")
        whole = tuple(n * p for n, p in zip(codes.shape[-axes:], self.patch, strict=True))
        size = whole if size is None else tuple(size)
        if len(size) != axes or any(not 0 <= w - n < p for w, n, p in zip(whole, size, self.patch, strict=True)):
            raise InputError(
                f"size: {by_axis(size)} does not end in the last of these codes, which cover {by_axis(whole)}: give "
                "that of the input that was encoded"
            )
        return size

    def pictures(self, codes: AnyCodes, decoder: Decoder) -> Pixels:
        """Of codes of single tiles, where they came from."""
        if decoder == "likelihood":
            return self.stack.decode(codes, 1)
        assert self.renderer is not None
        return pixels_of(self.renderer(self.stack.vectors(codes, 1)), self.values)

    def _parts(self, sites: tuple[int, ...]) -> list[tuple[Part, ...]]:
        """The tiles of a map."""
        return list(product(*(cut(n, m, self.overlap) for n, m in zip(sites, self.map_shape, strict=True))))

    def _span(self, parts: tuple[Part, ...], patch: tuple[int, ...]) -> Any:
        """Where a tile lies in a map that has ``patch`` times as many sites along each axis."""
        along = zip(parts, self.map_shape, patch, strict=True)
        return _place(slice(part.first * p, (part.first + n) * p) for part, n, p in along)

    def _core(self, parts: tuple[Part, ...]) -> Tensor:
        """How much each pixel of a tile counts: 1 in its core, else nothing."""
        weight = torch.zeros(self.tile)
        weight[_place(slice(p.own.start * n, p.own.stop * n) for p, n in zip(parts, self.patch, strict=True))] = 1
        return weight

    def _fading(self, parts: tuple[Part, ...]) -> Tensor:
        """How much each pixel of a tile counts: it rises over the overlap, from either side, and never is nothing."""
        weight = torch.ones(())
        for sites, patch in zip(self.tile, self.patch, strict=True):
            near = torch.arange(1, sites + 1).minimum(torch.arange(sites, 0, -1)).float()
            weight = weight[..., None] * (near / max(1, self.overlap * patch)).clamp(max=1)
        return weight


def _reach(network: Any) -> int | None:
    """The farthest reach along any axis of a network that says it."""
    reach = getattr(network, "reach", None)
    return None if reach is None else max(reach)


def at_size(model: HierarchicalModel, map_shape: tuple[int, ...]) -> tuple[Stack, Renderer | None]:
    """Level 1 and the renderer of a model for a map of another shape, with the same weights.

    Positions that networks have learned are interpolated. InputError where a network has other numbers that depend on
    the size.
    """
    own, lowest = model.settings, model.stack.levels[0]
    size = tuple(n * p for n, p in zip(map_shape, lowest.scale, strict=True))
    level = own.stack.levels[0].model_copy(update={"map": map_shape})
    settings = own.stack.model_copy(update={"levels": (level,), "pad_to": None})
    with torch.random.fork_rng(devices=[]):
        stack = Stack(settings, (model.stack.shape[0], *size), model.stack.values)
        renderer = None
        if own.renderer is not None:
            rendered = own.renderer, lowest.quantizer.dim, map_shape, lowest.scale, stack.levels[0].lower
            renderer = Renderer(*rendered)
    _load(stack, model.stack)
    if renderer is not None and model.renderer is not None:
        _load(renderer, model.renderer)
    return stack, renderer


def _load(resized: nn.Module, trained: nn.Module) -> None:
    """The numbers of a module for one of another size."""
    stored, state = trained.state_dict(), dict[str, Tensor]()
    for name, wanted in resized.state_dict().items():
        value = stored[name]
        if value.shape != wanted.shape:
            if not name.endswith(".position") or value.ndim != wanted.ndim:
                raise InputError(f"tile: {name} depends on the size, and is no position: leave tile at the model's own")
            value = _interpolated(value, tuple(wanted.shape[1:]))
        state[name] = value
    resized.load_state_dict(state)


def _interpolated(position: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[width, \\*map] to another map, linearly between the centres of its sites."""
    mode = ("linear", "bilinear", "trilinear")[len(shape) - 1]
    return F.interpolate(position[None], shape, mode=mode, align_corners=False)[0]


def cut(sites: int, tile: int, overlap: int) -> list[Part]:
    """An axis in tiles, evenly spread; neighbours have at least ``overlap`` sites in common, and their cores none."""
    count = max(1, -(-(sites - overlap) // (tile - overlap)))
    firsts = [round(i * (sites - tile) / max(1, count - 1)) for i in range(count)]
    borders = [0, *((a + tile + b) // 2 for a, b in pairwise(firsts)), sites]
    return [Part(first, range(*borders[i : i + 2])) for i, first in enumerate(firsts)]


def _place(slices: Iterable[slice]) -> Any:
    """An index of the last axes."""
    return (..., *slices)


def _batches(parts: list[tuple[Part, ...]], images: int, batch: int) -> Iterator[list[tuple[int, tuple[Part, ...]]]]:
    """Number of the image and tile, some at a time."""
    every = list(product(range(images), parts))
    return (every[i : i + batch] for i in range(0, len(every), batch))
