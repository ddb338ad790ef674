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
    *compared, walk, bits, small, large, pictures = found["rows"]
    assert len(compared) == 3 and bits["equal"] is True
    assert "falls short: " in said and all(what in said for what in found["short"])
    assert all(row["ratio"] > 0 for row in (*compared, walk, small, large)) and found["toy"]
    assert all(0 < pictures[side]["used"] <= 1 and pictures[side]["frechet"] > 0 for side in ("ours", "bare"))
    assert pictures["steps"] > 0 and pictures["floor"] > 0


@pytest.mark.slow
def test_its_time_has_an_end(tmp_path):
    said, found = told(tmp_path / "gpu.json", "--seconds", 1)
    assert len(found["rows"]) < 8 and "cut off after 1 s" in said


FAILING = """
import sys
sys.path.insert(0, sys.argv[1])
import gpu

def fails(size, device):
    yield {"what": "before"}, True
    raise RuntimeError("no memory is left")

def stands(size, device):
    yield {"what": "after"}, True

gpu.sections = lambda data: {"first": fails, "second": stands}
gpu.main(["--toy", "--out", sys.argv[2]])
"""


def test_what_fails_is_told_and_hides_nothing_else(tmp_path):
    out = tmp_path / "gpu.json"
    done = subprocess.run([sys.executable, "-c", FAILING, SCRIPT.parent, out], capture_output=True, check=False)
    found = json.loads(out.read_text("utf-8"))
    assert [row["what"] for row in found["rows"]] == ["before", "first", "after"]
    assert "no memory is left" in found["rows"][1]["error"] and found["short"] == ["first"] and done.returncode == 1
