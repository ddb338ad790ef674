"""Classes are names: whatever brings labels is matched by them, and what is no class is said."""

import io
import json
import logging
import sys
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import refused
from pydantic import ValidationError
from test_images import png, random_pixels, write_parquet
from test_images_folders import classes

from vqstack.images import ImageSettings, load_splits, num_classes

NAMES = ["cat", "dog", "owl"]


@pytest.fixture(params=[False, True], ids=["mapped", "streamed"])
def how(request):
    changes = {"streaming": True, "workers": 0} if request.param else {}
    return changes | {"size": (5, 7), "limit": 80}


def pictures(numbers) -> list[dict]:
    """Images whose first pixel tells their class."""
    pixels = random_pixels(len(numbers))
    pixels[:, 0, 0, 0] = numbers
    return [{"bytes": png(one), "path": None} for one in pixels]


def stored(path, numbers, names=None, values=None, label="label") -> str:
    """A Parquet file of images of the classes ``numbers``; its labels are ``values``, whose names are ``names``."""
    values = pa.array(numbers if values is None else values)
    table = pa.table({"image": pa.array(pictures(numbers)), label: values})
    if names is not None:
        features = datasets.Features({"image": datasets.Image(), label: datasets.ClassLabel(names=names)})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features.to_dict()}})})
    pq.write_table(table, path)
    return str(path)


def parquet(files, how, **changes) -> ImageSettings:
    files = files if isinstance(files, dict) else {"train": str(files)}
    return ImageSettings(**{"source": "parquet", "files": files, "validation": 0.2, "test": 0.2} | how | changes)


def check(found, names=NAMES) -> None:
    """Every image has the class that its first pixel tells."""
    for split in found.values():
        assert split.class_names == names and split.num_classes == len(names)
        assert np.array_equal(split.labels.numpy(), split.pixels.numpy()[:, 0, 0, 0])


ALL = [0, 1, 2] * 10


def test_names_that_differ_between_splits_are_mapped_or_refused(tmp_path, how):
    train = stored(tmp_path / "train.parquet", ALL, NAMES)
    test = stored(tmp_path / "test.parquet", [2, 1] * 4, ["owl", "dog"], [0, 1] * 4)
    check(load_splits(parquet({"train": train, "test": test}, how)))
    other = stored(tmp_path / "other.parquet", ALL, ["cat", "dog", "cow"])
    refused(lambda: load_splits(parquet({"train": train, "test": other}, how)), "cat, dog, owl", "cat, dog, cow")
    bare = stored(tmp_path / "bare.parquet", ALL)
    refused(
        lambda: load_splits(parquet({"train": train, "test": bare}, how)), "cat, dog, owl", "0, 1, 2", "class_names"
    )
    check(load_splits(parquet({"train": train, "test": bare}, how, class_names=NAMES)))
    refused(lambda: load_splits(parquet({"train": bare, "test": train}, how)), "cat, dog, owl")


@pytest.mark.parametrize("names", [["dog", "cat", "owl"], ["cat", "dog"], None])
def test_shards_of_a_split_must_mean_the_same_classes(tmp_path, how, names):
    stored(tmp_path / "0.parquet", ALL, NAMES)
    stored(tmp_path / "1.parquet", [0, 1] * 9, names)
    listed = "no names" if names is None else ", ".join(names)
    refused(lambda: load_splits(parquet(tmp_path / "*.parquet", how)), "1.parquet", "cat, dog, owl", listed)


def test_names_of_numbers_belong_to_the_classes(tmp_path, how):
    digits = stored(tmp_path / "a.parquet", ALL, ["2", "1", "0"])
    test = stored(tmp_path / "b.parquet", ALL, None, [2 - number for number in ALL])
    check(load_splits(parquet({"train": digits, "test": test}, how)), ["2", "1", "0"])


def test_class_names_set_the_order(tmp_path, how):
    order = ["owl", "cat", "dog", "ant"]
    path = stored(tmp_path / "a.parquet", [order.index(NAMES[number]) for number in ALL], NAMES, ALL)
    check(load_splits(parquet(path, how, class_names=order)), order)
    folder = ImageSettings(
        source="imagefolder", files={"train": classes(tmp_path / "f", ("b", "a"), 20)}, validation=0.2, test=0.2, **how
    )
    named = folder.model_copy(update={"class_names": ("b", "a")})
    check(load_splits(named), ["b", "a"])
    refused(lambda: load_splits(folder.model_copy(update={"class_names": ("b", "c")})), "a, b", "b, c")
    with pytest.raises(ValidationError, match="twice"):
        parquet(path, how, class_names=["a", "a"])


