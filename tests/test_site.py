"""The pages of the site: the reference has every public name, and what a page trains is accepted as it stands."""

import re
import shlex
import wave
from pathlib import Path
from string import Template

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

import vqstack
from vqstack.commands import train
from vqstack.config import parse

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_the_reference_has_every_public_name_once():
    named = re.findall(r"^::: (\S+)$", (DOCS / "reference.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(name.rpartition(".")[2] for name in named) == sorted(vqstack.__all__)
    for name in named:  # where it is defined, or a reader would find half of it
        module, _, short = name.rpartition(".")
        assert getattr(__import__(module, fromlist=[short]), short) is getattr(vqstack, short)


@pytest.mark.parametrize("page", ["start.md", "own-images.md", "own-sounds.md", "choosing.md", "tokenizer.md"])
def test_what_a_page_trains_is_accepted(page, capsys):
    """By a folder with two classes, as the page asks for."""
    for kind in ("cats", "dogs"):
        folder = Path("photos") / kind
        folder.mkdir(parents=True)
        Path("sounds", kind).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.randint(0, 256, (80, 100, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            with wave.open(f"{Path('sounds', kind).as_posix()}/{number}.wav", "wb") as sound:
                sound.setparams((1, 2, 8000, 0, "NONE", ""))
                sound.writeframes(bytes(2 * 4000))
    text = (DOCS / page).read_text("utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in re.findall(r"^vqstack train (.*)$", text, re.MULTILINE)]
    assert commands
    for arguments in commands:
        AcceleratorState._reset_state()  # one precision a process; the recipes have several
        train.main([*arguments, "--dry-run"])
        assert "total" in capsys.readouterr().out
    AcceleratorState._reset_state()


def measured() -> list[list[str]]:
    """The commands that the pages of figures name, variables filled in but for that of the data."""
    found = []
    for page in ("benchmarks.md", "comparisons.md"):
        text = re.sub(r"\\\n\s*", "", (DOCS / page).read_text("utf-8"))
        known = dict(re.findall(r'^    ([A-Z_]+)="(.*)"$', text, re.MULTILINE))
        known |= dict(re.findall(r"`\$([A-Z]+)` stands for `([^`]*)`", text))
        for line in re.findall(r"^    ((?:accelerate|python|vqstack) .*)$", text, re.MULTILINE):
            filled = Template(Template(line).safe_substitute(known)).safe_substitute(known)
            found.append(shlex.split(filled, comments=True))
    return found


def test_trainings_of_the_pages_of_figures_parse(monkeypatch):
    monkeypatch.chdir(ROOT)  # recipes are named from there
    monkeypatch.setenv("DATA", "data")
    trainings = 0
    for command in measured():
        if place := {"recipes/train_stack.py", "train"} & set(command[:3]):
            arguments = command[command.index(place.pop()) + 1 :]
            _, recipe = train.recipe_of(arguments)
            parse(train.Command, arguments, train.Command(**dict(recipe)))
            trainings += 1
    assert trainings > 20


def test_scripts_of_the_pages_of_figures_are_there_and_take_their_options():
    for _, script, *arguments in (command for command in measured() if command[0] == "python"):
        source = (ROOT / script).read_text("utf-8")
        if script.startswith("benchmarks/"):  # those with a dot, and a few others, are a run's
            own = {a for a in arguments if a.startswith("--") and "." not in a}
            runs = {f"--{name.replace('_', '-')}" for name in vqstack.RunConfig.model_fields}
            fields = {f"--{name}" for name in re.findall(r"^    (\w+): .* = Field\(", source, re.MULTILINE)}
            assert own <= runs | fields | set(re.findall(r'"(--[a-z-]+)"', source)), script


def test_runs_that_the_pages_of_figures_read_are_made_there_and_once():
    trained, made, read = [], {"digits"}, set()  # the digits by make demo
    for command in measured():
        out = command[command.index("--out") + 1] if "--out" in command else ""
        made |= set(re.findall(r"^runs/([^/]+)", out))
        read |= {name for word in command if word != out for name in re.findall(r"(?:^|=)runs/([^/]+)", word)}
        trained += [out] if {"recipes/train_stack.py", "train"} & set(command[:3]) else []
    for recipe in (ROOT / "benchmarks" / "recipes").glob("*.yaml"):
        read |= set(re.findall(r"^levels_from: runs/(\S+)$", recipe.read_text("utf-8"), re.MULTILINE))
    assert sorted(read - made) == []
    assert sorted(set(trained)) == sorted(trained)


def test_what_is_on_or_off_is_given_no_value():
    """``--augment.flip false`` is refused: it is ``--augment.no-flip``."""
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        assert not re.findall(r"`--[a-z0-9.-]+ (?:true|false)\b", page.read_text("utf-8")), page.name


def test_the_pages_show_the_ledger_of_the_readme():
    (table,) = re.findall(r"^row .*?^bits/dim .*?$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert table in (DOCS / "start.md").read_text("utf-8")
    figure = (DOCS / "images" / "hierarchy.svg").read_text("utf-8")
    for line in [line for line in table.splitlines()[1:-1] if not line.startswith("±")]:
        bits = line.split()[-1]
        assert f"| {bits} |" in (page := (DOCS / "hierarchy.md").read_text("utf-8")) or f"**{bits}**" in page
        assert line.startswith("total") or f"{bits} bits" in figure
