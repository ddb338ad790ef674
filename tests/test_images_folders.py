"""Classes of image folders, whatever else lies there, and shards and links that cannot be read."""

import json
import os
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import refused
from test_images import png, random_pixels, write_parquet

from vqstack.images import ImageSettings, load_splits


def classes(folder, names=("a", "b"), count=6) -> str:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i, pixels in enumerate(random_pixels(count)):
            pixels[:] = number  # each image tells its class
            (folder / name / f"{i}.png").write_bytes(png(pixels))
    return str(folder)


def settings(train, **changes) -> ImageSettings:
    files = {"train": str(train)} | {name: str(changes.pop(name)) for name in ("test",) if name in changes}
    return ImageSettings(**{"source": "imagefolder", "files": files, "validation": 0.2, "limit": 80} | changes)


def check(found) -> None:
    """Every image has the class that its pixels tell."""
    for split in found.values():
        assert split.class_names == ["a", "b"]
        assert np.array_equal(split.labels.numpy(), split.pixels.numpy()[:, 0, 0, 0])


@pytest.fixture(params=[False, True], ids=["mapped", "streamed"])
def how(request):
    changes = {"streaming": True, "workers": 0} if request.param else {}
    return changes | {"size": (5, 7)}


def test_classes_stay_where_another_split_has_none(tmp_path, how, caplog):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "0.png").write_bytes(png(random_pixels(1)[0]))
    found = load_splits(settings(classes(tmp_path / "train"), test=tmp_path / "flat", **how))
    assert found.pop("test").labels is None
    assert "no folders of classes" in caplog.text
    check(found)


def test_classes_beside_a_table_of_captions(tmp_path, how):
    train = classes(tmp_path / "train")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\na/0.png,one\n")
    check(load_splits(settings(train, **how)))


