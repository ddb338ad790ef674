"""The file that was named, whatever signs its path holds; rows and samples without an image."""

import io
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import refused
from test_images import png, random_pixels, write_parquet

from vqstack.images import ImageSettings, check_paths, load_splits
from vqstack.paths import expanded, matches

ODD = ["data[1]", "a*b", "q?", "x#1", "50%", "a::b", "$HOME", "~", "two words", "line\nbreak", "{a,b}", "zip:", "é"]
OWN = random_pixels(6)
OTHER = 255 - OWN


def settings(path, source="parquet", **changes) -> ImageSettings:
    fixed = {"source": source, "files": {"train": str(path)}, "size": (5, 7), "validation": 0, "test": 0}
    return ImageSettings(**fixed | changes)


@pytest.fixture(params=[False, True], ids=["mapped", "streamed"])
def how(request):
    return {"streaming": True, "workers": 0, "validation": 0.0, "test": 0.0} if request.param else {}


def tar(path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write(source, folder, name, pixels) -> str:
    """One file or folder of a source, with these images."""
    if source == "parquet":
        return write_parquet(folder / f"{name}.parquet", pixels)
    if source == "webdataset":
        tar(folder / f"{name}.tar", {f"{i}.png": png(one) for i, one in enumerate(pixels)})
        return str(folder / f"{name}.tar")
    if source == "array":
        np.save(folder / f"{name}.npy", pixels)
        return str(folder / f"{name}.npy")
    (folder / name).mkdir()
    for i, one in enumerate(pixels):
        (folder / name / f"{i}.png").write_bytes(png(one))
    return str(folder / name)


def _can_be_written(name):
    """Whether files can have this name here: where the language is plain ASCII, not all can."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def pixels_of(found: ImageSettings) -> set[bytes]:
    return {one.numpy().tobytes() for one in load_splits(found, ["train"])["train"].pixels}


@pytest.mark.parametrize("source", ["parquet", "webdataset", "imagefolder", "array"])
@pytest.mark.parametrize("place", ["stem", "folder"])
def test_a_path_that_exists_is_that_path(tmp_path, source, place):
    """Beside each of them lies what its signs would find."""
    inside = tmp_path / "inside"
    inside.mkdir()
    for other in ("data1", "aab", "qq", "b", "a"):
        write(source, inside, other, OTHER)
    for name in ODD:
        if not _can_be_written(name):
            continue
        folder = inside
        if place == "folder":
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
        path = write(source, folder, name, OWN)
        assert pixels_of(settings(path, source)) == {one.tobytes() for one in OWN}, name


@pytest.mark.parametrize("before", ["./", ""])
def test_a_folder_named_as_a_hub_data_set_is_that_folder(tmp_path, monkeypatch, before):
    """``datasets`` takes signs of its name for patterns, addresses, a home or a configuration."""
    monkeypatch.chdir(tmp_path)

    def of(name, **how):
        return ImageSettings(source="hub", name=name, size=(5, 7), validation=0.0, test=0.0, **how)

    for other in ("data1", "aab", "qq", "b", "a"):
        (tmp_path / other).mkdir()
        write_parquet(tmp_path / other / "train.parquet", OTHER)
    for name in ODD:
        if _can_be_written(name):
            (tmp_path / name).mkdir(exist_ok=True)
            write_parquet(tmp_path / name / "train.parquet", OWN)
            for how in ({}, {"streaming": True, "workers": 0}):
                assert pixels_of(of(before + name, **how)) == {one.tobytes() for one in OWN}, name
    write_parquet(tmp_path / "data[1]" / "train.parquet", OTHER)  # what has changed since is read anew
    assert pixels_of(of(f"{before}data[1]")) == {one.tobytes() for one in OTHER}
    monkeypatch.setenv("SOMEWHERE", str(tmp_path / "a::b"))
    assert pixels_of(of("$SOMEWHERE")) == {one.tobytes() for one in OWN}


def test_an_odd_path_is_that_path_when_it_is_streamed_or_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    streamed = {"streaming": True, "workers": 0, "validation": 0.0, "test": 0.0}
    for source, name in [("parquet", "a::b"), ("webdataset", "data[1]"), ("imagefolder", "~"), ("parquet", "$HOME")]:
        path = write(source, tmp_path, name, OWN)
        relative = path.removeprefix(f"{tmp_path}/")
        assert pixels_of(settings(relative, source, **streamed)) == {one.tobytes() for one in OWN}


def test_a_folder_that_exists_is_no_glob_in_front_of_one(tmp_path):
    for name, pixels in (("x[1]", OWN), ("x1", OTHER)):
        (tmp_path / name).mkdir()
        write_parquet(tmp_path / name / "a.parquet", pixels)
    assert pixels_of(settings(tmp_path / "x[1]" / "*.parquet")) == {one.tobytes() for one in OWN}
    (tmp_path / "x[1]" / "a.parquet").unlink()
    assert matches(str(tmp_path / "x[1]" / "*.parquet")) == []
    (tmp_path / "x[1]").rmdir()
    assert pixels_of(settings(tmp_path / "x[1]" / "*.parquet")) == {one.tobytes() for one in OTHER}


def test_home_and_variables_are_filled_in_where_nothing_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.delenv("NOWHERE", raising=False)
    assert expanded("~/a") == str(tmp_path / "home" / "a")
    assert expanded("$DATA/a*") == expanded("${DATA}/a*") == str(tmp_path / "data" / "a*")
    assert expanded("https://x/$DATA") == "https://x/$DATA"
    with pytest.raises(ValueError, match="NOWHERE is not set"):
        expanded("$NOWHERE/a")
    for name in ("~", "$DATA"):
        (tmp_path / name).mkdir()
        assert expanded(f"{name}/a") == f"{name}/a"
        assert expanded(str(tmp_path / name / "$DATA" / "b")) == f"{tmp_path / name}/{tmp_path}/data/b"


def holds(split) -> list[bytes]:
    return [one.numpy().tobytes() for one in split.pixels]


def test_a_row_without_an_image(tmp_path, how):
    images = [{"bytes": png(one), "path": None} for one in OWN]
    images[1], images[2]["bytes"], images[3]["bytes"] = None, None, b""
    images[4] = {"bytes": None, "path": "elsewhere.png"}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array(images)}), path)
    refused(lambda: load_splits(settings(path, **how), ["train"]), f"{path}, row ", "on_error")
    split = load_splits(settings(path, on_error="skip", **how), ["train"])["train"]
    assert sorted(holds(split)) == sorted(OWN[i].tobytes() for i in (0, 5))
    assert split.source["skipped"]["count"] == 4
    binary = [None if image is None else image["bytes"] for image in images]
    pq.write_table(pa.table({"image": pa.array(binary, pa.binary())}), tmp_path / "b.parquet")
    refused(lambda: load_splits(settings(tmp_path / "b.parquet", **how), ["train"]), "no image", "on_error")
    split = load_splits(settings(tmp_path / "b.parquet", on_error="skip", **how), ["train"])["train"]
    assert sorted(holds(split)) == sorted(OWN[i].tobytes() for i in (0, 5))


def test_a_sample_without_an_image(tmp_path, how):
    members = {f"{i}.{kind}": png(OWN[i]) if kind == "png" else b"1" for i in range(6) for kind in ("cls", "png")}
    del members["3.png"]
    tar(tmp_path / "a.tar", members)
    shard = settings(tmp_path / "a.tar", "webdataset", **how)
    refused(lambda: load_splits(shard, ["train"]), f"{tmp_path}/a.tar, 3", "on_error")
    split = load_splits(shard.model_copy(update={"on_error": "skip"}), ["train"])["train"]
    assert sorted(holds(split)) == sorted(OWN[i].tobytes() for i in (0, 1, 2, 4, 5))
    assert split.labels.tolist() == [1] * 5


def test_members_that_do_not_lie_side_by_side(tmp_path, how):
    images = {f"dir/{i}.png": png(one) for i, one in enumerate(OWN)}
    labels = {f"dir/{i}.cls": str(i).encode() for i in range(6)}
    tar(tmp_path / "a.tar", images | labels | {"dir/._0.png": b"of another system", "README": b"text"})
    split = load_splits(settings(tmp_path / "a.tar", "webdataset", **how), ["train"])["train"]
    assert {label: one for label, one in zip(split.labels.tolist(), holds(split), strict=True)} == {
        i: one.tobytes() for i, one in enumerate(OWN)
    }


def test_images_of_several_endings(tmp_path, how):
    """In one archive, and in another one than the first."""
    names = ["0.png", "1.PNG", "2.webp"]
    tar(tmp_path / "0.tar", {name: png(OWN[i]) for i, name in enumerate(names)})
    tar(tmp_path / "1.tar", {"3.bmp": png(OWN[3]), "4.jpg": png(OWN[4]), "5.tiff": png(OWN[5])})
    found = load_splits(settings(tmp_path / "*.tar", "webdataset", **how), ["train"])["train"]
    assert sorted(holds(found)) == sorted(one.tobytes() for one in OWN)
    asked = settings(tmp_path / "*.tar", "webdataset", image_column="png", on_error="skip", **how)
    assert holds(load_splits(asked, ["train"])["train"]) == [OWN[0].tobytes()]


def test_a_sample_with_two_images_is_refused_until_one_is_named(tmp_path, how):
    both = {f"{i}.{kind}": png(one) for i, one in enumerate(OWN) for kind in ("input.png", "png")}
    tar(tmp_path / "0.tar", both)
    refused(lambda: load_splits(settings(tmp_path / "0.tar", "webdataset", **how), ["train"]), "image_column")
    for name in ("png", "input.png"):
        named = settings(tmp_path / "0.tar", "webdataset", image_column=name, **how)
        assert len(load_splits(named, ["train"])["train"]) == 6
    tar(tmp_path / "0.tar", {"0.png": png(OWN[0])})
    tar(tmp_path / "1.tar", both)
    late = settings(tmp_path / "*.tar", "webdataset", **how)
    refused(lambda: load_splits(late, ["train"]), "1.tar", "two images", "image_column")


def test_a_member_twice_and_a_link(tmp_path, how):
    tar(tmp_path / "a.tar", {"0.png": png(OWN[0])})
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.LNKTYPE, "0.png"
        archive.addfile(link)
    linked = settings(tmp_path / "a.tar", "webdataset", **how)
    assert holds(load_splits(linked, ["train"])["train"]) == [OWN[0].tobytes()] * 2
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        archive.addfile(link)
    refused(lambda: load_splits(linked, ["train"]), "a.tar", "1.png", "twice")


def test_a_label_of_another_type_than_before_is_named(tmp_path, how):
    many = {f"{i}.{kind}": png(OWN[0]) if kind == "png" else b"1" for i in range(3) for kind in ("png", "cls")}
    tar(tmp_path / "a.tar", many | {"9.png": png(OWN[1]), "9.cls": b"one"})
    refused(lambda: load_splits(settings(tmp_path / "a.tar", "webdataset", **how), ["train"]), "a.tar", "one")
    write_parquet(tmp_path / "0.parquet", OWN, np.arange(6))
    write_parquet(tmp_path / "1.parquet", OWN)
    refused(lambda: load_splits(settings(tmp_path / "*.parquet", **how), ["train"]), "1.parquet", "label")


def test_the_copy_that_datasets_keeps_is_of_this_file(tmp_path):
    """The same path, other bytes: nothing of the first is given again."""
    for pixels in (OWN, OTHER):
        write_parquet(tmp_path / "a.parquet", pixels)
        assert pixels_of(settings(tmp_path / "a.parquet")) == {one.tobytes() for one in pixels}
    assert torch.equal(
        load_splits(settings(tmp_path / "a.parquet"), ["train"])["train"].pixels, torch.from_numpy(OTHER)
    )


def test_members_of_archives_that_are_in_no_sample_are_counted(tmp_path, how, caplog):
    first = {f"./{i}.png": png(one) for i, one in enumerate(OWN[:4])} | {"./._0.png": b"mac", "LICENSE": b"free"}
    tar(tmp_path / "a0.tar", first)
    tar(tmp_path / "a1.tar", {"5.png": png(OWN[5]), "._5.png": b"mac"})
    split = load_splits(settings(tmp_path / "a?.tar", "webdataset", **how), ["train"])["train"]
    assert len(split) == 5
    # A stream looks only into the archives that tell its columns before it begins.
    hidden = 1 if how else 2
    assert {name: left["count"] for name, left in split.source["left_out"].items()} == {
        "hidden": hidden,
        "no ending": 1,
    }
    assert "._0.png" in caplog.text and "LICENSE" in caplog.text


def test_folders_inside_an_archive_are_said(tmp_path, how, caplog):
    names = [f"pets/{'cat' if i % 2 else 'dog'}/{i}" for i in range(6)]
    tar(tmp_path / "a.tar", {f"{name}.png": png(one) for name, one in zip(names, OWN, strict=True)})
    assert load_splits(settings(tmp_path / "a.tar", "webdataset", **how), ["train"])["train"].labels is None
    assert "folders (cat, dog)" in caplog.text and "imagefolder" in caplog.text


@pytest.mark.parametrize("source", ["array", "parquet", "webdataset"])
def test_a_folder_is_no_file(tmp_path, source):
    refused(lambda: check_paths(settings(tmp_path, source)), str(tmp_path), "a folder", "imagefolder")
