"""Series in columns of lists: what rows of every kind become, pieces, splits; the recipes of signals at toy size."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from accelerate.state import AcceleratorState
from helpers import main, refused
from PIL import Image

from vqstack.images import ImageSettings, load_splits
from vqstack.model import HierarchicalModel

ROOT = Path(__file__).parents[1]


def table(folder, rows, name="train.parquet", kind=None, **columns):
    pq.write_table(pa.table({"values": pa.array(rows, kind), **columns}), folder / name)
    return str(folder / name)


def settings(path, **changes):
    chosen = {"source": "parquet", "files": {"train": path}, "size": (4,), "values": 100, **changes}
    return ImageSettings(**{"validation": 0.0, "test": 0.0, **chosen})


def pixels(path, **changes):
    return load_splits(settings(path, **changes), ["train"])["train"].pixels.numpy()


KINDS = {
    "lists": pa.list_(pa.int64()),
    "lists of 8 bits": pa.list_(pa.uint8()),
    "large lists": pa.large_list(pa.int32()),
    "lists of one length": pa.list_(pa.int16(), 4),
}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_whole_numbers_are_values_as_they_are(kind, tmp_path):
    rows = [[0, 1, 2, 99], [5, 5, 6, 7]]
    assert np.array_equal(pixels(table(tmp_path, rows, kind=KINDS[kind])), np.array(rows)[:, None])


def test_floats_and_negative_numbers_go_by_the_range(tmp_path):
    floats = table(tmp_path, [[-1.0, -0.5, 0.0, 2.0]], "a.parquet")
    assert pixels(floats, values=5, range=(-1, 1)).tolist() == [[[0, 1, 2, 4]]]
    signed = table(tmp_path, [[-50, 49, 0, 7]], "b.parquet", pa.list_(pa.int16()))
    assert pixels(signed, range=(-50, 49)).tolist() == [[[0, 99, 50, 57]]]


def test_channels_are_lists_inside_the_list_and_long_rows_are_cut(tmp_path):
    rows = [[[1, 2, 3, 4, 5, 6], [11, 12, 13, 14, 15, 16]], [[7] * 4, [8] * 4]]
    found = pixels(table(tmp_path, rows), channels=2)
    first = np.array(rows[0])
    assert np.array_equal(found, [first[:, :4], first[:, 2:], rows[1]])


def test_pieces_of_a_row_have_its_label_and_lie_in_one_split(tmp_path):
    rows = [list(range(start, start + 9)) for start in range(20)]
    path = table(tmp_path, rows, label=["even", "odd"] * 10)
    splits = load_splits(settings(path, validation=0.3, test=0.2))
    assert sum(map(len, splits.values())) == 20 * 3
    held = {name: {int(number) // 3 for number in split.index} for name, split in splits.items()}
    assert sum(map(len, held.values())) == 20
    for split in splits.values():
        starts = split.pixels[:, 0, 0].numpy() - np.array([0, 2, 5])[split.index.numpy() % 3]
        assert split.class_names == ["even", "odd"] and np.array_equal(split.labels.numpy(), starts % 2)


WHOLE, FLOATS = pa.list_(pa.int64()), pa.list_(pa.float64())
BROKEN = {  # a row, the type of its column, words of the refusal
    "a missing row": (None, WHOLE, "no list"),
    "a missing number": ([1, None, 3, 4], WHOLE, "missing"),
    "not finite": ([1.0, float("nan"), 3.0, 4.0], FLOATS, "not finite"),
    "floats": ([0.5, 1.0, 2.0, 3.0], FLOATS, "data.range"),
    "negative": ([-1, 2, 3, 4], WHOLE, "data.range"),
    "too large": ([1, 2, 3, 100], WHOLE, "data.range"),
    "two channels": ([[1, 2, 3, 4], [1, 2, 3, 4]], pa.list_(WHOLE), "4, 4 numbers"),
    "channels of two lengths": ([[1, 2, 3, 4], [1, 2]], pa.list_(WHOLE), "4, 2 numbers"),
    "a missing channel": ([[1, 2, 3, 4], None], pa.list_(WHOLE), "missing"),
}


@pytest.mark.parametrize("kind", BROKEN, ids=str)
def test_rows_without_values_are_refused_by_number_or_left_out(kind, tmp_path):
    row, stored, words = BROKEN[kind]
    path = table(tmp_path, [row], kind=stored)
    refused(lambda: load_splits(settings(path), ["train"]), "row 0", words)
    refused(lambda: load_splits(settings(path, on_error="skip"), ["train"]), "no series of 4")


def test_what_is_left_out_is_named(tmp_path):
    path = table(tmp_path, [[1, 2, 3, 4], [1, None, 3, 4], [5, 6, 7, 8]])
    split = load_splits(settings(path, on_error="skip"), ["train"])["train"]
    assert split.pixels.tolist() == [[[1, 2, 3, 4]], [[5, 6, 7, 8]]] and "row 1" in json.dumps(split.source["left_out"])


def test_short_rows_are_counted_and_columns_must_be_told_apart(tmp_path):
    path = table(tmp_path, [[1, 2, 3], [1, 2, 3, 4], []])
    split = load_splits(settings(path), ["train"])["train"]
    assert len(split) == 1 and split.source["left_out"]["smaller than 4"]["count"] == 2
    path = table(tmp_path, [[[], []], [[1] * 4, [2] * 4], []], "pairs.parquet", pa.list_(WHOLE))
    split = load_splits(settings(path, channels=2), ["train"])["train"]
    assert len(split) == 1 and split.source["left_out"]["smaller than 4"]["count"] == 2
    several = table(tmp_path, [[1, 2, 3, 4]], "two.parquet", other=pa.array([[9, 9, 9, 9]]))
    refused(lambda: load_splits(settings(several), ["train"]), "image column")
    assert pixels(several, image_column="other").tolist() == [[[9, 9, 9, 9]]]
    refused(lambda: load_splits(settings(table(tmp_path, [1, 2], "flat.parquet")), ["train"]), "image column")
    given = settings(several, condition="other", image_column=None)
    assert load_splits(given, ["train"])["train"].condition.tolist() == [[9, 9, 9, 9]]


def _digits(folder):
    image = folder / "one.png"
    Image.fromarray(np.full((5, 5), 255, np.uint8)).save(image)
    rows = [{"image": {"bytes": image.read_bytes(), "path": None}}] * 4
    pq.write_table(pa.Table.from_pylist(rows), folder / "digits.parquet")
    recipe = yaml.safe_load((ROOT / "recipes" / "moving_mnist.yaml").read_text())
    recipe["data"]["options"] = {"train": 4, "validation": 2, "test": 2}  # of dictionaries only YAML tells
    (folder / "few.yaml").write_text(yaml.safe_dump(recipe))
    return ["train", str(folder / "digits.parquet")], ["--data.size", "4", "16", "16"]


def _volumes(folder):
    for name in ("train", "test"):
        (folder / name).mkdir()
        for seed in range(3):
            numbers = np.random.default_rng(seed).integers(0, 4096, (16, 16, 24)).astype(np.uint16)
            np.save(folder / name / f"{seed}.npy", numbers)
    files = ["train", str(folder / "train"), "test", str(folder / "test")]
    return files, ["--data.size", "8", "8", "8", "--data.validation", "1"]


def _rows(folder):
    rows = np.random.default_rng(0).integers(0, 1024, (20, 40)).tolist()
    return ["train", table(folder, rows)], ["--data.size", "32", "--levels.0.map", "8", "--levels.1.map", "2"]


TOYS = {"moving_mnist": (_digits, 3), "volume": (_volumes, 3), "series": (_rows, 1)}


@pytest.mark.parametrize("name", TOYS, ids=str)
def test_a_recipe_trains_at_toy_size(name, tmp_path):
    make, axes = TOYS[name]
    files, changes = make(tmp_path)
    small = ["--levels.0.decoder.radius", "2", "--levels.0.width", "8", "--levels.1.width", "8"]
    small += ["--levels.0.decoder.width", "8", "--levels.1.decoder.width", "8", "--prior.dim", "8"]
    if axes == 3:
        small += ["--levels.0.map", "2", "4", "4", "--levels.1.map", "1", "2", "2"]
    steps = ["--train-levels.0.steps", "2", "--train-levels.1.steps", "2", "--train-prior.steps", "2"]
    AcceleratorState._reset_state()
    train = ROOT / "recipes" / "train_stack.py"
    few = tmp_path / "few.yaml"
    main(
        train,
        "--config",
        few if few.exists() else name,
        "--data.files",
        *files,
        *changes,
        *small,
        *steps,
        "--out",
        tmp_path / "run",
    )
    AcceleratorState._reset_state()
    model = HierarchicalModel.from_pretrained(tmp_path / "run" / "model")
    assert len(model.stack.shape) == axes + 1
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())["test"]
    assert ledger["bits"] == pytest.approx(sum(row["bits"] for row in ledger["rows"])) and ledger["bits"] > 0
