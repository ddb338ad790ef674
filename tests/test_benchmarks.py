"""benchmarks/run.py: each of its lines compares two sides that still work, and where it can tell, that agree."""

import runpy
from pathlib import Path

import pytest
import torch

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "run.py"))
LONG = ("lookup", "windows")  # take twenty seconds each


@pytest.mark.parametrize(
    "line", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in SCRIPT["LINES"]]
)
def test_both_sides_of_a_line_run(line, monkeypatch):
    comparisons = SCRIPT["LINES"][line]
    for name, small in {"DEPTH": 1, "DIM": 64, "HEADS": 2}.items():
        monkeypatch.setitem(comparisons.__globals__, name, small)
    for comparison in comparisons(torch.device("cpu")):
        comparison.ours()
        comparison.other()
