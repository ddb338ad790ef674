"""Moving MNIST: what a clip shows can be told from its digits and its seed alone, and a run on clips end to end."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import refused, toy, trained
from PIL import Image
from pydantic import ValidationError

from vqstack.commands import generate
from vqstack.images import ImageSettings, load_splits
from vqstack.images.moving import STEP, clip, way


def digits(folder, split="train", count=6, side=5):
    """A Parquet file of bright squares with one dark pixel each, and what is in it."""
    pixels = np.random.default_rng(len(split)).integers(100, 256, (count, side, side)).astype(np.uint8)
    rows = []
    for one in pixels:
        path = folder / "one.png"
        Image.fromarray(one).save(path)
        rows.append({"image": {"bytes": path.read_bytes(), "path": None}})
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return str(folder / f"{split}.parquet"), pixels


def test_a_digit_goes_straight_and_is_thrown_back_at_the_walls():
    places = way(np.array([0.95, 0.5]), 0.7, 40)
    assert places.min() >= 0 and places.max() <= 1
    moved = np.diff(places, axis=0)
    expected = STEP * np.array([np.sin(0.7), np.cos(0.7)])
    free = np.abs(np.abs(moved) - expected).max(1) < 1e-9  # frames without a bounce
    assert free.mean() > 0.6 and (np.abs(moved) <= expected + 1e-9).all()
    turned = np.diff(np.sign(moved[free]), axis=0) != 0
    assert turned.any(0).all()  # both walls were met


def test_a_clip_is_its_digits_pasted_where_they_are():
    known = np.random.default_rng(0).integers(1, 256, (4, 5, 5)).astype(np.uint8)
    one = clip(known, (12, 20, 16), 1, (3, 0))
    assert one.shape == (1, 12, 20, 16)
    for frame in one[0]:
        rows, columns = (np.flatnonzero(frame.any(axis)) for axis in (1, 0))
        found = frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert any(np.array_equal(found, digit) for digit in known) and (frame > 0).sum() == 25
    two = clip(known, (12, 20, 16), 2, (3, 0))
    assert ((two > 0).sum((2, 3)) <= 50).all() and ((two > 0).sum((2, 3)) >= 25).all()


def test_clips_depend_on_seed_split_and_number_alone(tmp_path):
    train, _ = digits(tmp_path)
    data = {"source": "moving_mnist", "files": {"train": train}, "size": (4, 12, 12)}
    some = {"train": 3, "validation": 2, "test": 1}
    few = load_splits(ImageSettings(**data, options=some))
    many = load_splits(ImageSettings(**data, options={"train": 9, "validation": 2, "test": 4}))
    assert few["train"].pixels.equal(many["train"].pixels[:3])
    assert few["validation"].pixels.equal(many["validation"].pixels)
    other = load_splits(ImageSettings(**data, seed=1, options=some), ["train"])["train"]
    assert not other.pixels.equal(few["train"].pixels)
    every = {clip.numpy().tobytes() for split in many.values() for clip in split.pixels}
    assert len(every) == 9 + 2 + 4


def test_test_clips_show_digits_of_test_and_no_other(tmp_path):
    (train, of_train), (test, of_test) = digits(tmp_path), digits(tmp_path, "test")
    data = {"source": "moving_mnist", "files": {"train": train, "test": test}, "size": (2, 12, 12)}
    splits = load_splits(ImageSettings(**data, options={"digits": 1, "train": 5, "validation": 3, "test": 5}))
    for name, known in (("train", of_train), ("validation", of_train), ("test", of_test)):
        for frame in splits[name].pixels[:, 0].flatten(0, 1).numpy():
            found = frame[frame.any(1)][:, frame.any(0)]
            assert any(np.array_equal(found, digit) for digit in known)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": {"speed": 3}}, ["no speed"]),
        ({"options": {"train": 0}}, ["train is 0"]),
        ({"options": {"digits": 1.5}}, ["digits is 1.5"]),
        ({"size": (4, 12, 4)}, ["5x5", "12x4"]),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused(changes, words, tmp_path):
    settings = {"source": "moving_mnist", "files": {"train": digits(tmp_path)[0]}, "size": (4, 12, 12), **changes}
    refused(lambda: load_splits(ImageSettings(**settings)), *words)


@pytest.mark.parametrize(
    "changes", [{"size": (8, 8)}, {"channels": 3}, {"values": 2}, {"resize": (4, 70, 70)}], ids=str
)
def test_settings_that_do_not_fit_are_refused(changes):
    with pytest.raises(ValidationError):
        ImageSettings(source="moving_mnist", **changes)


def test_a_run_from_digits_to_drawn_clips(tmp_path):
    train, _ = digits(tmp_path)
    data = {"source": "moving_mnist", "files": {"train": train}, "size": (4, 12, 12), "rate": 10}
    config = toy(data | {"options": {"train": 8, "validation": 2, "test": 2}}, (2, 3, 3), (1, 1, 1))
    model = trained(config, tmp_path / "run")
    generate.main([str(tmp_path / "run"), "--num", "2", "--out", str(tmp_path / "drawn")])
    with Image.open(tmp_path / "drawn" / "000001.gif") as shown:
        frames = []
        for number in range(shown.n_frames):
            shown.seek(number)
            frames += [np.array(shown.convert("L"))] * round(shown.info["duration"] / 100)  # equal ones are one
    assert np.array_equal(np.stack(frames), model.sample(2).pixels[1, 0].numpy())
