"""Batches of images to codes, as an engine asks for them: those of the model, whatever the images come as."""

import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import which

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from helpers import TINY, refused, trained, untrained
from PIL import Image

import vqstack

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
RAY, SPARK = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


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


def test_an_array_is_an_image_by_its_shape_and_its_numbers(run):
    """Other forms of the same image have its codes; what could be taken for another image is refused by name."""
    draw = np.random.default_rng(1)
    grey, colour = (draw.integers(0, 256, shape, dtype=np.uint8) for shape in ((8, 8), (8, 8, 3)))
    encoder = vqstack.Encoder(run / "runs" / "mine", device="cpu")

    def codes(images, **others):
        found = encoder({"image": images, **others})
        return [torch.from_numpy(found[name].astype(int)) for name in ("codes_1", "codes_2")]

    def equal(one, other):
        return all(map(torch.equal, one, other))

    wanted = codes([Image.fromarray(grey)])
    opaque = np.dstack([colour, np.full((8, 8, 1), 255, np.uint8)])
    for same_image in (grey, grey[..., None], grey.astype(np.int32), grey.astype(np.int64), grey.tolist()):
        assert equal(codes([same_image]), wanted)
    assert equal(codes(iter([grey])), wanted) and equal(codes(grey[None], name=["one"]), wanted)
    assert equal(codes([colour, opaque]), codes([Image.fromarray(colour)] * 2))
    sizes = [draw.integers(0, 256, size, dtype=np.uint8) for size in ((8, 8), (20, 31), (5, 9))]
    assert equal(codes(sizes), codes([Image.fromarray(one) for one in sizes]))  # each fitted as its picture is

    for image, words in (
        (grey / 255, ["image 0 of the batch", "float64", "(image * 255).round()"]),
        (grey > 100, ["bool"]),
        (-1 - grey.astype(np.int32), ["numbers from -2"]),
        (grey.astype(np.uint16) * 257, ["0 to 255"]),
        (colour.transpose(2, 0, 1), ["(3, 8, 8)", "image.transpose(1, 2, 0)"]),
        (np.zeros((8, 8, 5), int), ["(8, 8, 5)"]),
        (np.zeros((0, 8), int), ["(0, 8)"]),
        ([[1, 2], [3]], ["a list that is no array"]),
        (torch.from_numpy(grey), ["a Tensor"]),
        (None, ["no image in this row"]),
        (float("nan"), ["a float"]),
        ("s3://bucket/a.png", ["s3://bucket/a.png: an address"]),
    ):
        refused(lambda image=image: codes([image]), *words)
    for batch, words in (
        ({"image": colour}, ["(8, 8, 3) may be one image"]),
        ({"image": "a.png"}, ["one str, not a column"]),
        ({"image": [grey], "name": ["one", "two"]}, ["1 images where column name has 2 rows"]),
        ({"image": [grey], "codes_3": [0]}, ["codes_3: the batch has such a column already"]),
        (iter([{"image": [grey]}]), ["of type list_iterator", "each of its batches"]),
        (pd.DataFrame({0: [1]}), ["there are 0"]),
    ):
        refused(lambda batch=batch: encoder(batch), *words)


def test_channels_first_are_not_taken_for_grey_images(tmp_path):
    untrained(tmp_path, (3, 8, 8), [(2, 2)])
    encoder, image = vqstack.Encoder(tmp_path, device="cpu"), np.ones((3, 8, 8), np.uint8)
    refused(lambda: encoder({"image": image}), "(3, 8, 8) may be one image or several grey ones")
    assert len(encoder({"image": list(image)})["codes_1"]) == len(encoder({"image": image, "n": [1, 2, 3]})["codes_1"])
    refused(lambda: encoder({"image": [np.ones((8, 8, 4), int)]}), "(8, 8, 4)")  # transparency of 16 values: unknown


def test_other_inputs_are_arrays_of_the_model(tmp_path):
    """Floats of a volume would be cut down to whole numbers, and of a file the first piece would stand for all."""
    model = untrained(tmp_path, (1, 4, 4, 4), [(2, 2, 2)])
    volumes = torch.randint(16, (3, 1, 4, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    encoder = vqstack.Encoder(tmp_path, "volume", "cpu")
    for given in (volumes.numpy(), volumes[:, 0].numpy().astype(np.int64)):
        found = encoder({"volume": given})["codes_1"]
        assert torch.from_numpy(found.astype(int)).equal(model.encode(volumes)[0])
    refused(lambda: encoder({"volume": volumes.numpy() / 15}), "float64", "(image * 15).round()")
    refused(lambda: encoder({"volume": np.zeros((1, 4, 4, 5), int)}), "(4, 4, 5)", "(1, 4, 4, 4)")
    refused(lambda: encoder({"volume": [b"II*", b"II*"]}), "a bytes", "1x4x4x4 whole numbers", "vqstack encode")


def runs(program, folder, **environment):
    """A program of the page ends well in this folder."""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "vqstack[ray]"')
def test_the_page_runs_on_a_cluster_of_this_machine(run, wanted):
    """As it stands, but for two lines before it: a cluster of two workers, and the names of the files."""
    start = "import ray\nray.init(num_cpus=3, include_dashboard=False, logging_level='ERROR')\n"
    program = start + RAY.replace('read_images("photos"', 'read_images("photos", include_paths=True')
    runs(program, run, RAY_USAGE_STATS_ENABLED="0", HOME=str(run))
    rows = pq.read_table(run / "codes").to_pydict()
    names = [Path(path).name for path in rows["path"]]
    assert sorted(names) == sorted(wanted)
    assert same(rows, names, wanted)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None or not which("java"), reason="needs pyspark and Java")
def test_the_page_runs_on_workers_of_spark(run, wanted):
    """As it stands, but for two workers, batches of five images, and a file for each encoder: one a partition."""
    program = SPARK
    for line, instead in (
        (
            ".getOrCreate()",
            '.master("local[2]").config("spark.sql.execution.arrow.maxRecordsPerBatch", 5).getOrCreate()',
        ),
        ("    import vqstack", "    import tempfile, vqstack; tempfile.mkstemp(prefix='made-', dir='.')"),
        ("files.map", "files.repartition(2).map"),
        ('parquet("codes")', 'parquet("of-spark")'),
    ):
        program = program.replace(line, instead)
    runs(program, run, PYSPARK_PYTHON=sys.executable)
    rows = pq.read_table(run / "of-spark").to_pydict()
    names = [Path(path).name for path in rows["path"]]
    assert sorted(names) == sorted(wanted)
    assert same(rows, names, wanted)
    assert len(list(run.glob("made-*"))) == 2
