"""The whole model: stack, refiners, prior; one likelihood for pixels and all codes, one sampler down to pixels."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vqstack.checks import check_number
from vqstack.code_model import (
    SHARED,
    AutoregressiveCodeModel,
    CodeModel,
    CodeModelTerm,
    UnifiedCodeModel,
    build_code_model,
    build_refiner,
)
from vqstack.conditions import GIVEN
from vqstack.errors import InputError
from vqstack.given import Given
from vqstack.ledger import Ledger
from vqstack.likelihood import Distribution, Draw, Known
from vqstack.model_settings import ModelSettings, SamplingSettings
from vqstack.nets import store_once
from vqstack.pretrained import Pretrained
from vqstack.renderer import Renderer, pixels_of
from vqstack.shapes import AnyCodes, Floats, Labels, Nats, Pixels, finest
from vqstack.stack import Stack
from vqstack.terms import DecoderTerm, LabelTerm, Term, Values, code_lengths, code_lengths_by_site, descend
from vqstack.variables import Variable

Decoder = Literal["likelihood", "renderer"]
"""What turns z_1 into pixels: level 1's decoder, which is a distribution, or what draws a picture to look at."""


@dataclass(frozen=True)
class Sample:
    """Generated images, the code maps they came from (z_1 … z_L, those that were drawn or given), and their labels."""

    pixels: Pixels
    codes: dict[int, AnyCodes]
    labels: Labels | None

    def __repr__(self) -> str:
        maps = ", ".join(f"z_{level} {[*codes.shape[1:]]}" for level, codes in sorted(self.codes.items()))
        return f"Sample({len(self.pixels)} images {[*self.pixels.shape[1:]]}, {maps})"