@pytest.mark.parametrize("values", [[NAMES[number] for number in ALL], [number > 0 for number in ALL]])
def test_texts_and_switches_become_classes_by_name(tmp_path, how, values):
    names = NAMES if isinstance(values[0], str) else ["False", "True"]
    train = stored(tmp_path / "a.parquet", [names.index(str(value)) for value in values], None, values)
    test = stored(tmp_path / "b.parquet", [1] * 5, None, [values[1]] * 5)
    settings = parquet({"train": train, "test": test}, how)
    check(load_splits(settings), names)
    assert num_classes(settings) == len(names)
    if isinstance(values[0], str):
        unknown = stored(tmp_path / "c.parquet", [1] * 5, None, ["cow"] * 5)
        refused(lambda: load_splits(parquet({"train": train, "test": unknown}, how)), "cow", "cat, dog, owl")


def test_a_text_and_a_number_of_the_same_class(tmp_path, how):
    """In train ClassLabel, in test texts."""
    train = stored(tmp_path / "a.parquet", ALL, NAMES)
    test = stored(tmp_path / "b.parquet", ALL, None, [NAMES[number] for number in ALL])
    check(load_splits(parquet({"train": train, "test": test}, how)))


def archive(path, numbers, label) -> str:
    with tarfile.open(path, "w") as tar:
        for i, image in enumerate(pictures(numbers)):
            parts = {"png": image["bytes"], "json": json.dumps({"caption": "x", "label": label(numbers[i])}).encode()}
            for kind, content in parts.items():
                member = tarfile.TarInfo(f"{i:03d}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(path)


def test_labels_inside_records(tmp_path, how, caplog):
    path = archive(tmp_path / "a.tar", ALL, lambda number: NAMES[number])
    tar = parquet(path, how, source="webdataset")
    assert load_splits(tar)["train"].labels is None
    assert "json.label" in caplog.text and "label_column" in caplog.text
    named = tar.model_copy(update={"label_column": "json.label"})
    if how.get("streaming"):  # the names are known when the stream has been read
        refused(lambda: load_splits(named), "json.label", "class_names")
        named = named.model_copy(update={"class_names": tuple(NAMES)})
    check(load_splits(named))
    numbers = parquet(archive(tmp_path / "b.tar", ALL, int), how, source="webdataset", label_column="json.label")
    check(load_splits(numbers), ["0", "1", "2"])


def test_a_name_where_an_archive_has_numbers_is_refused_with_the_way_to_write_it(tmp_path, how):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in (("0.png", pictures([0])[0]["bytes"]), ("0.cls", b"cat")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    refused(lambda: load_splits(parquet(path, how, source="webdataset")), "a.tar", "cat", ".txt", "label_column")


@pytest.mark.parametrize(("values", "found"), [([0.5] * 30, "float64"), ([[1]] * 30, "List"), ([{"a": 1}] * 30, "a")])
def test_what_is_no_label_is_said(tmp_path, how, values, found, caplog):
    path = stored(tmp_path / "a.parquet", ALL, None, values)
    assert load_splits(parquet(path, how))["train"].labels is None
    assert found in caplog.text and "label" in caplog.text
    refused(lambda: load_splits(parquet(path, how, label_column="label")), found, "label_column")


def test_numbers_in_a_column_of_an_unknown_name_are_said(tmp_path, how, caplog):
    path = write_parquet(tmp_path / "a.parquet", random_pixels(20), np.arange(20) % 3, label="category_id")
    assert load_splits(parquet(path, how))["train"].labels is None
    assert "category_id" in caplog.text and "label_column" in caplog.text
    assert load_splits(parquet(path, how, label_column="category_id"))["train"].num_classes == 3
    caplog.clear()
    assert load_splits(parquet(path, how, label_column=""))["train"].labels is None
    assert not caplog.records
    refused(lambda: load_splits(parquet(path, how, label_column="", class_names=["a"])), "class_names", "no labels")


def test_texts_in_a_column_of_an_unknown_name_are_said(tmp_path, how, caplog):
    path = stored(tmp_path / "a.parquet", ALL, values=NAMES * 10, label="species")
    assert load_splits(parquet(path, how))["train"].labels is None
    assert "species" in caplog.text and "label_column" in caplog.text


def test_numbers_of_another_column_than_that_of_train_are_refused(tmp_path, how):
    """Coarse classes and fine ones have the same numbers."""
    train = stored(tmp_path / "train.parquet", ALL)
    test = stored(tmp_path / "test.parquet", ALL, label="fine_label")
    refused(lambda: load_splits(parquet({"train": train, "test": test}, how)), "fine_label", "train in label")
    named = stored(tmp_path / "named.parquet", ALL, NAMES)
    other = stored(tmp_path / "other.parquet", [2, 1] * 4, ["owl", "dog"], [0, 1] * 4, label="fine_label")
    check(load_splits(parquet({"train": named, "test": other}, how)))


def test_labels_of_test_where_train_has_none_are_said(tmp_path, how, caplog):
    files = {
        "train": write_parquet(tmp_path / "a.parquet", random_pixels(8)),
        "test": stored(tmp_path / "t.parquet", ALL),
    }
    assert all(split.labels is None or not split.num_classes for split in load_splits(parquet(files, how)).values())
    assert "those of parquet" in caplog.text and "split test are not used" in caplog.text


def test_two_columns_of_labels_are_said(tmp_path, how, caplog):
    path = stored(tmp_path / "a.parquet", ALL)
    table = pq.read_table(path)
    pq.write_table(table.append_column("fine_label", pa.array([0] * len(table))), path)
    check(load_splits(parquet(path, how)), ["0", "1", "2"])
    assert "label holds the labels, not fine_label" in caplog.text
    caplog.clear()
    load_splits(parquet(path, how, label_column="label"))
    assert "fine_label" not in caplog.text


@pytest.mark.parametrize("label", [2**40, 2_000_000, 2**63 - 1])
def test_numbers_that_would_make_far_too_many_classes(tmp_path, how, label):
    path = write_parquet(tmp_path / "a.parquet", random_pixels(20), [0, label] * 10)
    refused(lambda: load_splits(parquet(path, how)), "label", "number the classes from 0")
    if not how.get("streaming"):
        refused(lambda: num_classes(parquet(path, how, limit=None)), "number the classes from 0")
        few = write_parquet(tmp_path / "b.parquet", random_pixels(20), [0, 1] * 10)
        refused(lambda: load_splits(parquet(few, how, classes=2**15)), str(2**15), "20 images")


def test_names_that_are_too_long_for_a_model(tmp_path, how):
    path = stored(tmp_path / "a.parquet", ALL, None, ["x" * 2**18 + str(number) for number in ALL])
    refused(lambda: load_splits(parquet(path, how)), "bytes", "shorten")


def arrays(path, **content) -> str:
    np.savez(path, **content)
    return str(path)


def test_labels_of_arrays(tmp_path, caplog):
    numbers = np.array(ALL, dtype=np.uint8)
    pixels = np.tile(numbers[:, None, None], (1, 5, 7))

    def opened(path, **changes):
        return load_splits(ImageSettings(source="array", files={"train": path}, **changes))

    check(opened(arrays(tmp_path / "a.npz", images=pixels, labels=np.array(NAMES)[numbers])))
    check(opened(arrays(tmp_path / "b.npz", images=pixels, labels=numbers), class_names=NAMES))
    other = arrays(tmp_path / "c.npz", images=pixels, targets=numbers)
    assert opened(other)["train"].labels is None
    assert "targets" in caplog.text and "label_column" in caplog.text
    check(opened(other, label_column="targets"), ["0", "1", "2"])
    refused(lambda: opened(other, label_column="target"), "target", "targets")
    for values in (numbers / 2, np.eye(3)[numbers], numbers.astype(np.uint64) + 2**63):
        path = arrays(tmp_path / "d.npz", images=pixels, labels=values)
        refused(lambda path=path: opened(path), "labels")


def test_classes_of_train_without_an_image_are_said(tmp_path, how, caplog):
    load_splits(parquet(stored(tmp_path / "a.parquet", [0, 2] * 10, NAMES), how))
    assert "dog" in caplog.text and "no image" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_splits(parquet(stored(tmp_path / "b.parquet", ALL, NAMES), how))
    assert not caplog.records


def test_names_that_look_the_same_are_one_class(tmp_path, how):
    one, two = "caf\u00e9", "cafe\u0301"  # as others write it, as macOS does
    train = stored(tmp_path / "train.parquet", [0, 1, 2, 3], values=[one, "tea", one, "tea"])
    test = stored(tmp_path / "test.parquet", [4, 5], values=[two, "tea"])
    found = load_splits(parquet({"train": train, "test": test}, how), ["train", "test"])
    assert found["test"].labels.sort().values.tolist() == [0, 1] and found["test"].class_names == [one, "tea"]
    both = stored(tmp_path / "both.parquet", [0, 1, 2], values=[one, two, "tea"])
    refused(lambda: load_splits(parquet({"train": both}, how), ["train"]), "look the same", "\\u0301", "\\xe9")


@pytest.mark.skipif(sys.getfilesystemencoding() == "ascii", reason="this environment has no such names of files")
def test_folders_that_look_the_same_are_one_class(tmp_path):
    for split, name in (("train", "caf\u00e9"), ("test", "cafe\u0301")):
        for folder in (name, "tea"):
            (tmp_path / split / folder).mkdir(parents=True)
            for number in range(3):
                (tmp_path / split / folder / f"{number}.png").write_bytes(png(random_pixels(1)[0]))
    files = {split: str(tmp_path / split) for split in ("train", "test")}
    found = load_splits(ImageSettings(source="imagefolder", files=files, channels=3), ["train", "test"])
    assert found["test"].labels.tolist() == [0] * 3 + [1] * 3 and found["train"].class_names == ["caf\u00e9", "tea"]
