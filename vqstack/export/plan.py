"""Which graphs a model has, what each takes and gives, and how they are walked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vqstack.cluster import ClusterTable
from vqstack.code_model import AutoregressiveCodeModel, CodeModel, CodeModelTerm, MaskedCodeModel
from vqstack.conditions import GIVEN
from vqstack.export.graphs import (
    CACHE,
    Begin,
    Encode,
    MeanOf,
    Picture,
    Product,
    Render,
    Score,
    Step,
    TableOf,
    is_padded,
)
from vqstack.level import Level
from vqstack.likelihood import CodeHead, Head
from vqstack.model import HierarchicalModel
from vqstack.nets import StagedDown, StagedUp
from vqstack.schedule import Schedule
from vqstack.terms import DecoderTerm, Term
from vqstack.variables import Variable
from vqstack.window import SeeingDecoder, WindowNetwork

IMAGES, SITES, CACHED = "b", "n", "t"
"""Names of axes that may have any size: images, sites of a step, places in the cache. Those of a map are m0, m1, …"""


@dataclass
class Port:
    """An input or an output.

    Attributes:
        name: of it.
        says: what its numbers are, with their unit.
        axes: a name for each axis that may have any size.
        example: of an input, values for the images that a graph is made and checked with.
    """

    name: str
    says: str
    axes: dict[int, str]
    example: Tensor | None = None

    def of(self, num: int) -> Tensor:
        """The example of the first ``num`` images."""
        assert self.example is not None
        for axis, name in self.axes.items():
            if name == IMAGES:
                return self.example.narrow(axis, 0, num).contiguous()
        return self.example


@dataclass
class Graph:
    """One file.

    Attributes:
        name: of the file, without its ending.
        module: what it computes.
        inputs, outputs: in their order.
        variadic: whether the module takes them as ``*given``.
    """

    name: str
    module: nn.Module
    inputs: list[Port]
    outputs: list[Port]
    variadic: bool = False


@dataclass
class Plan:
    """All graphs, and what the card says of walks; ``left_out`` has a reason for each part that is not exported."""

    graphs: list[Graph] = field(default_factory=list)
    walks: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, module: nn.Module, inputs: list[Port], outputs: list[Port], variadic: bool = False) -> str:
        """A graph more; its name."""
        self.graphs.append(Graph(name, module.eval(), inputs, outputs, variadic))
        return name


class Planner:
    """The plan of a model.

    Args:
        model: on the CPU.
        values: of its variables, of the images that graphs are made and checked with; with what they are given.
    """

    def __init__(self, model: HierarchicalModel, values: Mapping[str, Tensor]) -> None:
        self.model, self.values, self.plan = model, values, Plan()
        self.tables: dict[int, str | None] = {}

    def made(self) -> Plan:
        """See :class:`Plan`."""
        levels, plan = list(self.model.stack.levels), self.plan
        free = all(
            isinstance(level.encoder, StagedDown | ClusterTable) for level in levels
        )  # the others have positions
        free = free and not is_padded(levels[0])
        maps = [self.port(level.upper, free) for level in levels]
        plan.add("encode", Encode(levels), [self.port(levels[0].lower, free)], maps)
        self.pictures(levels[0])
        for level in levels:
            self.decoder(level)
        for term in self.model.terms():
            if isinstance(term, CodeModelTerm):
                self.transformer(term)
        self.score()
        return plan

    def port(self, variable: Variable, any_size: bool = False) -> Port:
        """Of the values of a variable."""
        last, first = variable.size - 1, len(variable.shape)
        kind = {"pixels": "values", "label": "class numbers"}.get(variable.name, "codes")
        says = f"{kind} 0 … {last}, no unit" + (", -1: not told" if variable.name == "label" else "")
        spatial = {axis: f"m{axis - 2}" for axis in range(2, 1 + first)} if variable.name == "pixels" else {}
        axes = {0: IMAGES} | (spatial if any_size else {})
        return Port(variable.name, says, axes, self.values.get(variable.name))

    def given(self, names: Sequence[str]) -> list[Port]:
        """Ports of values by their names."""
        variables = {v.name: v for v in self.model.stack.variables} | {
            t.target.name: t.target for t in self.model.terms()
        }
        known = {name: self.port(variable) for name, variable in variables.items()}
        known[GIVEN] = Port(
            GIVEN, "floats as the data set gives them, NaN: not told", {0: IMAGES}, self.values.get(GIVEN)
        )
        return [known[name] for name in names]

    def pictures(self, level: Level) -> None:
        """z_1 to pixels in one pass, by the decoder where it is a product, and by the renderer."""
        free = not is_padded(level)
        codes = level.upper
        if not isinstance(level.decoder, SeeingDecoder):
            any_size = free and isinstance(level.up, StagedUp)
            self.plan.add(
                "decode", Picture(level), [self.of_codes(codes, any_size)], [self.port(level.lower, any_size)]
            )
        if self.model.renderer is not None:
            render = Render(self.model.renderer, level, self.model.stack.values)
            self.plan.add("render", render, [self.of_codes(codes, free)], [self.port(level.lower, free)])

    def of_codes(self, codes: Variable, any_size: bool) -> Port:
        """Codes as an input, of maps of any size or of the model's."""
        port, last = self.port(codes), len(codes.shape)
        axes = len(self.model.stack.shape) - 1
        if any_size:
            port.axes |= {axis: f"m{axis - last + axes - 1}" for axis in range(1 + last - axes, 1 + last)}
        return port

    def decoder(self, level: Level) -> None:
        """A level's own decoder: one pass, or the steps of a window."""
        name, term = f"level-{level.number}", DecoderTerm(level)
        window = level.decoder.window if isinstance(level.decoder, SeeingDecoder) else None
        if window is None:
            outputs = [self.numbers(level.head, {0: IMAGES})]
            begin = self.plan.add(name, Product(level), self.given([level.upper.name]), outputs)
            self.walk(name, term, begin, None, [{"sites": list(range(_sites(level)))}], level.head)
        elif not isinstance(window, WindowNetwork):
            self.plan.left_out[name] = f"a decoder of family {level.settings.decoder.family}, which has no step here"
        else:
            tiles, schedule = window.tile_sites(), window.schedule
            steps = [{"sites": tiles[:, schedule.sites(k)].flatten().tolist()} for k in range(len(schedule))]
            self.stepped(name, term, [level.upper.name], steps, level.head)

    def transformer(self, term: CodeModelTerm) -> None:
        """The prior, or a refiner: one step a group."""
        model = term.model
        name = "prior" if term.row == "prior" else f"refiner-{term.levels[0].number}"
        over = term.levels[0].decoder if term.levels else None
        if isinstance(over, SeeingDecoder) and not isinstance(over.window, WindowNetwork):
            self.plan.left_out[name] = "it refines a decoder of a family that has no step here"
            return
        if model.conditions.attended:
            self.plan.left_out[name] = "its blocks attend to what is given, which no step here does"
            return
        above = [level.upper.name for level in (term.levels if term.segments else term.levels[:1])]
        self.stepped(name, term, [*above, *model.conditions], _steps(model), model.head)

    def stepped(self, name: str, term: Term, names: list[str], steps: list[dict[str, Any]], head: Head) -> None:
        """The two graphs of a walk: what is read once of what is given, and a step."""
        begin, state = None, dict[str, Tensor]()
        if names:
            module = Begin(term, names)
            with torch.no_grad():
                state = module.state({name: self.values[name] for name in names})
            ports = [Port(key, SAYS[key], _axes_of(key)) for key in state]
            begin = self.plan.add(f"{name}-begin", module, self.given(names), ports, variadic=True)
        model = term.model if isinstance(term, CodeModelTerm) else None
        largest = max(steps, key=lambda step: len(step["sites"]))
        several = {0: SITES} if len({len(step["sites"]) for step in steps}) > 1 else {}
        count = len(next(iter(self.values.values())))
        flat = self.values[term.target.name].reshape(count, head.channels, -1).mT.long().contiguous()
        inputs = [
            Port("values", "values of the map so far, by site; those not drawn yet are not read", {0: IMAGES}, flat),
            Port("sites", "numbers of the step's sites, raster order from 0", several, torch.tensor(largest["sites"])),
        ]
        outputs = [self.numbers(head, {0: IMAGES} | {1 + axis: name for axis, name in several.items()})]
        if isinstance(model, AutoregressiveCodeModel):
            says = "the site whose value each site reads, -1: none"
            inputs.append(Port("source", says, several, torch.tensor(largest["source"])))
            shape = _cache_of(model)
            empty = torch.randn(shape[0], count, shape[1], 4, shape[2])
            inputs += [Port(key, SAYS[key], _axes_of(key), state.pop(key, empty)) for key in CACHE]
            outputs += [Port(key, SAYS[key], _axes_of(key)) for key in CACHE]
        elif isinstance(model, MaskedCodeModel):
            known = torch.rand(flat.shape[:2]) < 0.5
            inputs.append(Port("known", "which sites' values may be read", {0: IMAGES}, known))
        inputs += [Port(key, SAYS[key], _axes_of(key), value.contiguous()) for key, value in state.items()]
        step = self.plan.add(f"{name}-step", Step(term, [port.name for port in inputs]), inputs, outputs, variadic=True)
        self.walk(name, term, begin, step, steps, head)

    def walk(
        self, name: str, term: Term, begin: str | None, step: str | None, steps: list[dict[str, Any]], head: Head
    ) -> None:
        """What the card says of a walk."""
        target, table = term.target, self.table(name, head)
        model = term.model if isinstance(term, CodeModelTerm) else None
        self.plan.walks[name] = {
            "target": target.name,
            "number": target.number,
            "shape": list(target.shape),
            "dtype": str(target.dtype).removeprefix("torch."),
            "sites": target.sites // head.channels,
            "channels": head.channels,
            "begin": begin,
            "step": step,
            "table": table,
            "mean": "pixels-mean" if head.ordered else None,
            "steps": steps,
        } | ({"cache": list(_cache_of(model))} if isinstance(model, AutoregressiveCodeModel) else {})

    def table(self, name: str, head: Head) -> str | None:
        """The graph from numbers to tables of ln P; none where numbers are logits of codes. Pixels share theirs."""
        if isinstance(head, CodeHead):
            return None
        if id(head) not in self.tables:
            shared = "pixels" if head.ordered else name
            numbers = torch.randn(7, 6, head.parameters)
            axes = {0: IMAGES, 1: SITES}
            inputs = [
                Port("numbers", "as a step gives them", axes, numbers),
                Port(
                    "values",
                    "values of each site's places so far",
                    axes,
                    torch.randint(head.size, (7, 6, head.channels)),
                ),
            ]
            says = "ln P of every value of each place given the values of the places before it, nats"
            self.tables[id(head)] = self.plan.add(
                f"{shared}-table", TableOf(head), inputs, [Port("log_probs", says, axes)]
            )
            if head.ordered:
                self.plan.add(
                    "pixels-mean", MeanOf(head), inputs[:1], [Port("means", f"values 0 … {head.size - 1}", axes)]
                )
        return self.tables[id(head)]

    def numbers(self, head: Head, axes: dict[int, str]) -> Port:
        """What a step gives of its sites."""
        says = "logits of the codes, nats" if isinstance(head, CodeHead) else "what a table is made of, no unit"
        return Port("numbers", says, axes)

    def score(self) -> None:
        """The nats of each row, of any values of all variables."""
        terms = self.model.terms()
        names = [v.name for v in self.model.stack.variables] + [t.target.name for t in terms if t.row == "label"]
        names += [GIVEN] * (self.model.condition is not None)
        says = f"nats by row: {', '.join(term.row for term in terms)}"
        self.plan.add("score", Score(terms, names), self.given(names), [Port("nats", says, {0: IMAGES})], variadic=True)


