"""The cache of decoded images: what is read from it is what was decoded, once, and nothing else."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused
from test_images import png, random_pixels, write_parquet

from vqstack.errors import InputError
from vqstack.images import ImageSettings, default_cache, image_shape, load_splits, num_classes
from vqstack.images.cache import key, plain_folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VQSTACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def settings(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", random_pixels(30), np.arange(30) % 3)
    return ImageSettings(source="parquet", files={"train": path})


def closed(monkeypatch):
    """From now on no source can be opened and no image decoded."""

    def refuse(*args, **kwargs):
        raise AssertionError("this was to come from the cache")

    for name in ("open_records", "open_streams", "decode_all"):
        monkeypatch.setattr(f"vqstack.images.splits.{name}", refuse)


def test_a_second_start_decodes_nothing(cache, settings, monkeypatch):
    first = load_splits(settings)
    closed(monkeypatch)
    again = load_splits(settings)
    for name, split in first.items():
        assert torch.equal(split.pixels, again[name].pixels)
        assert torch.equal(split.labels, again[name].labels)
        assert torch.equal(split.index, again[name].index)
        assert split.source == again[name].source
    assert image_shape(settings) == (1, 5, 7)
    assert num_classes(settings) == 3
    # What is done to the tensors does not reach the files.
    again["train"].pixels.zero_()
    assert torch.equal(load_splits(settings)["train"].pixels, first["train"].pixels)


def test_memory_maps_only(cache, settings):
    load_splits(settings)
    for name, split in load_splits(settings).items():
        (folder,) = cache.glob(f"{name}-*[!k]")
        with open(folder / "pixels.npy", "r+b") as file:  # what changes in the file shows in the tensor
            file.seek(-1, os.SEEK_END)
            file.write(bytes([255 - int(split.pixels[-1, -1, -1, -1])]))
            file.flush()
        assert int(np.load(folder / "pixels.npy")[-1, -1, -1, -1]) == int(split.pixels[-1, -1, -1, -1])


@pytest.mark.parametrize(
    "changes",
    [{"values": 2}, {"size": (4, 4)}, {"channels": 3}, {"seed": 1}, {"validation": 0.5}, {"limit": 3}, {"classes": 5}],
)
def test_other_settings_are_another_entry(cache, settings, changes):
    before = load_splits(settings)["train"]
    after = load_splits(ImageSettings(**settings.model_dump() | changes))["train"]
    assert not (
        torch.equal(before.pixels, after.pixels)
        and torch.equal(before.index, after.index)
        and before.num_classes == after.num_classes
    )


@pytest.mark.parametrize("changes", [{"resident": "host"}, {"workers": 0}])
def test_settings_of_training_are_not(cache, settings, changes, monkeypatch):
    load_splits(settings)
    closed(monkeypatch)
    load_splits(settings.model_copy(update=changes))


def test_a_file_that_changed_at_equal_size_is_decoded_again(cache, tmp_path):
    pixels = random_pixels(30)[:, 0]
    settings = ImageSettings(source="array", files={"train": str(tmp_path / "a.npy")}, validation=0, test=0)
    for content in (pixels, 255 - pixels):
        np.save(tmp_path / "a.npy", content)
        assert np.array_equal(load_splits(settings, ["train"])["train"].pixels[:, 0], content)


def test_files_of_equal_size_and_time_are_told_apart_by_their_path(cache, tmp_path):
    pixels = random_pixels(30)[:, 0]
    for name, content in (("a", pixels), ("b", 255 - pixels)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", content)
        os.utime(tmp_path / name / "x.npy", (1, 1))
    settings = ImageSettings(source="array", files={"train": str(tmp_path / "*" / "x.npy")}, validation=0, test=0)
    before = key(settings, "train")
    (tmp_path / "b").rename(tmp_path / "c")
    assert key(settings, "train") != before


def test_a_build_that_failed_leaves_nothing(cache, tmp_path):
    (tmp_path / "folder").mkdir()
    for number, one in enumerate(random_pixels(3)):
        (tmp_path / "folder" / f"{number}.png").write_bytes(png(one))
    (tmp_path / "folder" / "2.png").write_bytes(b"")
    settings = ImageSettings(source="imagefolder", files={"train": str(tmp_path / "folder")}, validation=0, test=0)
    refused(lambda: load_splits(settings, ["train"]), "2.png")
    assert not [path for path in cache.iterdir() if path.is_dir()]
    (tmp_path / "folder" / "2.png").write_bytes(png(random_pixels(1)[0]))
    assert len(load_splits(settings, ["train"])["train"]) == 3


def test_what_a_killed_process_left_is_no_cache(cache, settings):
    expected = load_splits(settings)["train"].pixels.clone()
    (folder,) = (path for path in cache.glob("train-*") if path.is_dir())
    folder.rename(f"{folder}.part")
    os.truncate(f"{folder}.part/pixels.npy", 200)
    assert torch.equal(load_splits(settings)["train"].pixels, expected)
    assert not os.path.exists(f"{folder}.part")


def test_two_processes_build_it_once(cache, settings, tmp_path):
    script = (
        "import sys; import vqstack.images.splits as s; write = s._write\n"
        "def noted(folder, *rest): open(sys.argv[2], 'a').write(folder.name + '\\n'); write(folder, *rest)\n"
        "s._write = noted; settings = s.ImageSettings.model_validate_json(sys.argv[1])\n"
        "print(sum(int(split.pixels.long().sum()) for split in s.load_splits(settings).values()))"
    )
    command = [sys.executable, "-c", script, settings.model_dump_json(), str(tmp_path / "built")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [int(run.communicate()[0]) for run in runs]
    assert sums == [int(random_pixels(30).astype(int).sum())] * 2
    built = (tmp_path / "built").read_text().split()
    assert len(built) == len(set(built)) == 3


def test_a_cache_that_cannot_be_written_is_named(settings, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("VQSTACK_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="VQSTACK_CACHE"):
        load_splits(settings)


@pytest.mark.parametrize("name", ["meta.json", "index.npy", "labels.npy", "pixels.npy"])
@pytest.mark.parametrize("how", ["truncated", "bit flipped", "missing"])
def test_a_broken_entry_is_made_again(cache, settings, name, how, caplog):
    expected = load_splits(settings)["test"].pixels.clone()
    (folder,) = (path for path in cache.glob("test-*") if path.is_dir())
    path, whole = folder / name, (folder / name).read_bytes()
    content = bytearray(whole)
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[:-1])
    else:
        content[-2] ^= 4
        path.write_bytes(content)
    assert image_shape(settings) == (1, 5, 7)  # whatever is left of it
    assert torch.equal(load_splits(settings)["test"].pixels, expected)
    assert folder.name in caplog.text and caplog.text.count("\n") == 1
    assert path.read_bytes() == whole
    caplog.clear()
    load_splits(settings)
    assert not caplog.text


def test_one_rule_says_where_what_serves_all_runs_is_kept(monkeypatch, tmp_path):
    """Decoded images and classifiers alike; a variable that is set to nothing is not set."""
    named = {"VQSTACK_CACHE": tmp_path / "a", "XDG_CACHE_HOME": tmp_path / "b", "HOME": tmp_path / "c"}
    for name, value in named.items():
        monkeypatch.setenv(name, str(value))
    assert default_cache() == tmp_path / "a"
    monkeypatch.setenv("VQSTACK_CACHE", "")
    assert default_cache() == tmp_path / "b" / "vqstack"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == tmp_path / "c" / ".cache" / "vqstack"


def test_two_processes_link_the_same_folder(cache, tmp_path, monkeypatch):
    """The second finds the links of the first when it is about to put its own there."""
    folder = tmp_path / "a[b]"
    (folder / "c").mkdir(parents=True)
    (folder / "c" / "1.png").write_bytes(b"x")
    mkdtemp = tempfile.mkdtemp

    def late(dir):
        monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
        plain_folder(str(folder))
        return mkdtemp(dir=dir)

    monkeypatch.setattr(tempfile, "mkdtemp", late)
    made = Path(plain_folder(str(folder)))
    assert (made / "c" / "1.png").read_bytes() == b"x"
    assert list(made.parent.iterdir()) == [made]