def test_class_folders_that_are_links_and_their_new_files(tmp_path, how):
    classes(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    for name in "ab":
        os.symlink(tmp_path / "real" / name, tmp_path / "linked" / name)
    before = load_splits(settings(tmp_path / "linked", **how))
    check(before)
    (tmp_path / "real" / "a" / "new.png").write_bytes(png(random_pixels(1)[0] * 0))
    after = load_splits(settings(tmp_path / "linked", **how))
    assert sum(map(len, after.values())) == sum(map(len, before.values())) + 1
    (tmp_path / "linked").rename(tmp_path / "[linked]")
    check(load_splits(settings(tmp_path / "[linked]", **how)))


def test_images_without_a_class_are_refused_by_name(tmp_path, how):
    train = classes(tmp_path / "train")
    test = classes(tmp_path / "test", ("a", "c"))
    refused(lambda: load_splits(settings(train, test=test, **how)), f"{test}/c/", "no class of train")
    (tmp_path / "train" / "stray.png").write_bytes(png(random_pixels(1)[0]))
    refused(lambda: load_splits(settings(train, **how)), "stray.png", "beside")


def test_links_that_lead_nowhere(tmp_path, how, caplog):
    train = classes(tmp_path / "train")
    os.symlink("/nowhere/x.png", tmp_path / "train" / "a" / "x.png")
    refused(lambda: load_splits(settings(train, **how)), "a/x.png", "leads nowhere")
    check(load_splits(settings(train, on_error="skip", **how)))
    assert "a/x.png" in caplog.text


SPLITS = {"train": "train", "test": "test", "validation": "val"}


@pytest.mark.parametrize("named", ["train", "test"])
@pytest.mark.parametrize("around", ["", "photos"], ids=["root", "inside another folder"])
def test_a_root_of_splits_is_no_folder_of_classes(tmp_path, how, named, around):
    """Its folders are the splits, whichever of them the root was named for."""
    parts = {split: classes(tmp_path / around / name) for split, name in SPLITS.items()}
    expected = load_splits(ImageSettings(source="imagefolder", files=parts, **how))
    found = load_splits(ImageSettings(source="imagefolder", files={named: str(tmp_path)}, **how))
    check(found)
    for name, split in expected.items():
        assert len(found[name]) == 12 and sorted(found[name].labels.tolist()) == sorted(split.labels.tolist())
        assert not found[name].source["held_out"]


def test_train_alone_in_a_root_keeps_its_labels(tmp_path, how):
    classes(tmp_path / "root" / "Training")
    (tmp_path / "root" / "__MACOSX").mkdir()
    check(load_splits(settings(tmp_path / "root", **how)))


def test_a_root_named_for_every_split(tmp_path, how):
    for name in ("train", "test"):
        classes(tmp_path / name, count=4)
    found = load_splits(settings(tmp_path, test=tmp_path, **how))
    check(found)
    assert len(found["test"]) == 8
    files = {"train": str(tmp_path / "train"), "validation": str(tmp_path)}
    root = ImageSettings(source="imagefolder", files=files, **how)
    refused(lambda: load_splits(root), "no validation images", f"test {tmp_path}/test")


def test_what_lies_beside_the_splits_is_counted(tmp_path, how, caplog):
    for name in ("train", "test", "validation"):
        classes(tmp_path / name, count=4)
    (tmp_path / "README").write_text("about")
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._train").write_bytes(bytes(100))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "labels.txt").write_text("a b")
    found = load_splits(settings(tmp_path, **how))
    counts = {reason: what["count"] for reason, what in found["train"].source["left_out"].items()}
    assert counts == {"hidden": 2, "beside the folders that are read": 2}
    assert found["test"].source["left_out"] == {} and "README" in caplog.text and "._train" in caplog.text
    files = {name: str(tmp_path) for name in ("train", "test")}  # a split that nobody asked for is left out, too
    found = load_splits(ImageSettings(**{"source": "imagefolder", "files": files} | how))
    assert found["train"].source["left_out"]["beside the folders that are read"]["count"] == 2 + 8


def test_classes_of_test_where_train_has_none_are_said(tmp_path, how, caplog):
    classes(tmp_path / "train", ("",))
    classes(tmp_path / "test")
    load_splits(settings(tmp_path / "train", test=tmp_path / "test", **how))
    assert f"{tmp_path}/test: its folders (a, b) are no classes" in caplog.text


def test_splits_beside_other_folders_are_refused_with_the_command(tmp_path, how):
    for name in ("train", "test", "extra"):
        classes(tmp_path / name)
    refused(lambda: load_splits(settings(tmp_path, **how)), "extra", f"--data.files train {tmp_path}/train test")


@pytest.mark.parametrize("names", [("train_set", "test_set"), ("seg_train", "seg_test"), ("train", "test1")])
def test_folders_that_are_called_as_splits_are_no_classes(tmp_path, how, names):
    for name in names:
        classes(tmp_path / name)
    asked = f"--data.files train {tmp_path / names[0]} test {tmp_path / names[1]}"
    refused(lambda: load_splits(settings(tmp_path, **how)), asked)


@pytest.mark.parametrize("names", [("train", "unlabeled"), ("train", "training"), ("bus", "train1")])
def test_a_folder_of_classes_called_train_is_no_class(tmp_path, how, names):
    for name in names:
        classes(tmp_path / name)
    refused(lambda: load_splits(settings(tmp_path, **how)), "may be splits", f"--data.files train {tmp_path}/train")


def test_splits_inside_classes_are_refused(tmp_path, how):
    for name in ("bottle", "cable"):
        for split in ("train", "test"):
            classes(tmp_path / name / split)
    inside = f"--data.files train {tmp_path}/bottle/train test {tmp_path}/bottle/test"
    refused(lambda: load_splits(settings(tmp_path, **how)), inside)


def test_an_image_beside_the_splits_is_no_image_of_none(tmp_path, how):
    for name in ("train", "test"):
        classes(tmp_path / name)
    (tmp_path / "train" / "a" / "0.png").rename(tmp_path / "0.png")
    refused(lambda: load_splits(settings(tmp_path, **how)), f"{tmp_path}/0.png", "beside")


def test_a_class_may_be_called_train(tmp_path, how):
    split = load_splits(settings(classes(tmp_path / "x", ("bus", "train")), **how))["train"]
    assert split.class_names == ["bus", "train"]


def test_every_file_is_an_image_or_counted(tmp_path, how, caplog):
    train = tmp_path / "train"
    classes(train, ("__b", "a"))
    (train / "a" / "0.png").rename(train / "a" / "0")  # no suffix: what it holds tells
    (train / "a" / "1.png").rename(train / "a" / "1.photo")
    for name in ("empty", "text", "__MACOSX"):
        (train / name).mkdir()
    (train / "text" / "notes.txt").write_text("no image")
    (train / "__MACOSX" / "._0.png").write_bytes(bytes(100))
    os.symlink(train, train / "a" / "back")
    found = load_splits(settings(train, **how))
    assert found["train"].class_names == ["__b", "a"]
    assert sum(map(len, found.values())) == 12
    left_out = found["train"].source["left_out"]
    assert {reason: what["count"] for reason, what in left_out.items()} == {
        "hidden": 1,
        "no image": 1,
        "a link to a folder around it": 1,
    }
    assert found["validation"].source["left_out"] == {}  # counted once
    assert "notes.txt" in caplog.text and "._0.png" in caplog.text


@pytest.mark.parametrize("name", ["photo.heic", "photo.png"])
def test_what_is_called_an_image_and_cannot_be_read_is_refused_or_counted(tmp_path, how, name):
    train = classes(tmp_path / "train")
    (tmp_path / "train" / "a" / name).write_bytes(b"ftypheic" * 20)
    refused(lambda: load_splits(settings(train, **how)), name, "on_error")
    found = load_splits(settings(train, on_error="skip", **how))
    check(found)
    assert sum(split.source["skipped"]["count"] for split in found.values()) == 1


def test_a_folder_that_cannot_be_opened(tmp_path, how, monkeypatch, caplog):
    train = classes(tmp_path / "train")
    (tmp_path / "train" / "a" / "locked").mkdir()

    def scandir(path, real=os.scandir):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    refused(lambda: load_splits(settings(train, **how)), "a/locked", "Permission denied", "on_error")
    check(load_splits(settings(train, on_error="skip", **how)))
    assert "a/locked" in caplog.text


def test_a_link_inside_a_class_brings_its_images(tmp_path, how):
    classes(tmp_path / "more", ("x",), count=3)
    train = classes(tmp_path / "train")
    before = sum(map(len, load_splits(settings(train, **how)).values()))
    os.symlink(tmp_path / "more" / "x", tmp_path / "train" / "a" / "linked")
    found = load_splits(settings(train, **how))
    check(found)
    assert sum(map(len, found.values())) == before + 3


def test_one_folder_alone_is_said(tmp_path, how, caplog):
    assert load_splits(settings(classes(tmp_path / "train", ("a",)), **how))["train"].labels is None
    assert "label" in caplog.text and f"{tmp_path}/train/a" in caplog.text


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_classes_of_a_table_beside_the_images(tmp_path, how, name, caplog):
    train = tmp_path / "train"
    train.mkdir()
    rows = []
    for number, pixels in enumerate(random_pixels(20)):
        pixels[:] = number % 2
        (train / f"{number}.png").write_bytes(png(pixels))
        rows.append({"file_name": f"{number}.png", "kind": "ab"[number % 2]})
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), train / name)
    elif name.endswith(".csv"):
        (train / name).write_text("\n".join(["file_name,kind", *(",".join(row.values()) for row in rows)]))
    else:
        (train / name).write_text("\n".join(map(json.dumps, rows)))
    assert load_splits(settings(train, **how))["train"].labels is None
    assert name in caplog.text and "label_column" in caplog.text
    check(load_splits(settings(train, label_column="kind", **how)))
    refused(lambda: load_splits(settings(train, label_column="sort", **how)), "sort", "kind")


