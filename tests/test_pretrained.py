"""The released artefact: equal in a new process, refused in one line when broken, nothing to unpickle."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from helpers import equal, randomised, refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vqstack.code_model import CodeModelSettings, RefinerSettings
from vqstack.disk import digest
from vqstack.errors import InputError
from vqstack.level import LevelSettings
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings, SamplingSettings
from vqstack.pretrained import described_tensors, find_artefact
from vqstack.stack import StackSettings

KINDS = {"vq": 6, "cosine": 6, "fsq": 9, "lfq": 8, "simvq": 6}


def build(kind="vq"):
    quantizer = {"kind": kind, "codebook_size": KINDS[kind], "dim": 4}
    levels = tuple(LevelSettings(map=m, width=8, quantizer=quantizer) for m in ((4, 4), (2, 2)))
    settings = ModelSettings(
        stack=StackSettings(levels=levels),
        prior=CodeModelSettings(depth=1, dim=8, heads=2),
        sampling=SamplingSettings(temperature=(0.9,)),
        image_shape=(1, 8, 8),
        values=17,
        classes=3,
    )
    model = HierarchicalModel(settings).eval()
    randomised(model, 0.2)
    model.count_labels(torch.tensor([0, 0, 1, 2, 2, 2]))
    return model


@pytest.fixture
def folder(tmp_path):
    model = build()
    model.card = "# Seventeen greys\n"
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def batch():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 17, (5, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return pixels, torch.tensor([0, 1, 2, 2, 1])


CHILD = """
import json, sys, torch
from vqstack.model import HierarchicalModel
generator = torch.Generator().manual_seed(1)
pixels = torch.randint(0, 17, (5, 1, 8, 8), dtype=torch.uint8, generator=generator)
labels = torch.tensor([0, 1, 2, 2, 1])
torch.set_num_threads(2)
ledgers = []
for folder in sys.argv[1:]:
    model = HierarchicalModel.from_pretrained(folder)
    assert not model.training
    ledgers.append({k: r.nats for k, r in model.ledger(pixels, labels).rows.items()})
