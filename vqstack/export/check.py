"""What a file gives against what torch gives: numbers to a tolerance, whole numbers equal but for counted ties."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqstack.errors import InputError
from vqstack.export.graphs import Encode, MeanOf, Picture, Render
from vqstack.export.plan import Graph
from vqstack.export.run import Exported, drawn
from vqstack.level import EncodingLevel
from vqstack.likelihood import Distribution, Draw, noise, walked_by_site
from vqstack.model import HierarchicalModel
from vqstack.model_settings import SamplingSettings

RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""Tolerance of numbers: |file - torch| <= ABSOLUTE + RELATIVE |torch|."""
NUDGE, NUDGES = 1e-4, 64
"""A tie: torch decides as the file does once its numbers are moved by this share of their size, one way of so many."""
TIE = 1e-4
"""A tie of a draw: the uniform lies this near to the edge between two values."""
NUMS = (1, 3, 7)
"""Images of the batches that are checked."""


def check_graph(exported: Exported, graph: Graph) -> dict[str, Any]:
    """Largest difference of numbers, and ties of whole numbers, over all batches. InputError where there are others."""
    worst, ties, compared = 0.0, 0, 0
    for num in NUMS:
        given = [port.of(num) for port in graph.inputs]
        arrays = {port.name: value.numpy() for port, value in zip(graph.inputs, given, strict=True)}
        found = [torch.from_numpy(np.array(x)) for x in exported.run(graph.name, arrays).values()]
        with torch.no_grad():
            expected = graph.module(*given)
        expected = [expected] if isinstance(expected, Tensor) else expected
        for port, one, other in zip(graph.outputs, found, expected, strict=True):
            if one.shape != other.shape or one.dtype != other.dtype:
                raise InputError(f"{graph.name}: {port.name} is {one.dtype} {tuple(one.shape)}: nothing was exported")
            if one.is_floating_point():
                worst = max(worst, _difference(f"{graph.name}: {port.name}", one, other))
        for count, whole in _ties(graph, given, found):
            ties, compared = ties + count, compared + whole
    return {"difference": worst, "ties": ties, "whole_numbers": compared}


def _difference(what: str, one: Tensor, other: Tensor) -> float:
    """The largest difference of two floats; InputError past the tolerance."""
    if not torch.isclose(one, other, RELATIVE, ABSOLUTE).all():
        raise InputError(f"{what}: numbers differ from those of torch by more than rounding: nothing was exported")
    both = one.isfinite() & other.isfinite()
    return (one - other)[both].abs().max().item() if both.any() else 0.0


@torch.no_grad()
def _ties(graph: Graph, given: list[Tensor], found: list[Tensor]) -> Iterator[tuple[int, int]]:
    """Ties and whole numbers of each output of whole numbers."""
    module = graph.module
    if isinstance(module, Encode):
        below = given[0]
        for level, codes in zip(module.levels, found, strict=True):
            if isinstance(level, EncodingLevel):  # each level given the codes of the file below: a tie does not spread
                settle, numbers = level.quantizer.unchecked_encode, level.encoder(level.features(below))
                yield ties_of(graph.name, settle, numbers, codes), codes.numel()
            elif not torch.equal(level.code(below), codes):  # type: ignore[operator]
                raise InputError(f"{graph.name}: other clusters than torch's: nothing was exported")
            below = codes
    elif isinstance(module, Picture | Render | MeanOf):
        yield ties_of(graph.name, module.settle, module.numbers(given[0]), found[0]), found[0].numel()


def ties_of(what: str, settle: Any, numbers: Tensor, found: Tensor) -> int:
    """How many whole numbers differ from those of ``settle(numbers)``; InputError where one is no tie."""
    differ = settle(numbers) != found
    left, generator = differ.clone(), torch.Generator().manual_seed(0)
    for _ in range(NUDGES if left.any() else 0):
        nudge = torch.randn(numbers.shape, generator=generator) * (numbers.abs() + numbers.square().mean().sqrt())
        left &= settle(numbers + NUDGE * nudge) != found
    if left.any():
        raise InputError(f"{what}: {int(left.sum())} whole numbers differ from those of torch: nothing was exported")
    return int(differ.sum())


