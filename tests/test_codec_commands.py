"""compress.py and decompress.py as a user runs them: what they write, say and refuse."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import command_refused as refused
from PIL import Image

from vqstack.images import ImageSettings, load_splits, save_png
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings
from vqstack.output import UNFINISHED, Output

TOOLS = Path(__file__).parents[1] / "tools"
DIGITS = ("--split", "test", "--data.source", "digits")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A released model of the digits with random weights."""
    torch.manual_seed(0)
    level = {"width": 8, "encoder_blocks": 0, "decoder_blocks": 0, "quantizer": {"codebook_size": 8, "dim": 4}}
    stack = {"levels": [{**level, "map": (4, 4)}, {**level, "map": (2, 2)}]}
    prior = {"depth": 1, "dim": 8, "heads": 2}
    settings = {"stack": stack, "prior": prior, "image_shape": (1, 8, 8), "values": 17, "classes": 10}
    folder = tmp_path_factory.mktemp("run") / "model"
    HierarchicalModel(ModelSettings.model_validate(settings)).save_pretrained(folder)
    return folder


@pytest.fixture
def call(call):
    """A tool in this process, by its name."""
    return lambda name, *arguments: call(TOOLS / f"{name}.py", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five digits as PNG, and their pixels."""
    folder = tmp_path_factory.mktemp("digits")
    pixels = load_splits(ImageSettings(limit=5), ["test"])["test"].pixels
    for i, image in enumerate(pixels):
        save_png(image, folder / f"digit {i}.png", 17)
    return folder


def same(one, two):
    with Image.open(one) as a, Image.open(two) as b:
        return np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("options", [(), ("--single",)], ids=["archive", "single"])
def test_images_come_back(run, call, folder, tmp_path, options):
    code, out, err = call("compress", run, folder, "--out", tmp_path / "small", *options)
    assert (code, err) == (0, "")
    assert "ledger bytes" in out and "images/s" in out and "MB/s" in out and "bits/dim" in out
    names = {f"digit {i}" for i in range(5)}
    assert {p.name for p in (tmp_path / "small").iterdir()} == (
        {f"{name}.vqs" for name in names} if options else {"images.vqs"}
    )
    code, out, err = call("decompress", run, tmp_path / "small", "--out", tmp_path / "back")
    assert (code, err) == (0, "")
    assert "5 images exact and 0 from their upper levels" in out
    assert {p.stem for p in (tmp_path / "back").iterdir()} == names
    assert all(same(folder / f"{name}.png", tmp_path / "back" / f"{name}.png") for name in names)


def test_a_split_and_the_levels_of_it(run, call, tmp_path):
    report = tmp_path / "report.json"
    given = [*DIGITS, "--data.limit", 20, "--label", 3, "--no-check", "--report", report]
    assert call("compress", run, *given, "--out", tmp_path / "small")[0] == 0
    split = load_splits(ImageSettings(limit=20), ["test"])["test"]
    found = json.loads(report.read_text())
    assert found["pictures"] == 20
    assert found["bytes"] == (tmp_path / "small" / "images.vqs").stat().st_size
    model = HierarchicalModel.from_pretrained(run)
    ledger = model.ledger(split.pixels, torch.full((20,), 3))
    assert found["ledger_bytes"] == pytest.approx(ledger.bits * 20 / 8, rel=1e-5)
    archive = tmp_path / "small" / "images.vqs"
    assert call("decompress", run, archive, "--out", tmp_path / "top", "--levels", 1, "--first", 3, "--num", 2)[0] == 0
    stems = [f"{i:06d}" for i in split.index[3:5].tolist()]
    assert {p.name for p in (tmp_path / "top").iterdir()} == {f"{stem}.level-2.png" for stem in stems}
    shown = model.decode(model.encode(split.pixels)[1], 2)
    for stem, image in zip(stems, shown[3:5], strict=True):
        save_png(image, tmp_path / "expected.png", 17)
        assert same(tmp_path / "expected.png", tmp_path / "top" / f"{stem}.level-2.png")
    assert call("decompress", run, archive, "--out", tmp_path / "drawn", "--levels", 2, "--sample")[0] == 0
    assert all(p.name.endswith(".level-1.png") for p in (tmp_path / "drawn").iterdir())


def test_a_file_that_is_cut_short(run, call, folder, tmp_path):
    assert call("compress", run, folder / "digit 0.png", "--single", "--out", tmp_path / "small")[0] == 0
    path = tmp_path / "small" / "digit 0.vqs"
    path.write_bytes(path.read_bytes()[:-1])
    code, out, err = call("decompress", run, path, "--out", tmp_path / "back")
    assert code == 65
    assert "0 images exact and 1 from their upper levels" in out
    assert err.count("\n") == 1 and err.startswith("warning: ") and "cut short below level 1" in err
    assert [p.name for p in (tmp_path / "back").iterdir()] == ["digit 0.level-1.png"]


def test_an_archive_that_is_cut_short_says_so_in_a_line_a_run(run, call, folder, tmp_path):
    assert call("compress", run, folder, "--out", tmp_path / "small")[0] == 0
    path = tmp_path / "small" / "images.vqs"
    path.write_bytes(path.read_bytes()[:-1])
    code, _, err = call("decompress", run, path, "--out", tmp_path / "back")
    assert code == 65
    assert err == (
        f"warning: {path}: digit 0 to digit 4 (5 images): damaged or cut short below level 1: see STEM.level-1.png\n"
    )


def test_one_bad_file_of_a_folder_does_not_keep_the_others_back(run, call, folder, tmp_path):
    assert call("compress", run, folder, "--single", "--out", tmp_path / "small")[0] == 0
    bad = tmp_path / "small" / "digit 1.vqs"
    bad.write_bytes(bad.read_bytes()[:12])
    code, out, err = call("decompress", run, tmp_path / "small", "--out", tmp_path / "back")
    assert code == 65
    assert "4 images exact" in out
    assert err.startswith(f"warning: {bad}: is not a whole file") and err.count("\n") == 1
    refused(*call("decompress", run, bad, "--out", tmp_path / "none"), "is not a whole file")
    for path in (tmp_path / "small").glob("*.vqs"):
        path.write_bytes(b"")
    refused(*call("decompress", run, tmp_path / "small", "--out", tmp_path / "none"), "is not a whole file")


def test_what_a_killed_command_did_not_write_is_named(run, call, folder, tmp_path):
    names = [f"digit {i}.vqs" for i in range(5)]
    assert call("compress", run, folder, "--single", "--out", tmp_path / "small")[0] == 0
    killed = Output(tmp_path / "killed", "compress", expected=names)
    for name in names[:2]:
        killed.write(name, (tmp_path / "small" / name).read_bytes())
    killed._settle()
    code, out, err = call("decompress", run, tmp_path / "killed", "--out", tmp_path / "back")
    assert code == 65
    assert "2 images exact" in out
    assert err.count("\n") == 1 and "3 of 5 files" in err and "digit 2.vqs to digit 4.vqs" in err
    killed.lock.release()
    for name in names[:2]:
        (tmp_path / "killed" / name).unlink()
    refused(*call("decompress", run, tmp_path / "killed", "--out", tmp_path / "none"), "5 of 5 files")
    (tmp_path / "killed" / UNFINISHED).write_text("compress\n\n")  # of an earlier version
    (tmp_path / "killed" / names[0]).write_bytes((tmp_path / "small" / names[0]).read_bytes())
    code, _, err = call("decompress", run, tmp_path / "killed", "--out", tmp_path / "old")
    assert code == 65 and "nobody knows" in err


def test_unfinished_output_is_no_folder_of_images(run, call, folder, tmp_path):
    output = Output(tmp_path / "killed", "generate")
    output.write("000000.png", (folder / "digit 0.png").read_bytes())
    output._settle()
    refused(*call("compress", run, tmp_path / "killed", "--out", tmp_path / "out"), "unfinished output of generate")


@pytest.mark.parametrize("options", [(), ("--single",)], ids=["archive", "single"])
def test_pictures_that_change_after_they_were_read_change_nothing(run, call, folder, tmp_path, monkeypatch, options):
    """Every picture is replaced by one of another size, and one is gone, when all have been read."""
    changing = shutil.copytree(folder, tmp_path / "changing")

    def replaced(*given, **named):
        for path in changing.glob("digit *.png"):
            Image.new("RGB", (30, 50)).save(path)
        (changing / "digit 3.png").unlink()
        return Output(*given, **named)

    monkeypatch.setattr("vqstack.output.Output", replaced)
    assert call("compress", run, changing, "--out", tmp_path / "small", *options)[0] == 0
    monkeypatch.undo()
    assert call("decompress", run, tmp_path / "small", "--out", tmp_path / "back")[0] == 0
    assert len(list((tmp_path / "back").iterdir())) == 5
    assert all(same(folder / f"digit {i}.png", tmp_path / "back" / f"digit {i}.png") for i in range(5))


def test_another_process_gets_the_images_back(run, call, folder, tmp_path):
    assert call("compress", run, folder, "--out", tmp_path / "small")[0] == 0
    command = [sys.executable, TOOLS / "decompress.py", run, tmp_path / "small", "--out", tmp_path / "back"]
    subprocess.run(command, check=True, capture_output=True)
    for i in range(5):
        assert same(folder / f"digit {i}.png", tmp_path / "back" / f"digit {i}.png")


def test_a_portable_archive_is_read_with_other_instructions_and_threads(run, call, folder, tmp_path):
    assert call("compress", run, folder, "--portable", "--out", tmp_path / "small")[0] == 0
    assert call("compress", run, folder, "--portable", "--single", "--threads", 2, "--out", tmp_path / "files")[0] == 0
    plain = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    names = ("small", "files")
    given = [[str(run), f"{tmp_path}/{name}", "--out", f"{tmp_path}/{name}-back"] for name in names]
    code = "\n".join(["from vqstack.commands import decompress", *(f"decompress.main({some})" for some in given)])
    other = {**os.environ, **plain, "OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=other)
    assert done.stderr == ""
    for name in names:
        for i in range(5):
            assert same(folder / f"digit {i}.png", tmp_path / f"{name}-back" / f"digit {i}.png")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "name image files or folders"),
        (("missing.png",), "missing.png"),
        (("missing.png", *DIGITS), "not both"),
        (("--split", "test"), "is a model without its run"),
        (("--split", "holdout", *DIGITS[2:]), "holdout"),
        ((*DIGITS, "--label", 10), "label 10 is no class"),
        ((*DIGITS, "--threads", 0), "threads"),
        ((*DIGITS, "--name", "a/b"), "--name a/b"),
        ((*DIGITS, "--name", "a", "--single"), "--single writes none"),
        (("some.png", *DIGITS[2:]), "says where --split"),
        ((*DIGITS, "--report", "."), "is there already"),
        ((*DIGITS, "--report", "nowhere/r.json"), "no such folder"),
        ((".",), "holds no images"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_compressing_refuses(run, call, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    refused(*call("compress", run, *given, "--out", tmp_path / "out"), message)
    assert not list(tmp_path.iterdir())


def test_decompressing_refuses(run, call, folder, tmp_path):
    assert call("compress", run, folder, "--out", tmp_path / "small")[0] == 0
    archive, out = tmp_path / "small" / "images.vqs", tmp_path / "out"
    refused(*call("decompress", run, folder, "--out", out), "holds no .vqs files")
    refused(*call("decompress", run, tmp_path / "missing.vqs", "--out", out), "missing.vqs: cannot be read")
    refused(*call("decompress", run, folder / "digit 0.png", "--out", out), "does not start as one")
    refused(*call("decompress", run, archive, "--out", out, "--levels", 0), "levels")
    refused(*call("decompress", run, archive, "--out", out, "--levels", 3), "the model has 2")
    refused(*call("decompress", run, archive, "--out", out, "--seed", 3), "--sample")
    refused(*call("decompress", run, archive, "--out", out, "--first", 5), "--first 5")
    refused(*call("decompress", run, archive, archive, "--out", out), "both hold digit 0")
    refused(*call("decompress", run, archive, "--out", folder), "is not empty")
    torch.manual_seed(1)
    other = HierarchicalModel(HierarchicalModel.from_pretrained(run).settings)
    other.save_pretrained(tmp_path / "other")
    refused(*call("decompress", tmp_path / "other", archive, "--out", out), "is for model")
    assert not out.exists()


@pytest.mark.parametrize("name", ["compress", "decompress"])
def test_commands_refuse_what_is_no_run_and_explain_themselves(call, tmp_path, name):
    refused(*call(name, tmp_path, "a", "--out", tmp_path / "out"), "holds no trained model")
    assert not list(tmp_path.iterdir())
    code, out, err = call(name, "--help")
    assert (code, err) == (0, "")
    assert "--out" in out


def test_a_folder_is_what_it_is_in_data_sets(run, call, tmp_path):
    """Every file that is called an image or is one is taken, or refused by name."""
    for name in ("a.PNG", "b.pbm", "c.avif", "d", "e.dat"):
        save_png(torch.zeros(1, 8, 8, dtype=torch.uint8), tmp_path / name, 17)
    (tmp_path / "notes.txt").write_text("no picture")
    code, out, _ = call("compress", run, tmp_path, "--out", tmp_path / "small", "--no-check")
    assert code == 0
    assert "5 images" in out
    (tmp_path / "f.heic").write_text("none")
    code, _, err = call("compress", run, tmp_path, "--out", tmp_path / "none")
    assert code == 2
    assert f"{tmp_path}/f.heic" in err


def test_folders_inside_folders_come_back_and_bytes_stand_beside_those_of_the_files(run, call, folder, tmp_path):
    nested = tmp_path / "photos"
    for kind in ("cats", "wild/big cats", ".hidden"):
        (nested / kind).mkdir(parents=True)
        shutil.copy(folder / "digit 0.png", nested / kind / "one.png")
    shutil.copy(folder / "digit 1.png", nested / "two.png")
    (nested / "cats" / "notes.txt").write_text("no image")
    given = sum(p.stat().st_size for p in nested.rglob("*.png") if ".hidden" not in p.parts)
    code, out, err = call("compress", run, nested, "--out", tmp_path / "small")
    size = sum(p.stat().st_size for p in (tmp_path / "small").iterdir())
    assert code == 0 and f"{size} bytes, {size / given:.0%} of the {given} bytes" in out
    assert ("not smaller" in err) == (size >= given)
    assert call("compress", run, nested, "--out", tmp_path / "each", "--single")[0] == 0
    assert (tmp_path / "each" / "wild" / "big cats" / "one.vqs").is_file()
    for made in ("small", "each"):
        out = tmp_path / f"from {made}"
        assert call("decompress", run, tmp_path / made, "--out", out)[0] == 0
        back = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()}
        assert back.keys() == {"cats/one.png", "wild/big cats/one.png", "two.png"}
        assert same(back["cats/one.png"], folder / "digit 0.png") and same(back["two.png"], folder / "digit 1.png")


def test_what_is_larger_or_far_from_the_training_is_said(run, call, tmp_path):
    """By the ledger of the run: images that cost more than half as much again as those of its test split."""
    (tmp_path / "run").mkdir()
    shutil.copytree(run, tmp_path / "run" / "model")
    Image.new("L", (64, 64), 128).save(tmp_path / "plain.png")  # value 8 of 0 … 16 everywhere
    compressed = ("compress", tmp_path / "run", tmp_path / "plain.png", "--out")
    (tmp_path / "run" / "config.yaml").write_text("")
    model, tile = HierarchicalModel.from_pretrained(run), torch.full((10, 1, 8, 8), 8, dtype=torch.uint8)
    bits = model.ledger(tile, torch.arange(10)).bits  # a tile's with a usual class
    for name, tested, far in (("far", bits / 3, True), ("near", bits, False)):
        (tmp_path / "run" / "ledger.json").write_text(json.dumps({"test": {"bits": tested}}))
        code, _, err = call(*compressed, tmp_path / name)
        assert code == 0 and ("far from what" in err) == far
        assert "not smaller" in err  # 64 tiles of random weights, and a PNG of one colour
