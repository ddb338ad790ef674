"""The folder that an export is: a file for each graph, what runs them, and a card; checked before it is there."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch

from vqstack.conditions import GIVEN
from vqstack.errors import InputError
from vqstack.export.card import about, readme, write_card
from vqstack.export.check import NUMS, check_graph, check_walks, given_floats
from vqstack.export.plan import Graph, Plan, Planner
from vqstack.export.run import Exported
from vqstack.export.trace import ENDINGS, Format, load, save
from vqstack.model import HierarchicalModel
from vqstack.output import Output, check_folder
from vqstack.terminal import Progress

Part = Literal["encode", "decode", "render", "walk", "score"]
PARTS: tuple[Part, ...] = get_args(Part)
RUN, ABOUT = "run.py", "README.md"


def export(
    model: HierarchicalModel, out: Path, kind: Format = "onnx", parts: Sequence[Part] = (), opset: int = 20
) -> dict[str, Any]:
    """Write the graphs of a model to a new folder, after each was compared with torch; the card.

    Args:
        model: on the CPU, in eval mode.
        out: see :class:`Output`.
        kind: of the files.
        parts: what is wanted; none: all that the model has. A part that it has not is an InputError.
        opset: of ONNX.
    """
    check_folder(out, "export")
    plan = chosen(Planner(model, example(model)).made(), parts)
    card = about(model, plan, kind, opset)
    with TemporaryDirectory() as made:
        folder = Path(made)
        with Progress(plan.graphs, desc="export", unit="graph", disable=None) as graphs:
            for graph in graphs:
                begun = time.perf_counter()
                save(graph, folder / f"{graph.name}{ENDINGS[kind]}", kind, opset)
                entry = card["graphs"][graph.name]
                entry["seconds"] = round(time.perf_counter() - begun, 2)
                written = sorted(folder.glob(f"{entry['file']}*"))
                entry["bytes"] = sum(path.stat().st_size for path in written)
                entry["weights"] = next((path.name for path in written[1:]), None)
        write_card(card, folder)
        exported = Exported(folder, load(kind))
        for graph in plan.graphs:
            card["graphs"][graph.name]["check"] = check_graph(exported, graph)
        for name, found in check_walks(exported, model).items() if plan.walks else ():
            card["walks"][name]["check"] = found
        write_card(card, folder)
        if kind == "onnx":
            (folder / RUN).write_bytes((Path(__file__).parent / RUN).read_bytes())
        (folder / ABOUT).write_text(readme(card), "utf-8")
        output = Output(out, "export")
        with ExitStack() as files:
            for path in sorted(folder.iterdir()):  # open, not read: weights may be as large as memory
                output.write(path.name, files.enter_context(path.open("rb")))
            output.finish()
    return card


@torch.no_grad()
def example(model: HierarchicalModel) -> dict[str, torch.Tensor]:
    """Values of all variables of seven images that the model draws itself, and what they are given."""
    num = max(NUMS)
    condition = given_floats(model, num)
    sample = model.sample(num, seed=1, condition=condition)
    values = model.stack.named(sample.pixels, model.encode(sample.pixels))
    if sample.labels is not None:
        values["label"] = sample.labels
    return values if condition is None else {**values, GIVEN: condition}


def chosen(plan: Plan, parts: Sequence[Part]) -> Plan:
    """What is wanted of a plan; InputError for a part that is not there."""
    wanted = list(parts) or list(PARTS)
    refused = [f"{name}: {why}" for name, why in plan.left_out.items() if parts and "walk" in parts]
    if refused:
        raise InputError(f"--parts: walk cannot be exported of {refused[0]}: leave it out")
    for part in parts:
        if part not in {part_of(graph) for graph in plan.graphs} and part in ("render", "decode"):
            why = "this model has no renderer: leave render out"
            if part == "decode":
                why = "level 1 is drawn step by step, so decode is no single file: give walk, with which run.py decodes"
            raise InputError(f"--parts: {why}")
    graphs = [graph for graph in plan.graphs if part_of(graph) in wanted]
    return Plan(graphs, plan.walks if "walk" in wanted else {}, plan.left_out)


def part_of(graph: Graph) -> str:
    """The part that a graph belongs to."""
    return graph.name if graph.name in PARTS else "walk"
