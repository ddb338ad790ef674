"""benchmarks/gpu.py checks itself at toy size, and ends when its time is up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def told(out, *more):
    """The last line that it prints, and what it has written."""
    given = [sys.executable, SCRIPT, "--toy", "--out", out, *map(str, more)]
    done = subprocess.run(given, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1], json.loads(out.read_text("utf-8"))


@pytest.mark.slow
def test_it_checks_itself(tmp_path):
    said, found = told(tmp_path / "gpu.json", "--seconds", 600)
    assert len(found["rows"]) == 5 and found["rows"][-1]["equal"] is True
    assert "falls short: " in said and all(what in said for what in found["short"])
    assert all(row["ratio"] > 0 for row in found["rows"][:-1]) and found["toy"]


@pytest.mark.slow
def test_its_time_has_an_end(tmp_path):
    said, found = told(tmp_path / "gpu.json", "--seconds", 1)
    assert len(found["rows"]) < 5 and "cut off after 1 s" in said
