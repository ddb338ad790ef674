"""report.html: every number of the ledger, nothing that is loaded, no text that is markup, never the end of a run."""

import json
import re
from base64 import b64decode
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY

import vqstack
from vqstack.phases import run as running

NAMES = ["<b>cat</b>", 'do"g $name', "x' & <img src=https://example.org/x>"]


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def read(folder):
    return (folder / "report.html").read_text("utf-8")


def arrays(shape, values):
    return np.random.default_rng(0).integers(0, values, (60, *shape)).astype(np.uint8 if values <= 256 else np.int32)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A finished run in a folder, and of classes, whose names are markup."""
    folder = tmp_path_factory.mktemp("named") / "a<i>&run"
    settings = vqstack.recipe("digits", **TINY)
    vqstack.train(settings, arrays((8, 8), 17), np.array(NAMES * 20), out=folder)
    return folder


def test_every_number_of_the_ledger_is_in_it(named):
    cells = re.findall(r"<td>(.*?)</td>", read(named))
    for ledger in json.loads((named / "ledger.json").read_text()).values():
        for row in ledger["rows"]:
            assert row["row"] in cells
            assert f"{row['bits']:.2f}" in cells
        assert {f"{ledger['bits']:.2f}", f"{ledger['bits_per_dim']:.4f}", f"{ledger['images']:,}"} <= set(cells)
        for used in ledger["usage"].values():
            assert f"{used['share']:.0%}, {used['perplexity']:.1f}" in cells


def test_it_loads_nothing_and_text_stays_text(named):
    text = read(named)
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "table", "tr", "th", "td"),
        *("svg", "text", "rect", "polyline", "circle", "img", "pre"),
    }
    for _, attributes in page.tags:
        assert all(
            value.startswith("data:image/png;base64,") for k, value in attributes.items() if k in ("src", "href")
        )
    assert "url(" not in text
    shown = "".join(page.text)
    assert "a<i>&run" in shown
    assert "--label '<b>cat</b>'" in shown  # as the shell wants it
    assert not re.search(r"<b>|<i>|example\.org", re.sub(r"&lt;", "", text).replace("example.org/x&gt;", ""))


def test_it_has_the_curve_and_the_last_picture_of_each_phase(named):
    text = read(named)
    pictures = [b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]*)"', text)]
    phases = sorted(path.name for path in (named / "phases").iterdir())
    assert phases == ["level-1", "level-2", "prior"]
    assert sorted(pictures) == sorted(max(named.glob(f"samples/{name}-*.png")).read_bytes() for name in phases)
    for name in phases:
        logged = (named / "phases" / name / "metrics.jsonl").read_text().splitlines()
        bits = json.loads(logged[-1])["validation/nats"] / np.log(2)
        assert f"validation {bits:.2f}</text>" in text
    assert text.count("<polyline") == 2 * len(phases)


def test_its_python_runs_as_it_stands(named, monkeypatch):
    code = next(pre for pre in re.findall(r"<pre>(.*?)</pre>", read(named), re.DOTALL) if pre.startswith("import"))
    names: dict = {}
    exec(unescape(code), names)
    assert names["images"].shape == (16, 1, 8, 8)


def test_the_command_makes_it_again_as_it_was(named):
    before = read(named)
    (named / "report.html").unlink()
    vqstack.train(vqstack.recipe("digits", **TINY), arrays((8, 8), 17), np.array(NAMES * 20), out=named)
    assert read(named) == before


def test_a_run_does_not_end_with_it(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise KeyError("usage")

    monkeypatch.setattr(running, "report", broken)
    vqstack.train(vqstack.recipe("digits", **TINY), arrays((8, 8), 17), out=tmp_path / "run")
    assert "warning: " in (err := capsys.readouterr().err) and "report.html" in err and "usage" in err
    assert not list(tmp_path.glob("run/report.html*"))
    assert vqstack.load(tmp_path / "run")


@pytest.mark.parametrize(("shape", "values"), [((32,), 65536), ((4, 8, 8), 256)])
def test_sounds_and_volumes_have_one(shape, values):
    np.save("x.npy", arrays(shape, values)[:, None])
    data = {"source": "array", "files": {"train": "x.npy"}, "size": shape, "channels": 1, "values": values}
    level = TINY["levels"] | {"decoder": {}, "quantizer": {"codebook_size": 4, "dim": 4}}
    changes = {"data": data | {"validation": 10, "test": 10}, "augment": {"shift": 1}} | TINY
    maps = [[side // 4 for side in shape], [1] * len(shape)]
    vqstack.train(vqstack.recipe("digits", **changes | {"levels": [level | {"map": m} for m in maps]}), out="run")
    page = Page(read(Path("run")))
    assert sum(tag == "img" for tag, _ in page.tags) == 3
    assert "validation" in "".join(page.text)
