"""Paths as people write them, and what cannot be read: told apart from what cannot be written, with the reason."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from helpers import refused, untrained
from pydantic import BaseModel, Field

from vqstack import library
from vqstack.codes import CodeDataset, MapCache
from vqstack.config import RunConfig, parse, read_recipe, read_yaml
from vqstack.disk import append, make_folder, on_main, remove, told_apart, write_atomically
from vqstack.errors import CommandError, InputError
from vqstack.images import ImageSettings, is_image, load_images, load_splits
from vqstack.images.cache import Rows
from vqstack.paths import path_of
from vqstack.pretrained import find_artefact
from vqstack.reading import reading
from vqstack.recipes import find_recipe


class Command(BaseModel):
    """A command line."""

    out: Path = Field(description="a path")
    images: tuple[Path, ...] = Field(default=(), description="paths")
    data: ImageSettings = Field(default=ImageSettings(), description="images")


def test_paths_are_filled_in_on_the_command_line_and_in_yaml(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.delenv("NOWHERE", raising=False)
    given = [
        "--out=~/out",
        "--images",
        "$DATA/a",
        "${DATA}/b",
        "--data.source",
        "array",
        "--data.files",
        "train",
        "~/x",
    ]
    command = parse(Command, given, prog="x")
    assert command.out == tmp_path / "out"
    assert command.images == (tmp_path / "data" / "a", tmp_path / "data" / "b")
    assert command.data.files == {"train": str(tmp_path / "x")}
    (tmp_path / "a.yaml").write_text("levels_from: ~/run\ndata: {source: array, files: {train: $DATA/a.npy}}\n")
    config = read_yaml(tmp_path / "a.yaml", RunConfig)
    assert (config.levels_from, config.data.files["train"]) == (tmp_path / "run", str(tmp_path / "data" / "a.npy"))
    refused(lambda: parse(Command, ["--out", "$NOWHERE/out"], prog="x"), "NOWHERE is not set")


def test_addresses_are_refused_where_folders_are_meant(tmp_path, monkeypatch):
    """Of one a Path keeps a single slash, and a folder ``s3:`` would be made; one that is there is a folder."""
    monkeypatch.chdir(tmp_path)
    address = "s3://bucket/some.thing"
    array = ImageSettings(source="array", files={"train": address})
    for call in (
        lambda: parse(Command, ["--out", address], prog="x"),
        lambda: parse(Command, ["--out", "x", "--images", address], prog="x"),
        lambda: read_recipe(find_recipe(address)),
        lambda: CodeDataset(address),
        lambda: CodeDataset(Path(address)),
        lambda: find_artefact(Path(address)),
        lambda: make_folder(Path(address)),
        lambda: load_images([Path(address)], ImageSettings()),
        lambda: load_splits(array, ["train"]),
        lambda: library.train("digits", out=address),
        lambda: untrained(address, (1, 8, 8), [(2, 2)]),
    ):
        refused(call, f"{address}: an address", "copy it here first")
    assert not list(tmp_path.iterdir())
    (tmp_path / "s3:").mkdir()
    assert path_of(address) == Path(address)


@pytest.mark.parametrize("source", ["parquet", "webdataset", "imagefolder", "array"])
def test_a_link_loop_and_a_link_through_a_file_are_named(tmp_path, source):
    (tmp_path / "file").write_text("x")
    os.symlink("loop", tmp_path / "loop")
    os.symlink(tmp_path / "file" / "inside", tmp_path / "through")
    for name in ("loop", "through", "file/inside", "x" * 300):
        path = tmp_path / name
        files = ImageSettings(source=source, files={"train": str(path)}, size=(4, 4))
        refused(lambda files=files: load_splits(files, ["train"]), str(path))
    refused(lambda: find_artefact(tmp_path / "loop"), "loop", os.strerror(errno.ELOOP))
    refused(lambda: read_yaml(tmp_path / "loop", RunConfig), "loop", os.strerror(errno.ELOOP))
    os.symlink("loop.png", tmp_path / "loop.png")
    assert is_image(tmp_path / "loop.png")  # so that a folder with it is refused by name, not short of one image


def test_what_cannot_be_opened_is_read_and_not_written(tmp_path, monkeypatch):
    def closed(*arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))

    monkeypatch.setattr("os.stat", closed)
    with pytest.raises(InputError, match=rf"{tmp_path}: cannot be read \(Permission denied\)"):
        with reading("x"):
            os.stat(tmp_path)
    refused(lambda: find_artefact(tmp_path), str(tmp_path), "cannot be read", "Permission denied")


def test_a_source_that_fails_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    """While a split is decoded into the cache both can happen."""
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 7), np.uint8))
    settings = ImageSettings(source="array", files={"train": str(tmp_path / "a.npy")}, validation=0, test=0)

    def failing(code):
        def fail(*arguments):
            raise OSError(code, os.strerror(code), "/somewhere")

        return fail

    with monkeypatch.context() as patch:
        patch.setattr("vqstack.images.splits.decode_all", failing(errno.EIO))
        refused(lambda: load_splits(settings, ["train"]), "/somewhere: cannot be read", "Input/output")
    with monkeypatch.context() as patch:
        patch.setattr(Rows, "_header", failing(errno.ENOSPC))
        refused(lambda: load_splits(settings, ["train"]), "cannot be written", "No space", "VQSTACK_CACHE")
    assert len(load_splits(settings, ["train"])["train"]) == 4


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EIO])
def test_what_fails_while_it_is_read_is_not_said_to_be_written(tmp_path, monkeypatch, code):
    """These kinds come from both: places that write say so themselves, whatever else has a file was reading it."""

    def fails(*arguments, **options):
        raise OSError(code, os.strerror(code), str(tmp_path / "x"))

    def ended(work):
        with pytest.raises(CommandError) as caught, pytest.MonkeyPatch.context() as patch:
            work(patch)
        assert str(tmp_path) in str(caught.value) and os.strerror(code) in str(caught.value)
        return caught.value.exit_code

    ours = Accelerator(cpu=True)
    assert ended(lambda _: on_main(ours, fails)) == 2
    found = told_apart(OSError(code, os.strerror(code), str(tmp_path / "x")))
    assert found.exit_code == 2 and "cannot be read" in str(found)
    assert told_apart(OSError(errno.ENOSPC, "full", "x")).exit_code == 74
    assert told_apart(OSError(errno.ENOENT, "none", "x")) is None

    def writes(action, broken):
        def work(patch):
            patch.setattr(broken, fails)
            on_main(ours, action)

        return work

    maps = {"views": 1, "images": 2, "map_shape": (2,), "vocabulary": 4, "fingerprint": "x"}
    cache = MapCache(tmp_path / "codes", "train", **maps)
    for action, broken in [
        (lambda: append(tmp_path / "rows", "x"), "os.fsync"),
        (lambda: make_folder(tmp_path / "new"), "pathlib.Path.mkdir"),
        (lambda: write_atomically(tmp_path / "whole", lambda aside: aside.write_text("x")), "os.replace"),
        (cache.begin, "numpy.lib.format.open_memmap"),
        (lambda: remove(tmp_path / "whole"), "pathlib.Path.unlink"),
    ]:
        assert ended(writes(action, broken)) == 74, broken
