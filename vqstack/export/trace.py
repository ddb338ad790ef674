"""A graph to a file, and a file to a function: by torch.export, as it is (``torch``) or as ONNX (``onnx``)."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vqstack.errors import InputError, reason
from vqstack.export.plan import Graph
from vqstack.export.run import onnx_graph

Format = Literal["onnx", "torch"]
ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
OPSET = 20
FIRST = 3  # images that a graph is traced with; any number may follow


def traced(graph: Graph) -> torch.export.ExportedProgram:
    """The graph as torch.export has it, with axes of any size where its ports say so. InputError where it cannot."""
    names = {name for port in graph.inputs for name in port.axes.values()}
    sizes = {name: torch.export.Dim.DYNAMIC if name[0] == "m" else torch.export.Dim(name) for name in names}
    shapes: Any = tuple({axis: sizes[name] for axis, name in port.axes.items()} for port in graph.inputs)
    example = tuple(port.of(FIRST) for port in graph.inputs)
    if graph.variadic:
        shapes = {"given": shapes}
    with _quiet(), torch.no_grad():
        try:
            return torch.export.export(graph.module, example, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # of many kinds, none of them documented
            raise InputError(
                f"{graph.name}: torch.export cannot follow it ({reason(error)[:300]}): leave its part out with --parts"
            ) from error


def save(graph: Graph, path: Path, kind: Format, opset: int) -> None:
    """Write one graph; of ONNX, weights of more than two gigabytes lie in a file of their own, ``NAME.onnx.data``."""
    program = traced(graph)
    with _quiet(), torch.no_grad():
        if kind == "torch":
            torch.export.save(program, path)
            return
        if any(node.target in REWRITTEN for node in program.graph.nodes):
            program = program.run_decompositions(REWRITTEN)
        try:
            found = torch.onnx.export(
                program,
                input_names=[port.name for port in graph.inputs],
                output_names=[_output(graph, port.name) for port in graph.outputs],
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            raise InputError(
                f"{graph.name}: torch.onnx.export cannot write it at opset {opset} ({reason(error)[-300:]}): try "
                "another --opset, leave its part out with --parts, or take --format torch"
            ) from error
        assert found is not None
        found.save(path)


def _output(graph: Graph, name: str) -> str:
    """A graph has one name for one value: the cache that leaves a step has another than the one that enters."""
    return f"new_{name}" if any(port.name == name for port in graph.inputs) else name


def load(kind: Format) -> Callable[[Path], Callable[[list[np.ndarray]], Sequence[np.ndarray]]]:
    """Opens a file of a format as a function of numpy arrays."""
    return onnx_graph if kind == "onnx" else _torch_graph


def _torch_graph(path: Path) -> Callable[[list[np.ndarray]], Sequence[np.ndarray]]:
    module = torch.export.load(path).module()

    def run(given: list[np.ndarray]) -> Sequence[np.ndarray]:
        with torch.no_grad():
            found = module(*(torch.from_numpy(array) for array in given))
        return [part.numpy() for part in ([found] if isinstance(found, Tensor) else found)]

    return run


def _cross_entropy(scores: Tensor, target: Tensor, weight: None = None, reduction: int = 0, *others: Any) -> Tensor:
    """``-ln softmax(scores)[target]`` of every place; the package asks for nothing else."""
    assert weight is None and reduction == 0 and not any(other for other in others[1:])
    return -scores.log_softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)


def _softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``ln(1 + e^x)`` of doubles."""
    if x.dtype != torch.float64 or beta != 1:
        return NotImplemented
    return x.clamp(min=0) + (1 + (-x.abs()).exp()).log()


REWRITTEN: dict[Any, Callable[..., Tensor]] = {
    # The converter keeps it whole, and takes the mean of what should stay apart.
    torch.ops.aten.cross_entropy_loss.default: _cross_entropy,
    # onnxruntime has it of floats alone.
    torch.ops.aten.softplus.default: _softplus,
}
"""Operations that are written in others before they become ONNX."""


@contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries say of themselves is kept from the terminal."""
    noisy = logging.getLogger("torch.onnx"), logging.getLogger("torch.export"), logging.getLogger("onnxscript")
    before = [logger.level for logger in noisy]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(noisy, before, strict=True):
                logger.setLevel(level)
