"""The notebooks, run cell by cell as they stand, with trainings of the size of a test in the place of the recipes'."""

import ast
from pathlib import Path

import pytest
from helpers import TINY

import vqstack

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


def cells(text):
    """Code cells of the percent format: what stands after ``# %%``, without those of Markdown."""
    parts = text.split("# %%")
    assert parts[0] == ""
    return [part.partition("\n")[2] for part in parts if part and not part.startswith(" [markdown]")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch):
    recipe = vqstack.recipe
    monkeypatch.setattr(vqstack, "recipe", lambda name, **changes: recipe(name, **TINY))
    names: dict = {}
    text = path.read_text("utf-8").replace("steps = 300", "steps = 2")
    code = cells(text)
    assert len(code) >= 3
    for cell in code:
        ast.parse(cell)
        exec(compile(cell, str(path), "exec"), names)
    expected = {
        "first_hierarchy": lambda: names["strip"].size[0] > names["samples"].size[0] > 0 and names["ledger"].bits > 0,
        "own_images": lambda: vqstack.load("shapes").settings.class_names == ("disc", "square"),
        "codes_elsewhere": lambda: 0 < names["bits"] and 0 <= names["accuracy"] <= 1,
    }
    assert expected[path.stem]()
