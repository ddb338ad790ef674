"""What is exported: modules with plain tensors in and out, each the part of a model that one file holds.

Whole numbers come of numbers that were computed: ``settle`` is that last step, so that a check can say whether two
codes that differ lie on both sides of a tie.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from x_transformers.attend import Intermediates
from x_transformers.x_transformers import LayerIntermediates

from vqstack.code_model import AutoregressiveCodeModel, CodeModelTerm, MaskedCodeModel
from vqstack.level import Level
from vqstack.likelihood import Head
from vqstack.renderer import Renderer, pixels_of
from vqstack.schedule import neighbours
from vqstack.terms import DecoderTerm, Term
from vqstack.window import Windowed, WindowNetwork, limited


class Encode(nn.Module):
    """Pixels to z_1 … z_L."""

    def __init__(self, levels: Iterable[Level]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps = [pixels]
        for level in self.levels:
            maps.append(level.code(maps[-1]))  # type: ignore[operator]
        return tuple(maps[1:])


class Product(nn.Module):
    """z_l to the numbers of every site below, [b, N, P], where sites are independent."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.level = level

    def forward(self, codes: Tensor) -> Tensor:
        vectors = self.level.quantizer.unchecked_lookup(codes)
        numbers = self.level.crop(self.level.up(vectors)[1])
        return limited(numbers, self.level.support(codes)).flatten(2).mT


class Picture(nn.Module):
    """z_1 to the mean picture, where pixels are independent given z_1."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.level = level

    def numbers(self, codes: Tensor) -> Tensor:
        numbers = self.level.up(self.level.quantizer.unchecked_lookup(codes))[1]
        return self.level.crop(numbers) if is_padded(self.level) else numbers  # a crop has the size of the model

    def settle(self, numbers: Tensor) -> Tensor:
        return self.level.head(numbers).mean()

    def forward(self, codes: Tensor) -> Tensor:
        return self.settle(self.numbers(codes))


class Render(nn.Module):
    """z_1 to the picture of the renderer."""

    def __init__(self, renderer: Renderer, level: Level, values: int) -> None:
        super().__init__()
        self.renderer, self.quantizer, self.values = renderer, level.quantizer, values
        self.padded = is_padded(level)

    def numbers(self, codes: Tensor) -> Tensor:
        vectors = self.quantizer.unchecked_lookup(codes)
        return self.renderer(vectors) if self.padded else self.renderer.up(vectors)[1]

    def settle(self, numbers: Tensor) -> Tensor:
        return pixels_of(numbers, self.values)

    def forward(self, codes: Tensor) -> Tensor:
        return self.settle(self.numbers(codes))


class TableOf(nn.Module):
    """Numbers of sites [b, n, P], and values [b, n, c] of the places before in each site's chain, to ln P of every
    value, [b, n, c, V]."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head, self.network = head, head.network

    def forward(self, numbers: Tensor, values: Tensor) -> Tensor:
        chosen = values.mT.flatten(1)
        tables = [factor.log_probs for factor in self.head(numbers.mT).factors(chosen)]
        return torch.cat(tables, 1).unflatten(1, (self.head.channels, -1)).transpose(1, 2)