class Beside:
    """Walks a file beside a distribution of torch, whose values it takes from step to step.

    Attributes:
        ties: values that were chosen otherwise, at a tie.
        difference: the largest of ln P of a value, nats.
    """

    def __init__(self, exported: Exported, name: str, distribution: Distribution, truth: Tensor) -> None:
        self.exported, self.name, self.ties, self.values = exported, name, 0, truth.numel()
        walk = exported.card["walks"][name]
        flat = truth.reshape(len(truth), walk["channels"], -1).long()
        self.truth, self.shape = flat.mT.numpy(), flat.shape
        self.by_site = walked_by_site(distribution, truth).view(flat.shape).mT
        self.found = torch.zeros_like(self.by_site)

    def walk(self, given: dict[str, np.ndarray], uniforms: np.ndarray | None) -> dict[str, Any]:
        """Draw at uniforms [b, c * N], or without them take what is likeliest; what was found."""
        exported, sites_of_map = self.exported, self.exported.card["walks"][self.name]["sites"]

        def choose(walk: dict[str, Any], numbers: np.ndarray, sites: np.ndarray) -> np.ndarray:
            truth = self.truth[:, sites]
            tables = exported.log_probs(walk, numbers, truth)
            self.found[:, sites] = torch.from_numpy(np.take_along_axis(tables, truth[..., None], -1)[..., 0])
            for place in range(walk["channels"]):
                table, value = tables[:, :, place], truth[:, :, place]
                if uniforms is None:
                    self._likeliest(table, value)
                else:
                    self._drawn(table, value, uniforms[:, place * sites_of_map + sites])
            return truth

        exported.walk(self.name, given, choose, len(self.truth))
        difference = _difference(f"{self.name}: ln P", self.found, self.by_site)
        return {"difference": difference, "ties": self.ties, "whole_numbers": self.values}

    def _drawn(self, table: np.ndarray, truth: np.ndarray, uniform: np.ndarray) -> None:
        differ = drawn(table, uniform) != truth
        cdf = np.exp(table.astype(np.float64)).cumsum(-1)
        upper = np.take_along_axis(cdf, truth[..., None], -1)[..., 0]
        lower = upper - np.exp(np.take_along_axis(table, truth[..., None], -1)[..., 0])
        self._count(differ, (uniform >= lower - TIE) & (uniform <= upper + TIE))

    def _likeliest(self, table: np.ndarray, truth: np.ndarray) -> None:
        chosen = np.take_along_axis(table, truth[..., None], -1)[..., 0]
        self._count(table.argmax(-1) != truth, chosen >= table.max(-1) - TIE)

    def _count(self, differ: np.ndarray, near: np.ndarray) -> None:
        if (differ & ~near).any():
            raise InputError(f"{self.name}: {(differ & ~near).sum()} values are chosen otherwise: nothing was exported")
        self.ties += int(differ.sum())


@torch.no_grad()
def check_walks(exported: Exported, model: HierarchicalModel, num: int = 3) -> dict[str, dict[str, Any]]:
    """Of each walk what :class:`Beside` finds: of those of a sample at its draws, of decoders at what is likeliest."""
    found: dict[str, dict[str, Any]] = {}
    condition = given_floats(model, num)
    plain = SamplingSettings()
    sample = model.sample(num, condition=condition, sampling=plain)
    values = model.values(sample.pixels, [sample.codes[n] for n in sorted(sample.codes)], sample.labels, condition)
    arrays = {name: value.numpy() for name, value in values.items()}
    terms = [term for term in model.terms() if term.row != "label"]
    for name, term in zip(exported.card["sample"], terms, strict=True):
        if name not in exported.card["walks"]:
            continue
        distribution = term.distribution(values, num)
        drawn_at = noise(0, range(num), term.target.number, distribution.sites).numpy()
        beside = Beside(exported, name, distribution, values[term.target.name])
        found[name] = beside.walk(arrays, drawn_at)
    for level in model.stack.levels:
        name = f"level-{level.number}"
        if name not in exported.card["walks"] or name in found:
            continue
        distribution = level.decode(values[level.upper.name])
        uniforms = noise(0, range(num), 0, distribution.sites) if level.number == 1 else None
        truth = distribution.mode() if uniforms is None else distribution.sample(uniforms, Draw())
        beside = Beside(exported, name, distribution, truth)
        found[name] = beside.walk(arrays, None if uniforms is None else uniforms.numpy())
    return found


def given_floats(model: HierarchicalModel, num: int) -> Tensor | None:
    """Floats to try a model with that is given any."""
    if model.condition is None:
        return None
    return torch.randn(num, *model.condition.shape, generator=torch.Generator().manual_seed(0))