SAYS = {
    "cache_keys": "keys of the places before, by layer, no unit",
    "cache_values": "values of the places before, by layer, no unit",
    "told": "features of label and condition, no unit",
    "context": "features of each site, no unit",
    "base": "numbers of the decoder that is corrected, no unit",
    "features": "features of each site, no unit",
    "support": "which values a cluster allows",
}


def _axes_of(name: str) -> dict[int, str]:
    return {1: IMAGES, 3: CACHED} if name in CACHE else {0: IMAGES}


def _cache_of(model: AutoregressiveCodeModel) -> tuple[int, int, int]:
    """Layers, heads, numbers of a head."""
    settings = model.settings
    return settings.depth, settings.heads, settings.dim // settings.heads


def _steps(model: CodeModel) -> list[dict[str, Any]]:
    """Sites of each group, and of an autoregressive model what each of them reads."""
    schedule: Schedule = model.schedule
    steps: list[dict[str, Any]] = [{"sites": schedule.sites(k).tolist()} for k in range(len(schedule))]
    if isinstance(model, AutoregressiveCodeModel):
        read = [-1] * schedule.sizes[0] + model.source.tolist()
        for step, start, size in zip(steps, schedule.starts, schedule.sizes, strict=True):
            step["source"] = read[start : start + size]
    return steps


def _sites(level: Level) -> int:
    return level.lower.sites // level.head.channels
