"""Stored codes: what is read is what was written, and a refusal leaves everything as it was."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vqstack.codes import (
    ENCODE,
    UNFINISHED,
    CodeDataset,
    CodeDatasetWriter,
    claim_folder,
    fingerprint,
    load_maps,
    release_folder,
    save_maps,
    smallest_dtype,
)
from vqstack.errors import InputError

SHAPES = [(4, 6), (2, 3), (5,)]
SIZES = [70000, 257, 256]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def random_codes(count: int) -> list[torch.Tensor]:
    codes = [torch.randint(0, size, (count, *shape)) for shape, size in zip(SHAPES, SIZES, strict=True)]
    for maps, size in zip(codes, SIZES, strict=True):
        if count:
            maps.view(-1)[0], maps.view(-1)[-1] = size - 1, 0
    return codes


def write(folder: Path, labelled: bool = True, **splits: int) -> dict[str, tuple]:
    writer = CodeDatasetWriter(folder, SHAPES, SIZES, "abc", {"name": "toy"})
    written = {}
    for split, count in (splits or {"train": 7, "test": 3}).items():
        labels = torch.randint(0, 10, (count,)) if labelled else None
        written[split] = (torch.randperm(100)[:count], labels, random_codes(count))
        writer.write_split(split, *written[split])
    writer.finish()
    return written


def refused(call, *words: str) -> None:
    with pytest.raises(InputError) as refusal:
        call()
    message = str(refusal.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def rewrite(path: Path, column: str, values: list) -> None:
    """Replaces a column of a parquet file, keeping its type."""
    table = pq.read_table(path)
    place = table.column_names.index(column)
    pq.write_table(
        table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type)), path
    )


@pytest.mark.parametrize(
    ("vocabulary", "name"),
    [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32"), (2**32, "uint32")],
)
def test_the_smallest_dtype_holds_the_largest_code(vocabulary, name):
    assert smallest_dtype(vocabulary) == np.dtype(name)
    assert np.iinfo(name).max >= vocabulary - 1


def test_no_dtype_for_more_codes():
    with pytest.raises(ValueError):
        smallest_dtype(2**32 + 1)


def test_the_fingerprint_sees_names_dtypes_shapes_and_bytes_and_no_order():
    state = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.tensor(3),
        "c": torch.zeros(0),
        "d": torch.ones(2).bfloat16(),
    }
    same = {name: state[name].clone() for name in reversed(state)}
    assert fingerprint(same) == fingerprint(state)
    assert len(fingerprint(state)) == 64
    # The same values in another memory layout are the same weights.
    assert fingerprint(state | {"a": state["a"].t().contiguous().t()}) == fingerprint(state)
    others = [
        state | {"a": state["a"].view(3, 2)},
        state | {"a": state["a"].view(torch.int32)},
        state | {"a": -state["a"]},
        state | {"b": torch.tensor(4)},
        {name: tensor for name, tensor in state.items() if name != "c"},
        {name.replace("a", "e"): tensor for name, tensor in state.items()},
    ]
    assert len({fingerprint(other) for other in [state, *others]}) == len(others) + 1


@pytest.mark.parametrize("start", ["absent", "empty"])
def test_a_free_folder_is_claimed_and_released(tmp_path, start):
    folder = tmp_path / "a" / "b"
    if start == "empty":
        folder.mkdir(parents=True)
    claim_folder(folder, "generate")
    assert [path.name for path in folder.iterdir()] == [UNFINISHED]
    release_folder(folder)
    assert list(folder.iterdir()) == []


def test_own_unfinished_output_is_removed_and_what_it_links_to_is_not(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    folder = tmp_path / "out"
    claim_folder(folder, "generate")
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("x")
    (folder / "file").write_text("x")
    (folder / "link").symlink_to(outside)
    claim_folder(folder, "generate")
    assert [path.name for path in folder.iterdir()] == [UNFINISHED]
    assert contents(outside) == {"kept": b"x"}


@pytest.mark.parametrize("start", ["foreign", "finished", "file", "other", "below a file"])
def test_a_used_folder_is_refused_and_nothing_is_touched(tmp_path, start):
    folder = tmp_path / "out"
    if start == "foreign":
        folder.mkdir()
        (folder / "thesis.tex").write_text("x")
    elif start in ("finished", "other"):
        claim_folder(folder, "generate" if start == "finished" else ENCODE)
        (folder / "file").write_text("x")
        if start == "finished":
            release_folder(folder)
    else:
        folder.write_text("x")
    before = contents(tmp_path)
    target = folder / "deeper" if start == "below a file" else folder
    refused(lambda: claim_folder(target, "generate"), str(target))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("vocabulary", "name"), [(256, "uint8"), (512, "uint16")])
def test_cached_maps_come_back(tmp_path, vocabulary, name):
    codes = torch.randint(0, vocabulary, (5, 2, 3))
    folder = tmp_path / "codes" / "level-1"
    assert load_maps(folder, "train", "abc") is None
    save_maps(folder, "train", codes, vocabulary, "abc")
    loaded = load_maps(folder, "train", "abc")
    assert loaded.dtype == torch.int64
    assert torch.equal(loaded, codes)
    assert load_maps(folder, "train", "def") is None
    assert load_maps(folder, "test", "abc") is None
    assert np.load(folder / "train.npy").dtype == name
    assert json.loads((folder / "train.json").read_text()) == {
        "fingerprint": "abc",
        "vocabulary": vocabulary,
        "map_shape": [2, 3],
    }
    assert sorted(path.name for path in folder.iterdir()) == ["train.json", "train.npy"]


@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_killed_save_never_leaves_maps_under_the_wrong_fingerprint(tmp_path, monkeypatch, killed_at):
    old, new = torch.zeros(2, 3, 3, dtype=torch.int64), torch.ones(2, 3, 3, dtype=torch.int64)
    save_maps(tmp_path, "train", old, 4, "old")
    import os

    replace, calls = os.replace, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        replace(*arguments)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        save_maps(tmp_path, "train", new, 4, "new")
    for print_, codes in (("old", old), ("new", new)):
        found = load_maps(tmp_path, "train", print_)
        assert found is None or torch.equal(found, codes)


@pytest.mark.parametrize("bad", [-1, 256])
def test_codes_that_would_wrap_are_refused(tmp_path, bad):
    with pytest.raises(ValueError):
        save_maps(tmp_path, "train", torch.full((1, 2, 2), bad), 256, "abc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("labelled", [True, False])
def test_the_data_set_comes_back(tmp_path, labelled):
    folder = tmp_path / "codes"
    written = write(folder, labelled, train=7, validation=1, test=0)
    data = CodeDataset(folder)
    assert data.splits == {"train": 7, "validation": 1, "test": 0}
    assert data.map_shapes == SHAPES
    assert data.vocabularies == SIZES
    assert data.source == {"name": "toy"}
    for split, (index, labels, codes) in written.items():
        index2, labels2, codes2 = data.read(split)
        assert torch.equal(index2, index)
        assert (labels2 is None) == (not labelled)
        assert labels is None or torch.equal(labels2, labels)
        assert [maps.dtype for maps in codes2] == [torch.int64] * 3
        assert all(torch.equal(*pair) for pair in zip(codes2, codes, strict=True))
    schema = pq.read_schema(folder / "data" / "train-00000-of-00001.parquet")
    assert schema.names == ["index", *["label"] * labelled, "codes_1", "codes_2", "codes_3"]
    assert schema.field("codes_1").type == pa.list_(pa.list_(pa.uint32()))
    assert schema.field("codes_2").type == pa.list_(pa.list_(pa.uint16()))
    assert schema.field("codes_3").type == pa.list_(pa.uint8())
    assert not (folder / UNFINISHED).exists()
    refused(lambda: CodeDatasetWriter(folder, SHAPES, SIZES, "abc", {}), "not empty")


def test_more_images_than_one_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr("vqstack.codes.ROW_GROUP", 4)
    written = write(tmp_path, train=11)
    assert pq.ParquetFile(tmp_path / "data" / "train-00000-of-00001.parquet").num_row_groups == 3
    assert all(
        torch.equal(*pair) for pair in zip(CodeDataset(tmp_path).read("train")[2], written["train"][2], strict=True)
    )


@pytest.mark.parametrize("secret", [False, True])
def test_datasets_reads_the_same(tmp_path, secret):
    import datasets

    folder = tmp_path / "codes"
    writer = CodeDatasetWriter(folder, SHAPES, SIZES, "abc", {"name": "toy"})
    written = {"train": (torch.arange(7), torch.arange(7), random_codes(7))}
    written["test"] = (torch.arange(3), None if secret else torch.arange(3), random_codes(3))
    for split, columns in written.items():
        writer.write_split(split, *columns)
    writer.finish()
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train", "test"]
    for split, (index, labels, codes) in written.items():
        assert loaded[split]["index"][:] == index.tolist()
        assert loaded[split]["label"][:] == ([None] * 3 if labels is None else labels.tolist())
        assert [loaded[split][f"codes_{n}"][:] for n in (1, 2, 3)] == [maps.tolist() for maps in codes]
    assert loaded["train"].features["codes_2"].feature.feature.dtype == "uint16"
    assert (CodeDataset(folder).read("test")[1] is None) == secret


def test_labels_may_be_missing_only_after_a_split_that_has_them(tmp_path):
    writer = CodeDatasetWriter(tmp_path, SHAPES, SIZES, "abc", {})
    writer.write_split("test", torch.arange(2), None, random_codes(2))
    with pytest.raises(ValueError, match="labelled splits first"):
        writer.write_split("train", torch.arange(2), torch.arange(2), random_codes(2))


def test_a_killed_encoding_is_unfinished_and_may_be_done_again(tmp_path):
    writer = CodeDatasetWriter(tmp_path, SHAPES, SIZES, "abc", {})
    writer.write_split("train", torch.arange(2), None, random_codes(2))
    refused(lambda: CodeDataset(tmp_path), "unfinished", "again")
    write(tmp_path, test=3)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["test-00000-of-00001.parquet"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format_version": 2}, "newer vqstack"),
        ({"format_version": None}, "format_version"),
        ({"vocabularies": [4]}, "vocabularies"),
        ({"map_shapes": []}, "map_shapes"),
        ({"splits": {"../../train": 7}}, "splits"),
        ({"splits": {"train": 8, "test": 3}}, "8"),
        ({"splits": {"train": 7, "other": 3}}, "other"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, change, word):
    write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    before = contents(tmp_path)
    refused(lambda: CodeDataset(tmp_path), str(tmp_path), word)
    assert contents(tmp_path) == before


def test_folders_and_files_that_are_none_are_refused(tmp_path):
    refused(lambda: CodeDataset(tmp_path / "nothing"), "nothing")
    write(tmp_path)
    data = CodeDataset(tmp_path)
    refused(lambda: data.read("validation"), "validation", "train, test")
    (tmp_path / "data" / "test-00000-of-00001.parquet").write_bytes(b"not parquet")
    refused(lambda: CodeDataset(tmp_path), "test-00000-of-00001.parquet")
    (tmp_path / "manifest.json").write_text("{")
    refused(lambda: CodeDataset(tmp_path), "manifest.json")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("codes_2", [[257, 0, 0], [0, 0, 0]]),
        ("codes_2", [[0, 0, 0]]),
        ("codes_2", [[0, 0, 0], [0, 0]]),
        ("codes_2", [[0, 0, 0], [0, 0, None]]),
        ("codes_2", None),
        ("codes_3", [0, 0, 0, 0]),
        ("index", None),
    ],
)
def test_a_column_that_does_not_fit_is_refused_by_name(tmp_path, column, value):
    write(tmp_path)
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    values = pq.read_table(path)[column].to_pylist()
    rewrite(path, column, [*values[:3], value, *values[4:]])
    refused(lambda: CodeDataset(tmp_path).read("train"), path.name, column)


def test_columns_that_are_missing_or_of_another_type_are_refused(tmp_path):
    write(tmp_path)
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["codes_2"]), path)
    refused(lambda: CodeDataset(tmp_path), path.name, "codes_2")
    place = table.column_names.index("codes_2")
    pq.write_table(table.set_column(place, "codes_2", pa.array([0.5] * 7)), path)
    refused(lambda: CodeDataset(tmp_path), path.name, "codes_2", "double")


def test_codes_of_another_model_are_refused(tmp_path):
    write(tmp_path)
    data = CodeDataset(tmp_path)
    data.check("abc", SHAPES, SIZES)
    for arguments, word in [
        (("abd", SHAPES, SIZES), "abd"),
        (("abc", [(4, 4), *SHAPES[1:]], SIZES), "[4, 4]"),
        (("abc", SHAPES, [8, *SIZES[1:]]), "vocabularies"),
        (("abc", SHAPES[:2], SIZES[:2]), "maps"),
    ]:
        refused(lambda arguments=arguments: data.check(*arguments), word, "encode the data set")
