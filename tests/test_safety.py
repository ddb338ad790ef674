"""Models in other hands: pickled, copied, halved, exchanged in part, and artefacts that a stranger made."""

import copy
import io
import operator
import os
import pickle

import pytest
import torch
from helpers import refused
from safetensors.torch import load_file, save_file
from test_model import tiny
from test_pretrained import batch, build, reseal
from torch import nn

from vqstack.codes import CodeDataset
from vqstack.disk import check_unlocked
from vqstack.errors import InputError
from vqstack.model import HierarchicalModel
from vqstack.quantizer import QuantizerSettings, build_quantizer


@pytest.fixture
def folder(tmp_path):
    model = build()
    model.card = "# Seventeen greys\n"
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def saved(model):
    content = io.BytesIO()
    torch.save(model, content)
    content.seek(0)
    return torch.load(content, weights_only=False)


@pytest.mark.parametrize("family", ["autoregressive", "masked"])
@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), saved])
def test_a_copy_is_the_same_model(again, family):
    model = tiny(family=family, refiners=({"level": 1, "family": family},)).train()
    model.stack.eval().requires_grad_(False)
    model.prior.soft_codebook = torch.rand(2, 3)
    before = torch.get_rng_state()
    found = again(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in found.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(found.prior.soft_codebook, model.prior.soft_codebook)
    pixels, labels = torch.randint(0, 2, (5, 1, 2, 1), dtype=torch.uint8), torch.tensor([0, 1, 1, 0, 1])
    rows = [m.eval().ledger(pixels, labels).rows for m in (model, found)]
    assert rows[0] == rows[1]


def test_a_model_works_in_another_process():
    model, (pixels, labels) = build(), batch()
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(operator.methodcaller("ledger", pixels, labels), (model,))
    assert found.bits == pytest.approx(model.ledger(pixels, labels).bits, rel=1e-6)


@pytest.mark.parametrize("change", ["half", "bfloat16", "double"])
def test_another_number_format_is_refused(change):
    model = build()
    with pytest.raises(InputError, match="float32"):
        getattr(model, change)()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model.to("cpu").float()


def exchange(model, how):
    level = model.stack.levels[0]
    if how == "quantizer":
        level.quantizer = build_quantizer(QuantizerSettings(kind="fsq", codebook_size=9, dim=4))
    elif how == "encoder":
        level.encoder = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    elif how == "activation":
        model.stack.levels[1].encoder.leave[1] = nn.ReLU()
    elif how == "dropout":
        next(m for m in model.modules() if isinstance(m, nn.Dropout)).p = 0.5
    elif how == "added":
        model.prior.extra = nn.Identity()
    elif how == "removed":
        model.prior.backbone = None
    elif how == "size":
        level.quantizer = build_quantizer(QuantizerSettings(codebook_size=7, dim=4))
    elif how == "type":
        model.prior.half()


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ("quantizer", "stack.levels.0.quantizer"),
        ("encoder", "stack.levels.0.encoder"),
        ("activation", "stack.levels.1.encoder.leave.1"),
        ("dropout", "is Dropout"),
        ("added", "prior.extra"),
        ("removed", "prior.backbone"),
        ("size", "stack.levels.0.quantizer"),
        ("type", "float16"),
    ],
)
def test_a_part_that_could_not_be_loaded_is_refused_when_it_is_saved(tmp_path, how, part):
    model = build()
    exchange(model, how)
    for save in (model.save_pretrained, model.save_files, lambda path: pickle.dumps(model)):
        with pytest.raises(InputError, match=part):
            save(tmp_path / "model")
    assert not list(tmp_path.iterdir())  # no empty folder either


def tampered(folder, name, value):
    state = load_file(folder / "model.safetensors")
    name = next(key for key in state if key.endswith(name))
    state[name].view(-1)[-1] = value
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    reseal(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in ("prior.position", "quantizer.codebook", "average_use")
        for value in (torch.nan, torch.inf, -1e30)
    ]
    + [("label_probs", value) for value in (0.0, -0.5, 0.9, torch.nan)],
)
def test_numbers_that_no_model_has_are_refused(folder, name, value):
    tampered(folder, name, value)
    with pytest.raises(InputError, match=f"does not fit its config.json .*{name}"):
        HierarchicalModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "changes",
    [{"image_shape": shape} for shape in ([-1, 8, 8], [0, 8, 8], [5, 8, 8], [1, 0, 8], [1, 8, -8])]
    + [{"classes": 10**9, "prior__labels": False}, {"classes": -1}, {"stack__pad_to": [-8, 8]}],
    ids=str,
)
def test_settings_that_no_model_has_are_refused(folder, changes):
    reseal(folder, **changes)
    refused(lambda: HierarchicalModel.from_pretrained(folder))


def test_a_card_that_leads_out_of_the_folder_is_refused(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("password")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(secret)
    with pytest.raises(InputError, match=r"README.md is a link that leads out"):
        HierarchicalModel.from_pretrained(folder)
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("card.txt")
    (folder / "card.txt").write_text("mine")
    assert HierarchicalModel.from_pretrained(folder).card == "mine"


def test_the_cache_of_the_hub_is_read_through_its_links(folder, tmp_path):
    repository = tmp_path / "models--x--y"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots" / "abc").mkdir(parents=True)
    for path in folder.iterdir():
        (repository / "blobs" / path.name).write_bytes(path.read_bytes())
        (repository / "snapshots" / "abc" / path.name).symlink_to(f"../../blobs/{path.name}")
    assert HierarchicalModel.from_pretrained(repository / "snapshots" / "abc").card == "# Seventeen greys\n"


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_a_pipe_in_an_artefact_is_refused(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(InputError):
        HierarchicalModel.from_pretrained(folder)


def test_a_pipe_in_the_place_of_a_manifest_or_a_lock_is_refused(tmp_path):
    for name in ("manifest.json", ".lock"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=r"manifest.json is a pipe"):
        CodeDataset(tmp_path)
    with pytest.raises(InputError, match=r".lock is a pipe"):
        check_unlocked(tmp_path)