def tar(path, labelled=True) -> bytes:
    with tarfile.open(path, "w") as archive:
        for i, pixels in enumerate(random_pixels(20)):
            parts = {"png": png(pixels)} | ({"cls": str(i % 3).encode()} if labelled else {})
            for kind, content in parts.items():
                member = tarfile.TarInfo(f"{path.stem}{i:03d}.{kind}")
                member.size = len(content)
                archive.addfile(member, BytesIO(content))
    return path.read_bytes()


@pytest.mark.parametrize("rest", [0, 9999])
def test_a_cut_off_tar_is_named(tmp_path, how, rest):
    tar(tmp_path / "0.tar")
    (tmp_path / "1.tar").write_bytes(tar(tmp_path / "1.tar")[:rest])
    shards = settings(tmp_path / "*.tar", source="webdataset", **how)
    refused(lambda: load_splits(shards), f"{tmp_path}/1.tar: cannot be read", "repair it")


def test_a_cut_off_parquet_file_is_named(tmp_path, how):
    for number in "01":
        write_parquet(tmp_path / f"{number}.parquet", random_pixels(20))
    (tmp_path / "1.parquet").write_bytes((tmp_path / "0.parquet").read_bytes()[:600])
    shards = settings(tmp_path / "*.parquet", source="parquet", **how)
    refused(lambda: load_splits(shards), f"{tmp_path}/1.parquet: cannot be read", "repair it")