class MeanOf(nn.Module):
    """Numbers of pixels [b, n, P] to their mean values, [b, n, c]: what a picture shows."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def settle(self, numbers: Tensor) -> Tensor:
        return self.head(numbers.mT).mean().long().mT

    def numbers(self, numbers: Tensor) -> Tensor:
        return numbers

    def forward(self, numbers: Tensor) -> Tensor:
        return self.settle(numbers)


class Score(nn.Module):
    """Values of all variables to the nats of each row, [b, rows].

    Args:
        terms: rows of the ledger.
        names: of the values, in the order in which they are given.
    """

    def __init__(self, terms: Sequence[Term], names: Sequence[str]) -> None:
        super().__init__()
        self.terms, self.names = terms, names
        self.parts = modules_of(terms)

    def forward(self, *given: Tensor) -> Tensor:
        values = dict(zip(self.names, given, strict=True))
        return torch.stack([-self._log_prob(term, values) for term in self.terms], 1)

    @staticmethod
    def _log_prob(term: Term, values: dict[str, Tensor]) -> Tensor:
        target, num = values[term.target.name], next(iter(values.values())).shape[0]
        if isinstance(term, CodeModelTerm):
            return term.model.unchecked_log_prob(target, *term.inputs(values, num))
        return term.distribution(values, num).unchecked_log_prob(target)


class Begin(nn.Module):
    """What lies above a map to what every step over the map reads, its state.

    Args:
        term: of the map.
        names: of what is given, in the order in which it is given.
    """

    def __init__(self, term: Term, names: Sequence[str]) -> None:
        super().__init__()
        self.term, self.names = term, names
        self.parts = modules_of([term])

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.state(dict(zip(self.names, given, strict=True))).values())

    def state(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """By name. Of a window decoder the features of the sites, and which values a cluster allows; of a transformer
        what it reads of its conditions and of the map above, and the decoder that it corrects."""
        num = next(iter(given.values())).shape[0]
        if isinstance(self.term, DecoderTerm):
            level, codes = self.term.level, given[self.term.level.upper.name]
            vectors = level.quantizer.unchecked_lookup(codes)
            return _seen(level._from(level.crop(level.up(vectors)[1]), codes))
        assert isinstance(self.term, CodeModelTerm)
        model = self.term.model
        conditioning, parent = self.term.inputs(given, num)
        state = {"told": model.condition_features(conditioning)} if model.conditions else {}
        if parent is None:
            return state
        state |= {"context": model.context(parent), **_seen(parent.base)}
        if parent.before is not None:
            assert isinstance(model, AutoregressiveCodeModel)
            before = parent.before
            cache = model.attend(before.inputs(conditioning), before.group, return_hiddens=True)[1]
            state |= dict(zip(CACHE, stacked(cache), strict=True))
        return state


CACHE = ("cache_keys", "cache_values")


class Step(nn.Module):
    """Values of the map so far, and the sites of a step, to the numbers of those sites [b, n, P]; and the cache.

    Args:
        term: of the map.
        names: of what is given, in the order in which it is given: ``values`` [b, N, c] and ``sites`` [n]; ``source``
            [n] (for each site the one whose value it reads, -1: none) or ``known`` [b, N] (which values may be read);
            the cache; the state of :class:`Begin`.
    """

    def __init__(self, term: Term, names: Sequence[str]) -> None:
        super().__init__()
        self.term, self.names = term, names
        self.parts = modules_of([term])
        level = term.level if isinstance(term, DecoderTerm) else next(iter(term.levels), None)  # type: ignore[attr-defined]
        self.window = WindowStep(level) if "features" in names and level is not None else None

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.names, given, strict=True))
        if isinstance(self.term, DecoderTerm):
            assert self.window is not None
            return (self.window(named),)
        assert isinstance(self.term, CodeModelTerm)
        model, sites = self.term.model, named["sites"]
        cache: tuple[Tensor, ...] = ()
        if isinstance(model, MaskedCodeModel):
            hidden = self._masked(model, named)[:, sites]
        else:
            assert isinstance(model, AutoregressiveCodeModel)
            hidden, cache = self._next(model, named)
        base = named["base"][:, sites] if "base" in named else None
        if self.window is not None:
            base = self.window(named)
        return model.correct(hidden, base), *cache

    @staticmethod
    def _masked(model: MaskedCodeModel, named: dict[str, Tensor]) -> Tensor:
        inputs = model.visible(named["values"], named["known"]) + named.get("context", model.position[None])
        return model.backbone(inputs + named.get("told", 0.0))

    @staticmethod
    def _next(model: AutoregressiveCodeModel, named: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        values, sites, source = named["values"], named["sites"], named["source"]
        context = named["context"][:, sites] if "context" in named else model.position[sites]
        begin = model.begin + named.get("told", 0.0)
        inputs = torch.where((source < 0)[:, None], begin, model.embed(values[:, source.clamp(min=0)])) + context
        if model.window is not None:
            inputs = inputs + model.window.of_few(lambda near: model.embed(values[:, near]), sites)
        held = zip(*(named[name].unbind(0) for name in CACHE), strict=True)
        known = LayerIntermediates(attn_intermediates=[Intermediates(cached_kv=pair) for pair in held])
        # No age: the library would cut the inputs down to it, and they are no longer.
        hidden, cache = model.backbone(inputs, cache=known, cache_age=0, return_hiddens=True)
        return hidden, stacked(cache)


def modules_of(terms: Iterable[Term]) -> nn.ModuleList:
    """The modules that terms compute with."""
    found: list[nn.Module] = []
    for term in terms:
        if isinstance(term, DecoderTerm):
            found.append(term.level)
        elif isinstance(term, CodeModelTerm):
            found += [term.model, *term.levels, *term.segments]
    return nn.ModuleList(found)


def stacked(cache: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of all layers, each [layers, b, heads, t, d]."""
    keys, values = zip(*(layer.cached_kv for layer in cache.attn_intermediates), strict=True)
    return torch.stack(keys), torch.stack(values)


def _seen(base: Any) -> dict[str, Tensor]:
    """The numbers of the sites in raster order, or what a window decoder finds them from."""
    if not isinstance(base, Windowed):
        return {"base": base.flatten(2).mT}
    support = {} if base.support is None else {"support": base.support.flatten(2)}
    return {"features": base.features.flatten(2), **support}


class WindowStep(nn.Module):
    """What a window decoder says of some sites, [b, n, P], from the values in their windows."""

    near: Tensor
    inside: Tensor

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.level, self.network = level, level.decoder.window  # type: ignore[union-attr]
        near, inside = windows_of(self.network)  # type: ignore[arg-type]
        self.register_buffer("near", near)
        self.register_buffer("inside", inside)

    def forward(self, named: dict[str, Tensor]) -> Tensor:
        sites = named["sites"]
        near, inside = self.near[sites], self.inside[sites][..., None]
        read = self.level.read(named["values"][:, near.flatten()]).unflatten(1, near.shape)
        flags = inside.to(read.dtype).expand(read.shape[0], -1, -1, -1)
        windows = torch.cat([torch.where(inside, read, 0), flags], -1)
        one = (*(1,) * (len(self.network.map_shape) - 1), sites.shape[0])  # type: ignore[union-attr, arg-type]
        above = named["features"][..., sites].unflatten(2, one)
        numbers = self.network.step(windows, above).flatten(2)  # type: ignore[union-attr, operator]
        return limited(numbers, named["support"][..., sites] if "support" in named else None).mT


def windows_of(network: WindowNetwork) -> tuple[Tensor, Tensor]:
    """For each site of the map, the site at each offset of its window, [N, O], and whether its tile has one there."""
    numbers, (in_tile, inside) = network.tile_sites(), neighbours(network.tile, network.offsets)
    near = torch.empty(numbers.numel(), in_tile.shape[1], dtype=torch.int64)
    near[numbers.flatten()] = numbers[:, in_tile].flatten(0, 1)
    found = torch.empty_like(near, dtype=torch.bool)
    found[numbers.flatten()] = inside.repeat(len(numbers), 1)
    return near, found


def is_padded(level: Level) -> bool:
    """Whether images are padded before the level reads them."""
    return any(getattr(level, "padding", ()))
