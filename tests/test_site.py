"""The pages of the site: the reference has every public name, and what a page trains is accepted as it stands."""

import re
import shlex
import wave
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

import vqstack
from vqstack.commands import train

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


def test_the_pages_show_the_ledger_of_the_readme():
    (table,) = re.findall(r"^row .*?^bits/dim .*?$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert table in (DOCS / "start.md").read_text("utf-8")
    figure = (DOCS / "images" / "hierarchy.svg").read_text("utf-8")
    for line in [line for line in table.splitlines()[1:-1] if not line.startswith("±")]:
        bits = line.split()[-1]
        assert f"| {bits} |" in (page := (DOCS / "hierarchy.md").read_text("utf-8")) or f"**{bits}**" in page
        assert line.startswith("total") or f"{bits} bits" in figure