def test_a_broken_image_is_named_with_its_shard(tmp_path, how):
    pixels = random_pixels(60)
    for number, start in enumerate((0, 30)):
        images = [{"bytes": png(one), "path": None} for one in pixels[start : start + 30]]
        if number:
            images[17]["bytes"] = images[17]["bytes"][:60]
        pq.write_table(pa.table({"image": pa.array(images)}), tmp_path / f"{number}.parquet", row_group_size=10)
    shards = settings(tmp_path / "*.parquet", source="parquet", validation=0.0, **how)
    refused(lambda: load_splits(shards, ["train"]), f"{tmp_path}/1.parquet, row 17", "truncated", "on_error")
    tar(tmp_path / "0.tar")
    broken = tar(tmp_path / "1.tar").replace(png(random_pixels(20)[4]), bytes(len(png(random_pixels(20)[4]))))
    (tmp_path / "1.tar").write_bytes(broken)
    shards = settings(tmp_path / "*.tar", source="webdataset", validation=0.0, **how)
    refused(lambda: load_splits(shards, ["train"]), f"{tmp_path}/1.tar, 1004.png", "on_error")


def test_images_without_a_label_among_others(tmp_path, how):
    write_parquet(tmp_path / "0.parquet", random_pixels(30), [0, 1, None] * 10)
    refused(lambda: load_splits(settings(tmp_path / "0.parquet", source="parquet", **how)), "store a class number")
    tar(tmp_path / "0.tar")
    tar(tmp_path / "1.tar", labelled=False)
    refused(lambda: load_splits(settings(tmp_path / "*.tar", source="webdataset", **how)), "store a class number")


@pytest.fixture
def served(tmp_path):
    """A folder behind an address of this machine."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_files_behind_an_address(tmp_path, how, served, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # the address is of this machine
    pixels = random_pixels(40)
    for number in (0, 1):
        write_parquet(tmp_path / f"{number}.parquet", pixels[20 * number : 20 * number + 20], np.arange(20) % 3)
    found = load_splits(settings(f"{served}/*.parquet", source="parquet", **how))
    assert {one.numpy().tobytes() for split in found.values() for one in split.pixels} == {x.tobytes() for x in pixels}


def test_what_opens_addresses_is_named_where_it_is_missing(how, monkeypatch):
    def missing(*arguments, **options):
        raise ImportError('HTTPFileSystem requires "requests" and "aiohttp" to be installed')

    monkeypatch.setattr(datasets, "load_dataset", missing)
    address = settings("https://example.org/*.parquet", source="parquet", **how)
    refused(lambda: load_splits(address), "vqstack[remote]", "s3fs")


@pytest.mark.parametrize("changes", [{"name": "x"}, {"revision": "x"}, {"splits": {"test": "x"}}])
def test_settings_of_the_hub_are_refused_elsewhere(changes):
    with pytest.raises(ValueError, match="leave them out"):
        settings("x", **changes)
