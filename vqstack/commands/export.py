"""Write a model as files that run without vqstack: vqstack export RUN --out FOLDER [--format onnx|torch] [--parts …].

Every file is compared with torch before the folder is there. Beside ONNX files lies ``run.py``, which encodes, decodes
and samples with numpy and onnxruntime alone.
"""

from importlib.util import find_spec
from pathlib import Path

from pydantic import Field

from vqstack import threads
from vqstack.config import Positional, parse
from vqstack.errors import InputError
from vqstack.export.folder import Part, export
from vqstack.export.trace import OPSET, Format
from vqstack.model import HierarchicalModel
from vqstack.settings import Settings
from vqstack.terminal import say

NEEDED = ("onnx", "onnxscript", "onnxruntime")


class Command(Settings):
    """Write a model as files that run without vqstack."""

    run: Positional[Path] = Field(description="Folder of a run or of a released model, or OWNER/NAME on the hub.")
    out: Path = Field(description="Folder that receives the files; new or empty.")
    format: Format = Field(default="onnx", description="onnx: for onnxruntime; torch: programs of torch.export (.pt2).")
    parts: tuple[Part, ...] = Field(
        default=(),
        description="Of encode, decode, render, walk (steps, to sample), score; default: all that the model has.",
    )
    opset: int = Field(default=OPSET, ge=18, le=23, description="Version of the operators of ONNX, no unit.")

    def unused(self) -> dict[str, str]:
        """Options that are read by nothing, as the others are -> why, and what to do."""
        return {"opset": "of onnx alone: leave it or --format out"} if self.format == "torch" else {}


def main(arguments: list[str]) -> None:
    command = parse(Command, arguments)
    missing = [name for name in NEEDED if find_spec(name) is None]
    if command.format == "onnx" and missing:
        raise InputError(f"--format: onnx needs {', '.join(missing)}: pip install 'vqstack[export]', or take torch")
    model = HierarchicalModel.from_pretrained(command.run)
    threads.share_cores()
    card = export(model, command.out, command.format, command.parts, command.opset)
    size = sum(graph["bytes"] for graph in card["graphs"].values())
    seconds = sum(graph["seconds"] for graph in card["graphs"].values())
    ties = sum(part["check"]["ties"] for part in [*card["graphs"].values(), *card["walks"].values()])
    for name, why in card["left_out"].items():
        say(f"not exported: {name}: {why}")
    files = f"{len(card['graphs'])} file{'s' * (len(card['graphs']) != 1)}"
    say(
        f"{command.out}: {files}, {size / 1e6:.1f} MB, made in {seconds:.0f} s, equal to torch but "
        f"for {ties} {'tie' if ties == 1 else 'ties'}; README.md says how to run them"
    )
