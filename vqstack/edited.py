"""An image with all its maps of codes, and changes of its codes whose consequences follow.

    image = Edited.of(model, pixels)                        # or Edited.drawn(model, seed=1)
    image = image.resampled(2, [(0, 1), (0, 2)], seed=5)    # sites of z_2 drawn again, given all else
    image = image.placed(1, {(3, 4): 17})                   # a code of z_1 chosen by hand
    image.pixels, image.codes, image.script()               # what came of it, and the lines that make it again

After each change the maps below follow, and the maps above are encoded again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor

from vqstack.checks import check_number
from vqstack.editing import blend
from vqstack.errors import InputError
from vqstack.ledger import BITS
from vqstack.likelihood import Draw, Known, draw_values, noise
from vqstack.model import Decoder, HierarchicalModel
from vqstack.model_settings import SamplingSettings
from vqstack.shapes import AnyCodes, Floats, Labels, Pixels, by_axis, cropped, finest
from vqstack.terms import Term
from vqstack.variables import Variable

Site: TypeAlias = tuple[int, ...]
"""Its place along each axis of a map, of images row and column; where a site has several codes, the code's number
first."""

SCORED = 256  # maps at a time
PROPOSALS = 16


class Choice(NamedTuple):
    """A code of a site, and its probability given all other sites of its map and the maps above."""

    code: int
    probability: float


@dataclass(frozen=True)
class Edited:
    """One image, its maps, and how it was made.

    Attributes:
        model: whose codes these are, in eval mode.
        pixels: [1, c, \\*map].
        codes: z_1 … z_L, each [1, \\*map].
        labels, condition: what the model is given with the image, where it reads any.
        seed: with ``number`` names the noise of what is drawn below a change, which is the same before and after.
        number: of the image among those of its seed.
        lines: of Python that make it again; they read ``model`` and, for a given image, ``pixels``.
        decoder: what makes pixels of z_1 from here on (see :meth:`by`); bits are the likelihood's with either.
    """

    model: HierarchicalModel
    pixels: Pixels
    codes: tuple[AnyCodes, ...]
    labels: Labels | None = None
    condition: Floats | None = None
    seed: int = 0
    number: int = 0
    lines: tuple[str, ...] = ()
    decoder: Decoder = "likelihood"

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: HierarchicalModel,
        pixels: Pixels,
        label: int | None = None,
        condition: Floats | None = None,
        *,
        seed: int = 0,
    ) -> "Edited":
        """A given image.

        Args:
            model: in eval mode.
            pixels: [1, c, \\*map].
            label: its class, if the model knows classes; default: the likeliest.
            condition: floats that it is given, if the model reads any.
            seed: see above.
        """
        if len(pixels) != 1:
            raise InputError(f"pixels: {len(pixels)} images: give one")
        pixels = pixels.to(model.device)
        codes, labels = model.encode(pixels), None
        if condition is not None:
            condition = condition.to(model.device)
        if model.classes:
            labels = (
                model.likeliest_labels(pixels, codes, condition)
                if label is None
                else torch.tensor([label], device=model.device)
            )
        model.values(pixels, codes, labels, condition)  # refuses what does not fit
        told = _given(label=None if labels is None else int(labels), seed=seed or None) + _with(condition)
        line = f"image = Edited.of(model, pixels{told})"
        return cls(model, pixels, tuple(codes), labels, condition, seed, lines=(line,))

    @classmethod
    def drawn(
        cls,
        model: HierarchicalModel,
        seed: int = 0,
        number: int = 0,
        label: int | None = None,
        condition: Floats | None = None,
        sampling: SamplingSettings | None = None,
        decoder: Decoder = "likelihood",
    ) -> "Edited":
        """Image ``number`` of those that the model draws with a seed; see :meth:`HierarchicalModel.sample`."""
        return cls.gallery(model, 1, seed, number, label, condition, sampling, decoder)[0]

    @classmethod
    def gallery(
        cls,
        model: HierarchicalModel,
        num: int,
        seed: int = 0,
        first: int = 0,
        label: int | None = None,
        condition: Floats | None = None,
        sampling: SamplingSettings | None = None,
        decoder: Decoder = "likelihood",
    ) -> "list[Edited]":
        """Images ``first`` … ``first + num - 1`` of :meth:`drawn`, in one go; ``condition`` is that of one image."""
        labels = None if label is None else torch.full((num,), label)
        floats = None if condition is None else condition.expand(num, *condition.shape[1:])
        sample = model.sample(num, labels, floats, seed=seed, sampling=sampling, first=first, decoder=decoder)
        given = {} if sampling is None else sampling.model_dump(exclude_defaults=True)
        how = f", sampling=SamplingSettings({', '.join(f'{k}={v}' for k, v in given.items())})" if given else ""
        how += "" if decoder == "likelihood" else f", decoder={decoder!r}"
        made = []
        for place in range(num):
            told = _given(seed=seed or None, number=first + place or None, label=label) + _with(condition)
            one = slice(place, place + 1)
            codes = tuple(sample.codes[level][one] for level in range(1, len(model.stack) + 1))
            drawn = None if sample.labels is None else sample.labels[one]
            lines = (f"image = Edited.drawn(model{told}{how})",)
            made.append(cls(model, sample.pixels[one], codes, drawn, condition, seed, first + place, lines, decoder))
        return made

    def script(self) -> str:
        """Lines of Python that make it again from ``model``, and of a given image from ``pixels``, exactly."""
        names = ["Edited"] + ["SamplingSettings"] * any("SamplingSettings" in line for line in self.lines)
        return "\n".join([f"from vqstack import {', '.join(names)}", *self.lines]) + "\n"

    def after(self, lines: Sequence[str]) -> "Edited":
        """The same, with lines of Python that come before its own."""
        return replace(self, lines=(*lines, *self.lines))

    @property
    def values(self) -> dict[str, Tensor]:
        """Of all variables by their names."""
        return self.model.values(self.pixels, list(self.codes), self.labels, self.condition)

    def map(self, level: int) -> Tensor:
        """z_level, or for 0 the pixels."""
        return self.codes[level - 1] if level else self.pixels

    @property
    @torch.no_grad()
    def bits(self) -> dict[str, float]:
        """Its rows of the ledger."""
        nats = self.model.code_lengths(self.pixels, list(self.codes), self.labels, self.condition)
        return {row: float(found) * BITS for row, found in nats.items()}

    # --- what a site may be -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def choices(self, level: int, site: Site, count: int = 8) -> list[Choice]:
        """The likeliest codes of a site of z_level, given the rest of its map and the maps above; maps below follow.

        ``P(z_i = k | rest) ~ P(z_i = k, rest | z_above)``, scored for every code k.
        """
        term, size = self._term(check_number(level, "level", 1, len(self.codes))), self._variable(level).size
        place: tuple[slice | int, ...] = (slice(None), *self._site(level, site))
        maps = self.map(level).expand(size, *self._variable(level).shape).clone()
        maps[place] = torch.arange(size, device=maps.device)
        nats = torch.cat([self._score(term, part) for part in maps.split(SCORED)]).to(finest(maps.device))
        found = nats.softmax(0).topk(min(count, size))
        return [Choice(code, p) for code, p in zip(found.indices.tolist(), found.values.tolist(), strict=True)]

    def _score(self, term: Term, maps: Tensor) -> Tensor:
        """ln P of maps of the term's target, the maps above as they are."""
        return term.distribution(self._repeated(len(maps)), len(maps)).unchecked_log_prob(maps)

    def _repeated(self, num: int) -> dict[str, Tensor]:
        return {name: value.expand(num, *value.shape[1:]) for name, value in self.values.items()}

    # --- changes ------------------------------------------------------------------------------------------------------

    def by(self, decoder: Decoder) -> "Edited":
        """The same image, whose pixels come from another decoder as soon as codes change."""
        if decoder == self.decoder:
            return self
        return replace(
            self, decoder=self.model.check_decoder(decoder), lines=(*self.lines, f"image = image.by({decoder!r})")
        )

    @torch.no_grad()
    def resampled(
        self,
        level: int,
        sites: Sequence[Site] | None = None,
        *,
        seed: int = 0,
        proposals: int = PROPOSALS,
        near: bool = True,
        draw: bool = False,
    ) -> "Edited":
        """Sites of z_level drawn again given all else of their map and the maps above; level 0: pixels given z_1.

        An autoregressive model draws a site given those before it only. So several maps are proposed, each with the
        known sites kept, and one is chosen with probability ``~ P(map | above) / P(it was proposed)``. With one
        proposal that is what the walk draws, with more it comes nearer to the model's conditional
        (sampling-importance resampling, Rubin 1987).

        Args:
            level: 0 … L.
            sites: which; None: the whole map.
            seed: names the noise of the new sites, no unit.
            proposals: count.
            near: below, only what lies under these sites is drawn again; otherwise all.
            draw: what is below is drawn as the model draws; otherwise the most likely codes, and the mean of pixels.
        """
        if level == 0 and self.decoder == "renderer":
            raise InputError("level 0: the renderer draws no pixels given others: choose a map of codes, or likelihood")
        term, target = self._term(level), self._variable(level)
        chosen = self._mask(level, sites)
        count = check_number(proposals, "proposals", 1, 10**4) if not chosen.all() else 1
        values = self._repeated(count)
        known = Known(values[target.name], ~chosen.expand(count, *target.shape))
        proposing = term.distribution(values, count, known=known)
        maps, best = proposing.sample(noise(seed, range(count), level, target.sites)), 0
        if count > 1:
            weights = self._score(term, maps) - proposing.unchecked_log_prob(maps)
            uniform = noise(seed, [count], level, 1).to(maps.device)
            best = int(draw_values(weights[None, None].to(finest(maps.device)), uniform, Draw()))
        told = _given(sites=sites, seed=seed or None, proposals=None if proposals == PROPOSALS else proposals)
        return self._changed(level, maps[best][None], chosen, near, draw, f"resampled({level}{told}")

    def placed(self, level: int, codes: Mapping[Site, int], *, near: bool = True, draw: bool = False) -> "Edited":
        """Codes of z_level set by hand: a code for each of some sites. ``near``, ``draw``: see :meth:`resampled`."""
        changed = self.map(check_number(level, "level", 1, len(self.codes))).clone()
        for site, code in codes.items():
            changed[(0, *self._site(level, site))] = check_number(code, "code", 0, self._variable(level).size - 1)
        chosen = self._mask(level, list(codes))
        return self._changed(level, changed, chosen, near, draw, f"placed({level}, {dict(codes)!r}")

    def copied(
        self, level: int, other: AnyCodes, sites: Sequence[Site] | None = None, *, near: bool = True, draw: bool = False
    ) -> "Edited":
        """Codes of z_level as another map [1, \\*map] has them, at some sites (None: all)."""
        self._variable(level).check(other, 1)
        places = self._mask(level, sites).nonzero().tolist()
        return self.placed(level, {tuple(p): int(other[(0, *p)]) for p in places}, near=near, draw=draw)

    def exchanged(self, level: int, old: int, new: int, *, near: bool = True, draw: bool = False) -> "Edited":
        """Wherever z_level has one code it gets another; of several codes a site, in each codebook."""
        size = self._variable(check_number(level, "level", 1, len(self.codes))).size
        for code in (old, new):
            check_number(code, "code", 0, size - 1)
        chosen = self.map(level)[0] == old
        if old == new or not chosen.any():
            raise InputError(f"code {old} does not occur in level {level}, or stays what it is: name another")
        changed = torch.where(chosen, new, self.map(level))
        return self._changed(level, changed, chosen, near, draw, f"exchanged({level}, {old}, {new}")

    @torch.no_grad()
    def varied(self, level: int, *, seed: int = 0, number: int = 0) -> "Edited":
        """z_level and what lies above stay, everything below is drawn as the model draws."""
        about = self._read(level), self.condition
        sample = self.model.vary(self.map(level), level, *about, seed=seed, first=number, decoder=self.decoder)
        codes = (*(sample.codes[below] for below in range(1, level)), *self.codes[level - 1 :])
        told = _given(seed=seed or None, number=number or None)
        lines = (*self.lines, f"image = image.varied({level}{told})")
        return replace(self, pixels=sample.pixels, codes=codes, seed=seed, number=number, lines=lines)

    @torch.no_grad()
    def blended(self, other: "Edited", shares: Sequence[float], *, seed: int = 0) -> "Edited":
        """Its layout with the texture of another; see :func:`vqstack.blend`."""
        labels = self._read(len(self.codes))
        about = labels, self.condition
        sample = blend(self.model, self.codes, other.codes, shares, *about, seed=seed, decoder=self.decoder)
        codes = tuple(sample.codes[level] for level in range(1, len(self.codes) + 1))
        before = (*other.lines, *self.lines)  # either may be a blend itself, with another one of its own
        name = f"other{sum(line.startswith('other') for line in before) or ''}"
        call = f"image = image.blended({name}, {list(shares)}{_given(seed=seed or None)})"
        lines = (*other.lines, f"{name} = image", *self.lines, call)
        return replace(self, pixels=sample.pixels, codes=codes, seed=seed, number=0, lines=lines)

    @torch.no_grad()
    def _changed(
        self, level: int, new: Tensor, chosen: Bool[Tensor, "*map"], near: bool, draw: bool, call: str
    ) -> "Edited":
        """With another map of a level: maps below follow, maps above are encoded again."""
        maps = [self.pixels, *self.codes]
        maps[level] = new
        if level:
            known = self._under(level, chosen[None]) if near else {}
            # The renderer makes all pixels at once: those that stay are put back.
            kept = known.pop(0, None) if self.decoder == "renderer" else None
            sampling = None if draw else SamplingSettings(mode=(True,), mean=(True,))
            sample = self.model.vary(
                new, level, self._read(level), self.condition, seed=self.seed, sampling=sampling, first=self.number,
                known=known, decoder=self.decoder,
            )  # fmt: skip
            pixels = sample.pixels if kept is None else torch.where(kept.given, kept.values, sample.pixels)
            maps[:level] = [pixels, *(sample.codes[number] for number in range(1, level))]
        for number in range(level + 1, len(maps)):
            maps[number] = self.model.stack.level(number).code(maps[number - 1])
        how = _given(near=None if near else False, draw=draw or None)
        lines = (*self.lines, f"image = image.{call}{how})")
        return replace(self, pixels=maps[0], codes=tuple(maps[1:]), lines=lines)

    def _read(self, level: int) -> Labels | None:
        """The labels, where something that draws below z_level reads them."""
        refiners = [self.model.refiner(number) for number in range(level, 0, -1)]
        return self.labels if any(r is not None and "label" in r.conditions for r in refiners) else None

    def _under(self, level: int, changed: Bool[Tensor, "one *map"]) -> dict[int, Known]:
        """The maps below z_level, known wherever they lie under no changed site."""
        known = dict[int, Known]()
        for number in range(level, 0, -1):
            here = self.model.stack.level(number)
            sites = changed.any(1) if here.quantizer.chain else changed
            for axis, scale in enumerate(here.scale, start=1):
                sites = sites.repeat_interleave(scale, axis)
            lower = here.lower
            sites = cropped(sites, here.below)
            changed = sites.unsqueeze(1).expand(1, *lower.shape) if len(lower.shape) > len(here.below) else sites
            known[number - 1] = Known(self.map(number - 1), ~changed)
        return known

    # --- names --------------------------------------------------------------------------------------------------------

    def _variable(self, level: int) -> Variable:
        return self.model.stack.variables[check_number(level, "level", 0, len(self.codes))]

    def _term(self, level: int) -> Term:
        """The factor of the likelihood over z_level."""
        name = self._variable(level).name
        return next(term for term in self.model.terms() if term.target.name == name)

    def _site(self, level: int, site: Site) -> Site:
        shape = self._variable(level).shape
        if len(site) != len(shape) or not all(0 <= place < size for place, size in zip(site, shape, strict=True)):
            raise InputError(f"site {site}: level {level} has a map of {by_axis(shape)}: give a place along each axis")
        return tuple(site)

    def _mask(self, level: int, sites: Sequence[Site] | None) -> Bool[Tensor, "*map"]:
        """Where sites are."""
        mask = torch.full(self._variable(level).shape, sites is None, device=self.pixels.device)
        for site in sites or ():
            mask[self._site(level, site)] = True
        if not mask.any():
            raise InputError("sites: none is given: name one, or leave them out for the whole map")
        return mask


def _given(**arguments: object) -> str:
    """Arguments of a call, but for those that are None."""
    return "".join(f", {name}={value!r}" for name, value in arguments.items() if value is not None)


def _with(condition: Floats | None) -> str:
    return "" if condition is None else ", condition=condition"