class HierarchicalModel(Given, Pretrained):
    """``P(y, z_1 … z_L, label | condition)``: labels by their training frequency, prior, decoders or refiners.

    Args:
        settings: see :class:`ModelSettings`.
    """

    settings_class = ModelSettings

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.stack = Stack(settings.stack, settings.image_shape, settings.values)
        top, codes = self.stack.levels[-1], self.stack.levels[-1].quantizer
        classes, given = settings.classes, settings.condition
        self.prior = build_code_model(settings.prior, top.map_shape, codes.size, classes, codes.dim, given, codes.chain)
        self.refiners = nn.ModuleDict(
            {
                str(refiner.level): build_refiner(
                    refiner,
                    self.stack.level(refiner.level),
                    classes,
                    self.prior.backbone if settings.unified and refiner.level > 1 else None,
                    given,
                )
                for refiner in settings.every_refiner
            }
        )
        if settings.unified:
            lower = [f"refiners.{number}." for number in range(2, len(self.stack) + 1)]
            store_once(self, {f"{name}{part}": f"prior.{part}" for name in lower for part in SHARED})
        self.classes = max(part.classes for part in self.parts)
        """Number of class labels that some part is conditional on; 0: none."""
        self.condition = settings.condition if any(GIVEN in part.conditions for part in self.parts) else None
        """The floats that some part is conditional on."""
        uniform = torch.full((self.classes,), 1 / max(self.classes, 1))
        self.label_probs: Tensor
        self.register_buffer("label_probs", uniform)
        lowest, self.renderer = self.stack.levels[0], None
        if settings.renderer is not None:  # built last: without it all else would start from the same numbers
            self.renderer = Renderer(
                settings.renderer, lowest.quantizer.dim, lowest.map_shape, lowest.scale, lowest.lower
            )

    @property
    def parts(self) -> list[CodeModel]:
        """The transformers: the prior and the refiners."""
        return [self.prior, *(self.refiner(int(number)) for number in self.refiners)]  # type: ignore[list-item]

    def refiner(self, level: int) -> CodeModel | None:
        """The refiner of a level, where it has one."""
        return self.refiners[str(level)] if str(level) in self.refiners else None  # type: ignore[return-value]

    def check_numbers(self) -> None:
        """ValueError as of every model, and where P(label) is no distribution in which every class is possible."""
        super().check_numbers()
        if self.classes and not (self.label_probs.min() > 0 and abs(self.label_probs.double().sum() - 1) < 1e-4):
            raise ValueError("label_probs: frequencies that are zero or below, or do not add up to 1")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HierarchicalModel":
        """InputError where numbers would become others than float32: likelihoods would no longer be exact."""
        if fn(torch.zeros(0)).dtype != torch.float32:
            raise InputError(
                "a model stays in float32 (codebooks and likelihoods need it): run it under torch.autocast for less"
            )
        return super()._apply(fn, recurse)

    def likelihood_state(self) -> dict[str, Tensor]:
        """The state without the renderer: what the ledger and the codec depend on."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("renderer.")}

    @property
    def segments(self) -> list[AutoregressiveCodeModel]:
        """With ``unified`` the parts that share a backbone: of z_L, …, z_1."""
        return [self.prior, *(self.refiner(number) for number in range(len(self.stack), 1, -1))]  # type: ignore[list-item]

    @property
    def unified(self) -> UnifiedCodeModel | None:
        """The transformer of all maps of codes, where there is one."""
        return UnifiedCodeModel(self.segments) if self.settings.unified else None

    def encode(self, pixels: Pixels) -> list[AnyCodes]:
        """``[z_1 … z_L]``."""
        return self.stack.encode(pixels)

    def decode(
        self, codes: AnyCodes, level: int = 1, num_codes: int | None = None, decoder: Decoder = "likelihood"
    ) -> Pixels:
        """The image given ``z_level``: code maps below by the mode of their decoders, pixels by the mean of theirs.

        Where a site has several codes, ``num_codes`` says how many of them count: fewer make a coarser image. With
        ``decoder="renderer"`` the renderer draws the pixels.
        """
        if self.check_decoder(decoder) == "likelihood":
            return self.stack.decode(codes, level, num_codes)
        if level == 1:
            return self.render(codes, num_codes)
        return self.render(self.stack.likeliest(codes, level, num_codes))

    @torch.no_grad()
    def render(self, codes: AnyCodes, num_codes: int | None = None) -> Pixels:
        """What the renderer draws of z_1, a function: no draw from any likelihood. InputError without a renderer."""
        self.check_decoder("renderer")
        assert self.renderer is not None
        return pixels_of(self.renderer(self.stack.vectors(codes, 1, num_codes)), self.stack.values)

    def check_decoder(self, decoder: Decoder) -> Decoder:
        """The name; InputError for one that is none, or that this model lacks."""
        if decoder not in get_args(Decoder):
            raise InputError(f"decoder: {decoder!r} is none: choose likelihood or renderer")
        if decoder == "renderer" and self.renderer is None:
            raise InputError(
                "decoder: this model has no renderer: train one (renderer in the recipe), or decode by likelihood"
            )
        return decoder

    def conditional(
        self,
        level: int,
        codes: AnyCodes,
        labels: Labels | None = None,
        *,
        condition: Floats | None = None,
        above: Sequence[AnyCodes] | None = None,
        refined: bool = True,
        known: Known | None = None,
        guidance: float = 1.0,
    ) -> Distribution:
        """``P(z_{level-1} | z_level)``, over pixels for level 1; what scoring, sampling and coding all walk.

        With ``unified`` it is ``P(z_{level-1} | z_level, z_{level+1} … z_L)`` for levels above 1.

        Args:
            level: l.
            codes: z_l.
            labels, condition: of the images; a refiner that is conditional but was trained to do without takes none.
            above: z_{level+1} … z_L as they were drawn or are scored; default: the encodings of z_level. Only the
                transformer of ``unified`` reads them.
            refined: use the level's refiner, where it has one.
            known: see :meth:`vqstack.code_model.CodeModel.distribution`.
            guidance: likewise.
        """
        given = {self.stack.level(level).upper.name: codes}
        if above is not None:
            if len(above) != len(self.stack) - level:
                raise InputError(f"above: {len(above)} maps: give z_{level + 1} … z_{len(self.stack)}, or none")
            given |= {self.stack.level(number).upper.name: z for number, z in enumerate(above, start=level + 1)}
        for variable in self.stack.variables[level:]:
            if variable.name in given:
                variable.check(given[variable.name], len(codes) if variable.number > level else None, self.device)
        if labels is not None:
            self.check_labels(labels, len(codes))
            given["label"] = labels
        if condition is not None:
            self.check_condition(condition, len(codes))
            given[GIVEN] = condition
        if known is not None:
            known = self._known({level - 1: known}, len(codes), level - 1)[level - 1]
        if not 0 <= guidance < math.inf:
            raise InputError(f"guidance: {guidance} is no number from 0 on: 1 is none, 2 to 4 are usual")
        return self.term(level, refined=refined).distribution(given, len(codes), known=known, guidance=guidance)

    def term(self, level: int, *, refined: bool = True) -> Term:
        """``P(z_{level-1} | z_level)``: the level's refiner, where it has one and it is chosen, or its own decoder."""
        decoder, refiner = self.stack.level(level), self.refiner(level) if refined else None
        if refiner is None:
            return DecoderTerm(decoder)
        segments = self.segments if self.settings.unified and level > 1 else ()
        return CodeModelTerm(f"level-{level}", decoder.lower, refiner, list(self.stack.levels)[level - 1 :], segments)

    def terms(self, *, refined: bool = True) -> list[Term]:
        """What the likelihood is the product of, in the order of drawing: label, if conditional, prior, level-L … 1."""
        numbers = range(len(self.stack), 0, -1)
        label = Variable("label", len(self.stack) + 1, (), self.classes)
        terms: list[Term] = [LabelTerm(label, self.label_probs)] if self.classes else []
        terms.append(CodeModelTerm("prior", self.stack.levels[-1].upper, self.prior))
        return terms + [self.term(number, refined=refined) for number in numbers]

    def values(
        self, pixels: Pixels, codes: list[AnyCodes], labels: Labels | None, condition: Floats | None = None
    ) -> dict[str, Tensor]:
        """Values of all variables by their names, and what is merely given; InputError where they do not fit."""
        values = self.stack.named(pixels, codes)
        self.check_labels(labels, len(pixels))
        self.check_condition(condition, len(pixels))
        given = {"label": labels, GIVEN: condition}
        return {**values, **{name: value for name, value in given.items() if value is not None}}

    def code_lengths(
        self,
        pixels: Pixels,
        codes: list[AnyCodes],
        labels: Labels | None = None,
        condition: Floats | None = None,
        *,
        refined: bool = True,
    ) -> dict[str, Nats]:
        """Nats of each image by row: label (if conditional), prior, level-L … level-1, for any codes z_1 … z_L.

        All rows are given ``condition``, which has none itself. ``refined=False`` gives the rows of the feed-forward
        decoders.
        """
        return code_lengths(self.terms(refined=refined), self.values(pixels, codes, labels, condition), len(pixels))

    @torch.no_grad()
    def code_lengths_by_site(
        self, pixels: Pixels, codes: list[AnyCodes], labels: Labels | None = None, condition: Floats | None = None
    ) -> dict[str, Tensor]:
        r"""What :meth:`code_lengths` adds up, nats, of each site given those drawn before it: by row, [b, \*shape]."""
        return code_lengths_by_site(self.terms(), self.values(pixels, codes, labels, condition), len(pixels))

    @torch.no_grad()
    def likeliest_labels(self, pixels: Pixels, codes: list[AnyCodes], condition: Floats | None = None) -> Labels:
        """For each image the class that makes the rows which read it shortest; the model must know classes."""
        terms = [t for t in self.terms() if t.row == "label" or (isinstance(t, CodeModelTerm) and t.model.classes)]
        values = self.stack.named(pixels, codes) | ({} if condition is None else {GIVEN: condition})
        nats = list[Tensor]()
        for number in range(self.classes):
            values["label"] = torch.full((len(pixels),), number, device=self.device)
            nats.append(torch.stack(list(code_lengths(terms, values, len(pixels)).values())).sum(0))
        return torch.stack(nats, 1).argmin(1)

    def random_order_nats(
        self, pixels: Pixels, codes: list[AnyCodes], labels: Labels | None = None, condition: Floats | None = None
    ) -> dict[str, Nats]:
        """One-pass estimates by row of the masked models, see :meth:`MaskedCodeModel.random_order_nats`; no ledger."""
        values = self.values(pixels, codes, labels, condition)
        models = [term for term in self.terms() if isinstance(term, CodeModelTerm)]
        found = {term.row: term.random_order_nats(values, len(pixels)) for term in models}
        return {row: nats for row, nats in found.items() if nats is not None}

    def joint_log_prob(
        self, pixels: Pixels, codes: list[AnyCodes], labels: Labels | None = None, condition: Floats | None = None
    ) -> Nats:
        """``ln P(y, z_1 … z_L, label | condition)``, nats; over all but the condition probabilities sum to one."""
        rows = self.code_lengths(pixels, codes, labels, condition).values()
        return -torch.stack([nats.to(finest(self.device)) for nats in rows]).sum(0)

    @torch.no_grad()
    def ledger(self, pixels: Pixels, labels: Labels | None = None, condition: Floats | None = None) -> Ledger:
        """The ledger of images: code lengths with z = enc(y)."""
        return Ledger.of(self.code_lengths(pixels, self.encode(pixels), labels, condition), self.dims, self.given)

    @property
    def dims(self) -> dict[str, int]:
        """Sites that each row of the ledger describes."""
        return {term.row: term.target.sites for term in self.terms()}

    @torch.no_grad()
    def sample(
        self,
        num: int,
        labels: Labels | None = None,
        condition: Floats | None = None,
        *,
        seed: int = 0,
        sampling: SamplingSettings | None = None,
        first: int = 0,
        known: Mapping[int, Known] | None = None,
        decoder: Decoder = "likelihood",
    ) -> Sample:
        """Images number ``first`` … ``first + num - 1`` of the seed, from the prior down to pixels.

        Args:
            num: how many.
            labels: one per image; drawn from P(label) when none are given and the model is conditional.
            condition: floats for each image, if the model is given any.
            seed: with the image's number it names all noise; batch size and device do not matter.
            sampling: default: the model's own settings.
            first: number of the first image.
            known: partly filled maps by level (0: pixels); the rest is drawn.
            decoder: what makes pixels of z_1; the renderer draws no lots, and knows no pixels beforehand.
        """
        indices = self._numbers(seed, first, check_number(num, "num", 0, 2**48))
        draws, terms = self.settings.draws(sampling), self.terms()
        self.check_condition(condition, num, anywhere=True)
        given = self._given(labels, condition, num)
        if "label" in given:
            terms = terms[1:]
        elif self.classes:
            draws = [Draw(), *draws]
        told = self._known(known, num, len(self.stack), decoder)
        return self._sample(terms, given, draws, seed, indices, told, decoder)

    @torch.no_grad()
    def vary(
        self,
        codes: AnyCodes,
        level: int,
        labels: Labels | None = None,
        condition: Floats | None = None,
        *,
        seed: int = 0,
        sampling: SamplingSettings | None = None,
        first: int = 0,
        known: Mapping[int, Known] | None = None,
        decoder: Decoder = "likelihood",
    ) -> Sample:
        """Variations: keep ``z_level``, draw everything below it. Only some refiners read labels or condition."""
        upper = self.stack.level(level).upper
        upper.check(codes)
        draws = self.settings.draws(sampling)[-level:]
        indices = self._numbers(seed, first, len(codes))
        given = {upper.name: codes.to(self.device), **self._given(labels, condition, len(codes))}
        terms = [self.term(number) for number in range(level, 0, -1)]
        told = self._known(known, len(codes), level - 1, decoder)
        return self._sample(terms, given, draws, seed, indices, told, decoder)

    def _sample(
        self,
        terms: list[Term],
        given: Values,
        draws: list[Draw],
        seed: int,
        indices: range,
        known: Mapping[int, Known],
        decoder: Decoder,
    ) -> Sample:
        """Everything that the terms draw; the renderer takes the place of the last of them."""
        if self.check_decoder(decoder) == "renderer":
            values = descend(terms[:-1], given, draws[:-1], seed, indices, known)
            values = {**values, "pixels": self.render(values[self.stack.levels[0].upper.name])}
        else:
            values = descend(terms, given, draws, seed, indices, known)
        maps = {variable.number: values.get(variable.name) for variable in self.stack.variables[:0:-1]}
        return Sample(values["pixels"], {n: z for n, z in maps.items() if z is not None}, values.get("label"))

    @staticmethod
    def _numbers(seed: int, first: int, num: int) -> range:
        """Numbers of the images, which name their noise with the seed."""
        check_number(seed, "seed", 0, 2**63 - 1)
        first = check_number(first, "first", 0, 2**63 - 1)
        return range(first, first + num)

    def _known(
        self, known: Mapping[int, Known] | None, num: int, highest: int, decoder: Decoder = "likelihood"
    ) -> Mapping[int, Known]:
        """Partly filled maps, checked: of levels that are drawn, and see :meth:`Variable.checked`."""
        lowest = 1 if decoder == "renderer" else 0
        for level in known or {}:
            if not lowest <= level <= highest:
                raise InputError(f"known: level {level} is not drawn here: give maps of levels {lowest} … {highest}")
        return {level: self.stack.variables[level].checked(told, num) for level, told in (known or {}).items()}
