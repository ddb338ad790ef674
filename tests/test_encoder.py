"""Batches of images to codes, as an engine asks for them: those of the model, whatever the images come as."""

import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from helpers import TINY, refused, trained
from PIL import Image

import vqstack

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
(PROGRAM,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose images are grey, of 8×8 pixels, from a folder."""
    folder = tmp_path_factory.mktemp("encoder")
    draw = np.random.default_rng(0)
    for number in range(24):
        kind = folder / "photos" / "ab"[number % 2]
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (11, 10), dtype=np.uint8)).save(kind / f"{number:02d}.png")
    data = {"source": "imagefolder", "files": {"train": str(folder / "photos")}, "size": (8, 8), "channels": 1}
    data |= {"values": 256, "validation": 4, "test": 4}
    trained(vqstack.recipe("digits", **TINY, data=data), folder / "runs" / "mine")
    return folder


@pytest.fixture(scope="module")
def wanted(run):
    """Codes of every image by the name of its file, by the way of the run."""
    paths = sorted(run.glob("photos/*/*.png"))
    pixels = vqstack.read_images(run / "runs" / "mine", paths)
    levels = vqstack.load(run / "runs" / "mine").encode(pixels)
    return {path.name: [level[place] for level in levels] for place, path in enumerate(paths)}


def same(batch, names, wanted):
    """Whether a batch has the codes that are wanted; its maps may be flat, as Ray stores them in Parquet."""
    levels = [torch.stack(level) for level in zip(*(wanted[name] for name in names), strict=True)]
    found = [torch.as_tensor(np.stack(list(batch[f"codes_{n}"]))).long() for n in range(1, len(levels) + 1)]
    return all(torch.equal(one.view_as(level), level) for one, level in zip(found, levels, strict=True))


@pytest.mark.parametrize("form", ["bytes", "records", "pictures", "arrays", "paths"])
def test_codes_are_those_of_the_model(run, wanted, form):
    paths = sorted(run.glob("photos/*/*.png"))
    images = {
        "bytes": [path.read_bytes() for path in paths],
        "records": [{"bytes": path.read_bytes(), "path": None} for path in paths],
        "pictures": [Image.open(io.BytesIO(path.read_bytes())) for path in paths],
        "arrays": np.stack([np.asarray(Image.open(io.BytesIO(path.read_bytes()))) for path in paths]),
        "paths": list(map(str, paths)),
    }[form]
    encoder = vqstack.Encoder(run / "runs" / "mine", "picture", "cpu")
    batch = encoder({"name": [path.name for path in paths], "picture": images})
    assert set(batch) == {"name", "codes_1", "codes_2"} and batch["codes_1"].dtype == np.uint8
    assert same(batch, batch["name"], wanted)


def test_an_image_that_cannot_be_read_is_named(run):
    encoder = vqstack.Encoder(run / "runs" / "mine", device="cpu")
    good = next(run.glob("photos/a/*.png")).read_bytes()
    refused(lambda: encoder({"image": [good, good[:40]]}), "image 1 of the batch", "cannot be read")
    refused(lambda: encoder({"picture": [good]}), "image: no such column, there are picture")
    assert encoder({"image": []})["codes_2"].shape == (0, *encoder.model.stack.map_shapes[1])


def test_frames_and_data_sets_are_mapped(run, wanted):
    paths = sorted(run.glob("photos/*/*.png"))
    encoder = vqstack.Encoder(run / "runs" / "mine", device="cpu")
    frame = pd.DataFrame({"name": [path.name for path in paths], "image": [path.read_bytes() for path in paths]})
    assert same(encoder(frame), frame["name"], wanted)
    rows = datasets.Dataset.from_dict({"name": list(frame["name"]), "image": list(map(str, paths))})
    rows = rows.cast_column("image", datasets.Image())
    mapped = rows.map(encoder, batched=True, batch_size=7, remove_columns="image")
    assert mapped.column_names == ["name", "codes_1", "codes_2"]
    assert same({name: mapped[name] for name in mapped.column_names}, mapped["name"], wanted)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "vqstack[ray]"')
def test_the_page_runs_on_a_cluster_of_this_machine(run, wanted):
    """As it stands, but for two lines before it: a cluster of two workers, and the names of the files."""
    start = "import ray\nray.init(num_cpus=3, include_dashboard=False, logging_level='ERROR')\n"
    program = start + PROGRAM.replace('read_images("photos"', 'read_images("photos", include_paths=True')
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "HOME": str(run)}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=run,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    rows = pq.read_table(run / "codes").to_pydict()
    names = [Path(path).name for path in rows["path"]]
    assert sorted(names) == sorted(wanted)
    assert same(rows, names, wanted)