print(json.dumps(ledgers))
"""


def test_a_new_process_finds_the_same_ledger(tmp_path):
    pixels, labels = batch()
    ledgers = []
    for kind in KINDS:
        model = build(kind)
        model.save_pretrained(tmp_path / kind)
        ledgers.append({name: row.nats for name, row in model.ledger(pixels, labels).rows.items()})
    out = subprocess.run(
        [sys.executable, "-c", CHILD, *(str(tmp_path / kind) for kind in KINDS)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout) == ledgers


def test_what_is_in_the_folder(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert "# Seventeen greys" in card
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert ModelSettings.model_validate(config["model"]) == build().settings
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == set(build().state_dict())
    assert {"label_probs", "prior.begin", "prior.blocks.0.query.weight", "stack.levels.0.quantizer.codebook"} <= names
    assert not [n for n in names if "library" in n or "backbone" in n or "_codebook" in n]


def reseal(folder, **changes):
    """A configuration with other values whose checksum is right: what a stranger, not an accident, would write."""
    config = json.loads((folder / "config.json").read_text())
    described = {"model": config["model"], "weights": digest(folder / "model.safetensors")}
    for name, value in changes.items():
        *path, last = name.split("__")
        place = described["model"]
        for part in path:
            place = place[int(part) if part.isdigit() else part]
        place[last] = value
    text = json.dumps(described, sort_keys=True)
    config |= {**described, "checksum": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "config.json").write_text(json.dumps(config))


def broken(folder, how):
    config, weights = folder / "config.json", folder / "model.safetensors"
    values = json.loads(config.read_text())
    if how == "version":
        config.write_text(json.dumps({**values, "format_version": 99}))
    elif how == "json":
        config.write_text(config.read_text()[:40])
    elif how == "list":
        config.write_text("[1, 2]")
    elif how == "bytes":
        config.write_bytes(b"\xff\xfe\x00")
    elif how == "nested":
        config.write_text("[" * 100_000)
    elif how == "infinite":
        config.write_text(config.read_text().replace('"values": 17', '"values": 1e999'))
    elif how == "endless":
        config.write_text(" " * 2**21)
    elif how == "foreign":
        config.write_text(json.dumps({"architectures": ["Other"], "settings": 3}))
    elif how == "edited":
        config.write_text(config.read_text().replace("0.9", "0.8"))
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "header":
        weights.write_bytes((2**62).to_bytes(8, "little") + weights.read_bytes()[8:])
    elif how == "flipped":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif how in ("weights", "config"):
        (weights if how == "weights" else config).unlink()
    else:
        reseal(folder, **how)


HUGE = 10**7


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("version", "format version 99"),
        ("json", "is not the configuration of a vqstack model"),
        ("list", "is not the configuration of a vqstack model"),
        ("bytes", "is not the configuration of a vqstack model"),
        ("nested", "is not the configuration of a vqstack model"),
        ("infinite", "is not the configuration of a vqstack model"),
        ("endless", "is not the configuration of a vqstack model"),
        ("foreign", "is not the configuration of a vqstack model"),
        ("edited", "its checksum differs"),
        ("truncated", "does not fit its config.json"),
        ("empty", "does not fit its config.json"),
        ("header", "does not fit its config.json"),
        ("flipped", "its checksum differs"),
        ("weights", "holds no model.safetensors"),
        ("config", "holds no trained model"),
        ({"prior__depth": "many"}, "prior.depth"),
        ({"colour": 3}, "colour"),
        ({"prior__dim": 16}, "does not fit its config.json"),
        ({"prior__dim": HUGE}, "does not fit its config.json"),  # 4 TB of weights, were they allocated
        ({"prior__depth": HUGE}, "prior.depth"),
        ({"prior__depth": 1000}, "the settings ask for more than"),
        ({"stack__levels__0__width": HUGE}, "does not fit its config.json"),
        ({"stack__levels__0__encoder_blocks": HUGE}, "the settings ask for more than"),
        ({"image_shape": [1, HUGE * 8, HUGE * 8]}, "does not fit its config.json"),
        ({"classes": HUGE}, "classes: 10000000 does not fit"),
    ],
    ids=str,
)
def test_broken_artefacts_are_refused_in_one_line(folder, how, message):
    broken(folder, how)
    refused(lambda: HierarchicalModel.from_pretrained(folder), message, str(folder))


@pytest.mark.parametrize("version", [0, -1, None, True, 2.0, "2"])
def test_a_version_that_was_never_written_is_refused(folder, version):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format_version": version}))
    with pytest.raises(InputError, match=f"format version {version}, which was never written: fetch"):
        HierarchicalModel.from_pretrained(folder)


def test_an_artefact_of_the_first_format_is_read(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"format_version": 1, "model": config["model"]}))
    old = HierarchicalModel.from_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, old.state_dict()[name]) for name, value in stored.items())


def test_weights_of_another_type_are_refused(folder):
    state = {name: value.double() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors")
    reseal(folder)
    with pytest.raises(InputError, match="F64"):
        HierarchicalModel.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_described_without_memory(kind):
    model = build(kind)
    described = described_tensors(lambda: HierarchicalModel(model.settings), 1000)
    assert {name: shape for name, (_, shape) in described.items()} == {
        name: tuple(value.shape) for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize("family", ["masked", "autoregressive"])
def test_a_larger_model_with_refiners_is_described_as_it_is(family):
    refiners = [
        RefinerSettings(level=level, family=family, groups=4, depth=1, dim=dim, heads=2)
        for level, dim in ((1, 192), (2, 8))
    ]
    changes = {"refiners": refiners, "prior": CodeModelSettings(depth=2, dim=256, heads=4), "image_shape": (3, 32, 32)}
    settings = ModelSettings.model_validate({**build("fsq").settings.model_dump(), **changes})
    model = HierarchicalModel(settings)
    described = described_tensors(lambda: HierarchicalModel(settings), 1000)
    assert {name: shape for name, (_, shape) in described.items()} == {
        name: tuple(value.shape) for name, value in model.state_dict().items()
    }


def test_saving_again_writes_what_differs(folder, tmp_path):
    model = HierarchicalModel.from_pretrained(folder)
    place = Path(shutil.copytree(folder, tmp_path / "copy"))
    names = ("config.json", "model.safetensors", "README.md")
    for spoiled in names:
        (place / spoiled).write_bytes(b"something else")
        before = {name: (place / name).stat().st_ino for name in names}
        model.save_files(place)
        assert all((place / name).read_bytes() == (folder / name).read_bytes() for name in names)
        assert {name for name in names if (place / name).stat().st_ino != before[name]} == {spoiled}


def test_the_card_goes_along(folder, tmp_path):
    card = (folder / "README.md").read_bytes()
    for step in ("once", "twice"):
        HierarchicalModel.from_pretrained(folder).save_pretrained(tmp_path / step)
        folder = tmp_path / step
        assert (folder / "README.md").read_bytes() == card
    (folder / "README.md").write_bytes(b"no front matter \xff")
    assert HierarchicalModel.from_pretrained(folder).card == "no front matter \ufffd"
    (folder / "README.md").unlink()
    assert HierarchicalModel.from_pretrained(folder).card == ""


def test_written_files_are_as_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        build().save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(("README.md", "config.json", "model.safetensors"), 0o640)


@pytest.mark.parametrize("name", ["runs/of/digits", "runs/digits", "digits", "/no/such/folder", "README.md"])
def test_a_folder_that_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("a file")
    with pytest.raises(InputError, match="give the folder of a") as caught:
        HierarchicalModel.from_pretrained(name)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


def test_finding_an_artefact(folder, tmp_path):
    assert find_artefact(tmp_path) == folder  # the run that holds it
    assert find_artefact(folder) == folder
    (tmp_path / "empty").mkdir()
    for wrong, words in (("empty", "holds no trained model"), ("missing", "no such folder")):
        with pytest.raises(InputError, match=words):
            find_artefact(tmp_path / wrong)


def test_pushing_to_the_hub_uploads_the_artefact(monkeypatch, tmp_path):
    """Three files go up, as they are on disk; nothing is sent here."""
    sent = {}

    class Hub:
        def __init__(self, **options):
            pass

        def create_repo(self, repo_id, **options):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id, folder_path, **options):
            sent[repo_id] = {path.name: path.read_bytes() for path in Path(folder_path).rglob("*") if path.is_file()}

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    model = build()
    model.card = "# Ledger: 99 bits\n"
    model.save_pretrained(tmp_path / "model")
    HierarchicalModel.from_pretrained(tmp_path / "model").push_to_hub("owner/digits")
    (files,) = sent.values()
    assert list(sent) == ["owner/digits"]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert b"# Ledger: 99 bits" in files["README.md"]
    assert json.loads(files["config.json"])["model"] == model.settings.model_dump(mode="json")
    weights = safetensors.torch.load(files["model.safetensors"])
    assert equal(weights, model.state_dict())
