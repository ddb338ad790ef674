"""The card of an export: for programs ``export.json``, for people ``README.md``."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqstack import __version__
from vqstack.export.check import ABSOLUTE, NUMS, RELATIVE
from vqstack.export.plan import Graph, Plan, Port
from vqstack.export.trace import ENDINGS, FIRST, Format
from vqstack.model import HierarchicalModel
from vqstack.shapes import by_axis

CARD = "export.json"


def about(model: HierarchicalModel, plan: Plan, kind: Format, opset: int) -> dict[str, Any]:
    """The card, without what is measured."""
    terms, levels, told = model.terms(), model.stack.levels, model.condition
    drawn = [_walk_of(model, term.row) for term in terms if term.row != "label"]
    labels = [
        {"number": t.target.number, "log_probs": model.label_probs.log().tolist()} for t in terms if t.row == "label"
    ]
    return {
        "format": kind,
        "opset": opset if kind == "onnx" else None,
        "vqstack": __version__,
        "torch": torch.__version__,
        "images": {"shape": model.stack.shape, "values": model.stack.values},
        "maps": {level.upper.name: {"shape": list(level.upper.shape), "codes": level.upper.size} for level in levels},
        "rows": [term.row for term in terms],
        "label": labels[0] if labels else None,
        "class_names": list(model.settings.class_names),
        "condition": {"name": told.name, "shape": list(told.shape)} if told else None,
        "sampling": {name: draw.model_dump() for name, draw in zip(drawn, model.settings.draws(), strict=True)},
        "sample": drawn,
        "renderer": model.renderer is not None,
        "left_out": plan.left_out,
        "tolerance": {"relative": RELATIVE, "absolute": ABSOLUTE},
        "graphs": {graph.name: _entry(graph, ENDINGS[kind]) for graph in plan.graphs},
        "walks": plan.walks,
    }


def _walk_of(model: HierarchicalModel, row: str) -> str:
    """The walk that draws what a row of the ledger is about."""
    number = row.removeprefix("level-")
    return f"refiner-{number}" if number.isdigit() and model.refiner(int(number)) is not None else row


def _entry(graph: Graph, ending: str) -> dict[str, Any]:
    given = [port.of(FIRST) for port in graph.inputs]
    with torch.no_grad():
        found = graph.module(*given)
    outputs = [found] if isinstance(found, Tensor) else found
    return {
        "file": f"{graph.name}{ending}",
        "inputs": [_port(port, value) for port, value in zip(graph.inputs, given, strict=True)],
        "outputs": [_port(port, value) for port, value in zip(graph.outputs, outputs, strict=True)],
    }


def _port(port: Port, value: Tensor) -> dict[str, Any]:
    shape = [port.axes.get(axis, size) for axis, size in enumerate(value.shape)]
    return {"name": port.name, "dtype": str(value.dtype).removeprefix("torch."), "shape": shape, "says": port.says}


def write_card(card: dict[str, Any], folder: Path) -> None:
    """``export.json``."""
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", "utf-8")


def readme(card: dict[str, Any]) -> str:
    """The card for people."""
    form = f"ONNX, opset {card['opset']}" if card["opset"] else "torch.export (.pt2)"
    images, tolerance = card["images"], card["tolerance"]
    lines = [
        "# An exported hierarchy",
        "",
        f"{form}, by vqstack {card['vqstack']} and torch {card['torch']}. Images: {by_axis(images['shape'])}, values "
        f"0 … {images['values'] - 1}.",
        "",
        *(_run_py(card) if card["opset"] else _programs(card)),
        "",
        "`export.json` says the same as this page, and the sites of every step.",
        "",
        "Axes: b images, n sites of a step, t places in the cache, m0 m1 … sites of a map. They may have any size.",
        "",
        f"Numbers were compared with torch on batches of {', '.join(map(str, NUMS))} images. They may differ by "
        f"{tolerance['absolute']} and {tolerance['relative']} of their size. Whole numbers must be equal but for ties, "
        "which are counted.",
        "",
    ]
    for graph in card["graphs"].values():
        lines += _of_graph(graph)
    if card["walks"]:
        lines += _of_walks(card)
    lines += [f"Not exported: {name}, {why}." for name, why in card["left_out"].items()]
    return "\n".join(lines).rstrip() + "\n"


def _run_py(card: dict[str, Any]) -> list[str]:
    """Commands of ``run.py`` for which all files are there."""
    graphs, walks = card["graphs"], card["walks"]
    floats = " --condition condition.npy" * bool(card["condition"])
    told = " --label labels.npy" * bool(card["label"]) + floats
    lines = ["python run.py encode images.npy codes.npz"] * ("encode" in graphs)
    lines += ["python run.py decode codes.npz means.npy"] * ("decode" in graphs or "level-1" in walks)
    lines += ["python run.py decode codes.npz images.npy --decoder renderer"] * ("render" in graphs)
    lines += [f"python run.py sample 16 images.npy --seed 1{floats}"] * (walks.keys() >= set(card["sample"]))
    lines += [f"python run.py score images.npy nats.npz{told}"] * (graphs.keys() >= {"encode", "score"})
    calls = ["Exported(FOLDER).encode(pixels)"] * ("encode" in graphs) + ["Exported(FOLDER).run(NAME, inputs)"]
    return [
        "`run.py` runs it with numpy and onnxruntime alone:",
        *(["", "```sh", "pip install numpy onnxruntime", *lines, "```"]),
        "",
        f"From Python: `{'`, or `'.join(calls)}` for the outputs of one file by name.",
    ]


def _programs(card: dict[str, Any]) -> list[str]:
    """How the first program is opened."""
    graph = next(iter(card["graphs"].values()))
    inputs = ", ".join(port["name"] for port in graph["inputs"])
    return [
        f"Programs for torch alone, inputs in the order below. Open them with torch {card['torch']}, which wrote them; "
        "other versions may not read them:",
        *("", "```python", "import torch", ""),
        f'program = torch.export.load("{graph["file"]}").module()',
        f"outputs = program({inputs})",
        "```",
    ]


def _of_graph(graph: dict[str, Any]) -> list[str]:
    check = graph["check"]
    lines = [f"## {graph['file']}", "", "| | name | type | shape | what |", "|---|---|---|---|---|"]
    for way in ("inputs", "outputs"):
        for port in graph[way]:
            shape = " × ".join(map(str, port["shape"]))
            lines.append(f"| {way[:-1]} | {port['name']} | {port['dtype']} | {shape} | {port['says']} |")
    whole = f", {check['ties']} ties of {check['whole_numbers']} whole numbers" if check["whole_numbers"] else ""
    beside = f", with its weights in `{graph['weights']}`" if graph["weights"] else ""
    found = f"Largest difference from torch {check['difference']:.1e}{whole}."
    return [*lines, "", f"{graph['bytes']} bytes{beside}. {found}", ""]


def _of_walks(card: dict[str, Any]) -> list[str]:
    lines = [
        "## Walks",
        "",
        "| walk | of | begin | step | steps | table | ln P differs by, nats | ties |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, walk in card["walks"].items():
        check, parts = walk["check"], [walk[part] or "" for part in ("begin", "step")]
        ties = f"{check['ties']} of {check['whole_numbers']}"
        cells = [
            name,
            walk["target"],
            *parts,
            len(walk["steps"]),
            walk["table"] or "",
            f"{check['difference']:.1e}",
            ties,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, "", f"A sample walks {', '.join(map(str, card['sample']))}, in this order.", ""]
