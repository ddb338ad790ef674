"""benchmarks/run.py: each of its lines compares two sides that still work, and where it can tell, that agree."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[1] / "benchmarks" / "run.py"
SPEC = importlib.util.spec_from_file_location(FILE.stem, FILE)  # as child processes of its lines find it, too
script = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = script  # its dataclasses look there for what their annotations name
SPEC.loader.exec_module(script)
LONG = ("lookup", "memory", "windows")  # take twenty seconds each, or processes of their own


@pytest.mark.parametrize(
    "line", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in script.LINES]
)
def test_both_sides_of_a_line_run(line, monkeypatch):
    for name, small in {"DEPTH": 1, "DIM": 64, "HEADS": 2}.items():
        monkeypatch.setattr(script, name, small)
    monkeypatch.syspath_prepend(str(FILE.parent))
    for comparison in script.LINES[line](torch.device("cpu")):
        comparison.ours()
        comparison.other()
