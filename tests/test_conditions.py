"""What is merely given: it is told, hidden and guided by as classes are, has no row, and goes with its image."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from helpers import TINY, assert_as_often, assert_same_run, files_of, killed, refused, trained
from test_images import png
from test_model import everything, tiny

import vqstack
from vqstack.codec.blocks import BlockCodec
from vqstack.commands import generate
from vqstack.conditions import NO_LABEL, ClassCondition, ConditionSettings, build_condition
from vqstack.config import RunConfig
from vqstack.errors import InputError
from vqstack.evaluation import evaluate_split
from vqstack.images import ImageSettings, identity, load_splits, open_stream
from vqstack.likelihood import noise, walked_by_site, walked_log_prob
from vqstack.model import HierarchicalModel
from vqstack.model_settings import SamplingSettings
from vqstack.phases import data_of_run

TOOLS = Path(__file__).parents[1] / "tools"
PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
PROGRAM = next(part for part in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "register_condition(" in part)
SHAPES = {"vector": (3,), "sequence": (4, 3), "attention": (4, 3)}
FAMILIES = ["autoregressive", "masked"]


def given_of(kind):
    return ConditionSettings(kind=kind, name="text", shape=SHAPES[kind])


def conditional(kind="vector", family="autoregressive", **changes):
    """Prior and refiners are given floats; so is the class known to them."""
    refiners = [{"level": n, "family": family, "labels": True, "condition": True, "label_dropout": 0.3} for n in (1, 2)]
    made = {"refiners": refiners, "family": family, "label_dropout": 0.3, "condition_of": given_of(kind), **changes}
    model = tiny(**made)
    model.know_condition(torch.randn(20, *SHAPES[kind]) * 3 + 1)
    return model


@torch.no_grad()
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("changes", [{"family": f} for f in FAMILIES] + [{"unified": True}, {"classes": 0}], ids=str)
def test_whatever_is_given_everything_else_sums_to_one(kind, changes):
    if kind == "attention" and "unified" in changes:
        with pytest.raises(ValueError, match="unified: its segments share blocks"):
            conditional(kind, refiners=(), **changes)
        return
    changes = changes | ({"refiners": ()} if "unified" in changes else {})
    model = conditional(kind, **changes)
    world = everything(model)
    totals = []
    for seed in (0, 1):
        floats = torch.randn(1, *SHAPES[kind], generator=torch.Generator().manual_seed(seed))
        every = floats.expand(len(world[0]), *SHAPES[kind])
        totals.append(model.joint_log_prob(*world, every).exp())
        assert totals[-1].sum().item() == pytest.approx(1, abs=1e-5)
    assert not torch.allclose(*totals, atol=1e-3)  # it matters
    assert "condition" not in model.dims


@torch.no_grad()
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("changes", [{"family": f} for f in FAMILIES] + [{"unified": True, "refiners": ()}], ids=str)
def test_scores_are_the_walk_of_what_is_drawn(kind, changes):
    """The factors that draw and code, step by step with the cache, give what one pass scores; guided, too."""
    if kind == "attention" and "unified" in changes:
        pytest.skip("refused")
    model = conditional(kind, **changes)
    floats, labels = torch.randn(6, *SHAPES[kind]), torch.arange(6) % 2
    sample = model.sample(6, labels, floats, seed=4)
    codes = [sample.codes[1], sample.codes[2]]
    rows = model.code_lengths(sample.pixels, codes, labels, floats)
    values = model.values(sample.pixels, codes, labels, floats)
    for term in model.terms()[1:]:
        for scale in (1.0, 2.5):
            distribution = term.distribution(values, 6, guidance=scale)
            walked = walked_log_prob(distribution, values[term.target.name])
            torch.testing.assert_close(walked, distribution.log_prob(values[term.target.name]), atol=1e-4, rtol=1e-4)
            if scale == 1:
                torch.testing.assert_close(-walked, rows[term.row], atol=1e-4, rtol=1e-4)
    again = [model.sample(1, labels[i : i + 1], floats[i : i + 1], seed=4, first=i).pixels for i in range(6)]
    assert torch.equal(torch.cat(again), sample.pixels)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", SHAPES)
def test_frequencies_of_samples_follow_what_is_given(kind, family):
    model = conditional(kind, family, classes=0)
    world = everything(model)
    for floats in torch.randn(2, 1, *SHAPES[kind]):
        exact = torch.zeros(4).index_add(
            0,
            world[0].flatten(1).long() @ torch.tensor([2, 1]),
            model.joint_log_prob(*world, floats.expand(len(world[0]), *SHAPES[kind])).exp().float(),
        )
        drawn = model.sample(4000, None, floats.expand(4000, *SHAPES[kind])).pixels.flatten(1).long()
        assert_as_often(drawn @ torch.tensor([2, 1]), exact)


@torch.no_grad()
@pytest.mark.parametrize("kind", SHAPES)
def test_hidden_is_as_if_never_told(kind):
    """A model whose conditions are hidden says what one with the same weights and no conditions says."""
    torch.manual_seed(0)
    model, plain = conditional(kind, refiners=()), tiny(classes=0)
    plain.prior.load_state_dict(model.prior.state_dict(), strict=False)
    codes = torch.randint(0, 2, (5, 1, 1))
    hidden = model.prior.conditions.nothing(5, model.device)
    assert (hidden["label"] == NO_LABEL).all() and hidden["condition"].isnan().all()
    assert torch.equal(model.prior.log_prob(codes, hidden), plain.prior.log_prob(codes, {}))
    told = {"label": torch.zeros(5, dtype=torch.int64), "condition": torch.randn(5, *SHAPES[kind])}
    assert not torch.allclose(model.prior.log_prob(codes, told), plain.prior.log_prob(codes, {}))
    which = torch.tensor([True, False, False, True, False])
    some = model.prior.log_prob(codes, model.prior.conditions.hide(told, which))
    expected = torch.where(which, model.prior.log_prob(codes, hidden), model.prior.log_prob(codes, told))
    torch.testing.assert_close(some, expected)


def test_conditions_are_hidden_together_in_training_only():
    model = conditional(refiners=()).prior.train()
    told = {"label": torch.zeros(400, dtype=torch.int64), "condition": torch.randn(400, 3)}
    hidden = model.hide(told)
    which = hidden["label"] == NO_LABEL
    assert 80 < which.sum() < 160  # a share of 0.3
    assert torch.equal(which, hidden["condition"].isnan().all(1)) and not hidden["condition"][~which].isnan().any()
    assert model.eval().hide(told) is told


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_mixes_what_is_told_with_nothing(family):
    model = conditional(family=family, refiners=())
    told = {"label": torch.ones(4, dtype=torch.int64), "condition": torch.randn(4, 3)}

    def made(scale, conditioning=told):
        return model.prior.distribution(4, conditioning, model.device, guidance=scale)

    codes, u = torch.randint(0, 2, (4, 1, 1)), noise(0, range(4), 1, 1)
    assert torch.equal(made(1.0).log_prob(codes), model.prior.log_prob(codes, told))
    assert torch.equal(made(1.0).sample(u), made(1.0 + 1e-9).sample(u))
    nothing = made(1.0, model.prior.conditions.nothing(4, model.device))
    first = [next(iter(one.factors(torch.zeros(4, 1, dtype=torch.int64)))).log_probs for one in (made(1.0), nothing)]
    guided = next(iter(made(3.0).factors(torch.zeros(4, 1, dtype=torch.int64)))).log_probs
    torch.testing.assert_close(guided, (3 * first[0] - 2 * first[1]).log_softmax(-1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", SHAPES)
def test_components_are_read_in_units_of_their_deviation(kind):
    """Another unit or zero of the data makes no difference to a model that is told; constant components stay finite."""
    torch.manual_seed(0)
    module = build_condition(given_of(kind), 8).eval()
    values, scale, shift = torch.randn(50, *SHAPES[kind]), torch.tensor([1e3, 1e-3, 7.0]), torch.tensor([5.0, 0, -1e3])
    module.know(values)
    before = module(values[:4])
    module.know(values * scale + shift)
    torch.testing.assert_close(module(values[:4] * scale + shift), before, atol=1e-2, rtol=1e-2)
    module.know(torch.full((50, *SHAPES[kind]), 0.1))
    assert module(values).abs().max() < 10 * before.abs().max() and module.deviation.tolist() == [1, 1, 1]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sequence", "attention"])
def test_the_order_of_a_sequence_matters(kind):
    """Trap: attention alone gives the same for every order."""
    model = conditional(kind, refiners=())
    codes, values = torch.randint(0, 2, (5, 1, 1)), torch.randn(5, *SHAPES[kind])
    one, other = ({"label": torch.zeros(5).long(), "condition": x} for x in (values, values.flip(1)))
    assert (model.prior.log_prob(codes, one) - model.prior.log_prob(codes, other)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("groups", [0, 3])
def test_every_site_attends_by_itself(family, groups):
    """Steps with a cache, which holds what is attended to, say what one pass says; sites differ in what they read."""
    settings = vqstack.CodeModelSettings(family=family, groups=groups, depth=2, dim=16, heads=2, label_dropout=0.1)
    torch.manual_seed(0)
    prior = vqstack.build_code_model(settings, (3, 3), 5, given=given_of("attention")).eval()
    torch.nn.init.normal_(prior.to_logits.weight)
    codes, told = torch.randint(0, 5, (4, 3, 3)), {"condition": torch.randn(4, 4, 3)}
    distribution = prior.distribution(4, told, codes.device)
    walked = walked_by_site(distribution, codes)
    torch.testing.assert_close(walked.sum(1), prior.log_prob(codes, told), atol=1e-4, rtol=1e-4)
    nothing = walked_by_site(prior.distribution(4, prior.conditions.nothing(4, codes.device), codes.device), codes)
    moved = (walked - nothing).abs()
    assert (moved > 1e-4).all() and moved.std(1).min() > 0.01


def test_an_older_artefact_is_read_by_one_query(tmp_path):
    """Its settings say how it reads a sequence; new models attend."""
    conditional("sequence").save_pretrained(tmp_path / "model")
    assert HierarchicalModel.from_pretrained(tmp_path / "model").settings.condition.kind == "sequence"
    of_floats = {"source": "array", "files": {"train": "a.npz"}, "values": 5, "size": (4, 4), "condition": "text"}
    kinds = [
        RunConfig(data=of_floats).model_settings((1, 4, 4), 0, (), shape).condition.kind for shape in ((3,), (4, 3))
    ]
    assert kinds == ["vector", "attention"]


def test_an_artefact_keeps_what_it_is_given(tmp_path):
    model = conditional("sequence")
    model.save_pretrained(tmp_path / "model")
    loaded = HierarchicalModel.from_pretrained(tmp_path / "model")
    floats, labels = torch.randn(3, 4, 3), torch.tensor([0, 1, 1])
    assert torch.equal(model.sample(3, labels, floats).pixels, loaded.sample(3, labels, floats).pixels)
    assert loaded.condition.name == "text" and loaded.prior.conditions["condition"].mean.abs().sum() > 0
    state = set(model.state_dict())
    assert "prior.label_embedding.weight" in state  # the name that older artefacts have
    assert isinstance(model.prior.conditions["label"], ClassCondition)


WRONG = [
    (lambda m, y, z: m.sample(2), "this model is given text: give condition, 3 floats"),
    (lambda m, y, z: m.ledger(y, torch.zeros(2).long()), "this model is given text"),
    (lambda m, y, z: m.sample(2, None, torch.zeros(2, 4)), "condition: float32 (2, 4) where floats (2, 3) belong"),
    (lambda m, y, z: m.sample(2, None, torch.zeros(3, 3)), "condition: float32 (3, 3) where floats (2, 3)"),
    (lambda m, y, z: m.sample(2, None, torch.full((2, 3), torch.nan)), "condition: holds a number that is not finite"),
    (lambda m, y, z: m.conditional(1, z, condition=torch.full((2, 3), torch.inf)), "condition: holds a number"),
    (lambda m, y, z: m.vary(z, 1, None, torch.zeros(2, 2)), "condition: float32 (2, 2)"),
    (lambda m, y, z: BlockCodec(m), "this model is given text: give condition, 3 floats"),
]


@pytest.mark.parametrize(("call", "words"), WRONG)
def test_what_does_not_fit_is_refused(call, words):
    model, pixels = conditional(), torch.zeros(2, 1, 2, 1, dtype=torch.uint8)
    refused(lambda: call(model, pixels, model.encode(pixels)[0]), words)


def test_a_model_that_reads_none_takes_none():
    model = tiny()
    refused(lambda: model.sample(2, None, torch.zeros(2, 3)), "condition: this model is conditional on no floats")
    unread = tiny(condition_of=given_of("vector"), condition=False)
    assert unread.condition is None and unread.given == ""
    refused(lambda: unread.sample(2, None, torch.zeros(2, 3)), "condition: this model is conditional on no floats")


def test_a_refiner_that_was_trained_with_it_needs_it():
    told = {"level": 1, "condition": True}
    codes = torch.zeros(2, 2, 1, dtype=torch.int64)
    model = conditional(refiners=[told])
    refused(lambda: model.vary(codes, 1), "refiner of level 1 is conditional on text: give condition, 3 floats")
    assert len(conditional(refiners=[{**told, "label_dropout": 0.1}]).vary(codes, 1).pixels) == 2


# Data.


PIXELS = np.random.default_rng(0).integers(0, 256, (60, 6, 6), dtype=np.uint8)
FLOATS = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32) * 4 + 1
IMAGES = {"validation": 0.2, "test": 0.2, "size": (6, 6)}


def parquet(path, column, pixels=PIXELS, kind=None):
    column = pa.array([None if one is None else np.asarray(one).tolist() for one in column], kind)
    stored = [{"bytes": png(p[None]), "path": None} for p in pixels]
    pq.write_table(pa.table({"image": stored, "label": np.arange(len(pixels)) % 3, "text": column}), path)


def png_values(split):
    return [one.tobytes() for one in split.pixels.numpy()]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("shape", [(3,), (4, 3)], ids=str)
def test_floats_go_with_their_images(tmp_path, shape, streaming):
    floats = np.random.default_rng(2).normal(size=(60, *shape)).astype(np.float32)
    parquet(tmp_path / "a.parquet", floats[:35], PIXELS[:35])
    parquet(tmp_path / "b.parquet", floats[35:], PIXELS[35:])
    source = {"source": "parquet", "files": {"train": str(tmp_path / "*.parquet")}, "streaming": streaming}
    settings = ImageSettings(**{**IMAGES, **source, "condition": "text"})
    splits = load_splits(settings)
    plain = load_splits(settings.model_copy(update={"condition": None}))
    known = {}
    for split in plain.values():  # which images there are is what it was
        assert torch.equal(split.pixels, splits[split.name].pixels) and split.condition is None
    by_image = {p.tobytes(): f for p, f in zip(PIXELS, floats, strict=True)}
    for split in splits.values():
        assert split.condition.shape == (len(split), *shape) and split.condition.dtype == torch.float32
        for image, found in zip(png_values(split), split.condition.numpy(), strict=True):
            known[image] = found
            assert np.array_equal(by_image[image], found)
    assert len(known) == 60
    assert torch.equal(load_splits(settings)["test"].condition, splits["test"].condition)  # from the cache
    assert identity(settings, splits)["train"]["condition"] != identity(settings, plain)["train"].get("condition")
    if streaming:
        stream = open_stream(settings.model_copy(update={"workers": 0}), (1, 6, 6), 3, 4, 0, 0, 1, shape)
        for batch, _ in zip(stream.batches(0, False), range(8), strict=False):
            for image, found in zip(batch.pixels.numpy(), batch.condition.numpy(), strict=True):
                assert np.array_equal(by_image[image.tobytes()], found)


BAD = {
    "missing": ([*FLOATS[:7], None, *FLOATS[8:]], "is missing"),
    "another length": ([*FLOATS[:7], FLOATS[7, :2], *FLOATS[8:]], "has 2 floats where others have 3"),
    "nan": ([*FLOATS[:7], [1, np.nan, 2], *FLOATS[8:]], "holds NaN"),
    "too large": ([*FLOATS[:7].astype(float), [1, 1e300, 2], *FLOATS[8:].astype(float)], "too large"),
    "empty": ([*FLOATS[:7], [], *FLOATS[8:]], "is no list of floats"),
    "null inside": ([*FLOATS[:7].tolist(), [1.0, None, 2.0], *FLOATS[8:].tolist()], "is no list of floats"),
    "texts": ([["a", "b"]] * 60, "is no list of floats"),
    "a number": ([1.5] * 60, "is no list of floats"),
    "ragged inside": ([[[1.0, 2.0], [3.0]]] * 60, "is no list of floats"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("what", BAD)
def test_floats_that_are_none_are_refused_with_their_row(tmp_path, what, streaming):
    column, words = BAD[what]
    stored = [{"bytes": png(p[None]), "path": None} for p in PIXELS]
    plain = [one.tolist() if isinstance(one, np.ndarray) else one for one in column]
    pq.write_table(pa.table({"image": stored, "text": plain}), tmp_path / "a.parquet")
    source = {"source": "parquet", "files": {"train": str(tmp_path / "a.parquet")}, "streaming": streaming}
    held = {"validation": 0, "test": 0, "condition": "text"}
    refused(lambda: load_splits(ImageSettings(**{**IMAGES, **source, **held}), ["train"]), "row ", "column text", words)


def test_a_column_or_an_array_that_is_not_there_is_refused(tmp_path):
    parquet(tmp_path / "a.parquet", FLOATS)
    source = {"source": "parquet", "files": {"train": str(tmp_path / "a.parquet")}}
    for name in ("txt", "text.inside", "image.nothing"):
        settings = ImageSettings(**{**IMAGES, **source, "condition": name})
        refused(lambda settings=settings: load_splits(settings), f"condition {name} is no column", "text")
    np.savez(tmp_path / "a.npz", images=PIXELS, text=FLOATS, short=FLOATS[:5])
    array = {"source": "array", "files": {"train": str(tmp_path / "a.npz")}}
    found = load_splits(ImageSettings(**{**IMAGES, **array, "condition": "text"}))
    assert all(np.array_equal(s.condition.numpy(), FLOATS[s.index.numpy()]) for s in found.values())
    refused(lambda: load_splits(ImageSettings(**{**IMAGES, **array, "condition": "txt"})), "txt is no column", "short")
    refused(lambda: load_splits(ImageSettings(**{**IMAGES, **array, "condition": "short"})), "5 rows for 60 images")
    np.savez(tmp_path / "b.npz", images=PIXELS, text=FLOATS[:, :2])
    files = {"train": str(tmp_path / "a.npz"), "test": str(tmp_path / "b.npz")}
    several = ImageSettings(**{**IMAGES, **array, "files": files, "condition": "text"})
    refused(lambda: load_splits(several), "test: column text has 2 floats an image, in train 3")


def test_settings_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(ValueError, match="source digits has none"):
        ImageSettings(condition="text")
    data = {"source": "array", "files": {"train": "a.npz"}, "values": 5, "condition": "text"}
    with pytest.raises(ValueError, match="data.condition is given and nothing reads it"):
        RunConfig(data=data, prior={"condition": False})
    refused(lambda: vqstack.recipe(condition={"kind": "vector"}), "condition: data.condition names no floats")
    with pytest.raises(InputError, match="none_such is not registered here, only vector, attention, sequence"):
        build_condition(ConditionSettings(kind="none_such", name="text", shape=(3,)), 8)
    with pytest.raises(InputError, match="condition.options: VectorCondition: .*'width'"):
        build_condition(ConditionSettings(kind="vector", options={"width": 3}, name="text", shape=(3,)), 8)
    with pytest.raises(InputError, match="vector reads \\(4, 3\\) floats: choose attention"):
        build_condition(ConditionSettings(kind="vector", name="text", shape=(4, 3)), 8)


# Runs and commands.


def of_column(folder, **changes):
    """A run on images, labels and floats of a Parquet file, with a refiner that is told all of it."""
    fit = {"steps": 3, "batch_size": 8, "evaluate_every": 3}
    level = {"width": 8, "encoder_blocks": 0, "decoder_blocks": 0, "quantizer": {"codebook_size": 4}}
    files, part = {"train": str(folder / "train.parquet")}, {"depth": 1, "dim": 8, "heads": 2}
    return RunConfig.model_validate(
        {
            "data": {"source": "parquet", "files": files, "condition": "text", "size": (6, 6), "test": 6},
            "levels": [{**level, "map": (3, 3)}],
            "pixels": {"components": 2},
            "train_levels": [fit],
            "prior": {**part, "label_dropout": 0.2},
            "refiners": [{**part, "level": 1, "groups": 2, "condition": True}],
            "train_refiners": [fit],
            "train_prior": fit,
            **changes,
        }
    )


@pytest.mark.parametrize("kind", ["sequence", "angle"])
def test_a_run_from_a_column_to_images(kind, unregistered, tmp_path, monkeypatch):
    """Also with a class of one's own, the example of docs/extending.md."""
    monkeypatch.setenv("VQSTACK_CACHE", str(tmp_path / "cache"))
    own = {}
    if kind == "angle":
        exec(PROGRAM, {})
        own = {"condition": {"kind": "angle", "options": {"turns": 2}}}
    shape = (4, 2) if kind == "sequence" else (2,)
    floats = np.random.default_rng(3).normal(size=(30, *shape))
    parquet(tmp_path / "train.parquet", floats, PIXELS[:30])
    settings = of_column(tmp_path, **own)
    split = load_splits(settings.data, ["test"])["test"]
    assert np.allclose(split.condition, floats[split.index].astype(np.float32))
    model = trained(settings, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "ledger.json").read_text())["test"]["given"] == "text"
    found = model.ledger(split.pixels, split.labels, split.condition)
    stored = json.loads((tmp_path / "run" / "ledger.json").read_text())["test"]["bits"]
    assert found.bits == pytest.approx(stored, rel=1e-5)

    np.save(tmp_path / "given.npy", floats[:3].astype(np.float32))
    named = ["--label", "1", "--condition", str(tmp_path / "given.npy"), "--device", "cpu"]
    generate.main([str(tmp_path / "run"), *named, "--out", str(tmp_path / "drawn")])
    assert len(list((tmp_path / "drawn").glob("0*.png"))) == 3


def pictures(count=240, seed=0):
    """Images whose grey is told by the first float, and by nothing else."""
    rng = np.random.default_rng(seed)
    floats = rng.normal(size=(count, 2)).astype(np.float32) * 5 + 3
    return ((floats[:, :1, None] > 3) * 3 + rng.integers(0, 2, (count, 8, 8))).astype(np.uint8), floats


LEARNS = {
    **TINY,
    "levels": {**TINY["levels"], "dropout": 0.0},
    "train_levels": {**TINY["train_levels"], "steps": 150, "evaluate_every": 50, "learning_rate": 5e-3},
    "prior": {"depth": 1, "dim": 16, "heads": 2, "label_dropout": 0.2},
    "train_prior": {**TINY["train_prior"], "steps": 150, "evaluate_every": 50, "learning_rate": 5e-3},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given") / "run"
    pixels, floats = pictures()
    vqstack.train(vqstack.recipe(**LEARNS), pixels, condition=floats, out=folder, values=5)
    return folder


def test_what_is_given_is_learned_and_drawn_by(run):
    pixels, floats = pictures(seed=5)
    model = vqstack.load(run)
    images, right = torch.from_numpy(pixels)[:, None], torch.from_numpy(floats)
    told, mistaken = model.ledger(images, None, right), model.ledger(images, None, right.flip(0))
    assert told.row_bits("prior") < mistaken.row_bits("prior") - 0.3
    for side, floor in ((torch.tensor([[9.0, 3.0]]), 2.0), (torch.tensor([[-3.0, 3.0]]), 0.0)):
        mean = model.sample(30, None, side.expand(30, 2)).pixels.float().mean().item()
        assert floor <= mean <= floor + 2


def test_the_ledger_says_what_it_is_given(run):
    ledger = json.loads((run / "ledger.json").read_text())
    assert ledger["test"]["given"] == "condition" and "condition" not in [r["row"] for r in ledger["test"]["rows"]]
    assert "total bits given condition" in (run / "model" / "README.md").read_text(encoding="utf-8")
    model, pixels, floats = vqstack.load(run), *pictures(8, 3)
    one = model.ledger(torch.from_numpy(pixels)[:, None], None, torch.from_numpy(floats))
    assert "bits per image given condition" in repr(one) and one.merge(one).given == "condition"
    with pytest.raises(ValueError, match="same rows"):
        one.merge(type(one)(one.rows, one.count))


@pytest.mark.parametrize("shape", [(2,), (2, 1)], ids=str)
def test_killed_and_resumed_equals_uninterrupted(shape, tmp_path):
    """The same weights to the bit; who gives other floats afterwards is refused."""
    (pixels, floats), settings = pictures(40), vqstack.recipe(**TINY)
    floats = floats.reshape(-1, *shape)

    def train(folder, more=0):
        vqstack.train(settings, pixels, condition=floats + more, out=tmp_path / folder, values=5)

    train("whole")
    with killed("prior", 2):
        train("parts")
    refused(lambda: train("parts", 1), "data.files.train")
    train("parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_generate_takes_floats_of_all_images_or_of_one(run, tmp_path, call):
    program = TOOLS / "generate.py"
    np.save("all.npy", np.array([[9.0, 3], [-3, 3], [9, 3]]))
    np.save("one.npy", np.array([9.0, 3]))
    assert call(program, run, "--condition", "all.npy", "--out", "several")[0] == 0
    assert call(program, run, "--condition", "one.npy", "--num", 3, "--out", "alike")[0] == 0
    several, alike = (files_of(tmp_path / name) for name in ("several", "alike"))
    assert several["000000.png"] == alike["000000.png"] and several["000002.png"] == alike["000002.png"]
    assert several["000001.png"] != alike["000001.png"]
    assert call(program, run, "--condition", "one.npy", "--num", 2, "--guidance", 2, "--out", "guided")[0] == 0
    np.save("text.npy", np.array(["a", "b"]))
    np.save("wide.npy", np.zeros((2, 3)))
    np.save("nan.npy", np.array([np.nan, 1]))
    np.save("huge.npy", np.array([[1.0, 3], [1e300, 1]]))
    for arguments, words in [
        ((), "--condition: missing, and this model is given condition: name a .npy of 2"),
        (("--condition", "all.npy", "--num", 2), "3 rows for 2 images"),
        (("--condition", "none.npy"), "none.npy cannot be read"),
        (("--condition", "text.npy"), "text.npy holds <U1 (2,): give 2 floats (condition)"),
        (("--condition", "wide.npy"), "wide.npy holds float64 (2, 3)"),
        (("--condition", "nan.npy"), "nan.npy, row 0 holds a number that is not finite"),
        (("--condition", "huge.npy"), "huge.npy, row 1 holds a number that is not finite, or too large for 32 bits"),
        (("--label", "1", "--condition", "one.npy"), "this model knows no classes"),
    ]:
        code, out, err = call(program, run, *arguments, "--out", "no")
        assert (code, out, len(err.splitlines())) == (2, "", 1) and words in err, err
    assert not (tmp_path / "no").exists()


def test_commands_give_what_the_run_gives(run, tmp_path, call):
    """evaluate scores with the floats of the run's data set, encode needs none, compress asks for them."""
    assert call(TOOLS / "evaluate.py", run, "--out", "scores", "--cpu", "--no-samples")[::2] == (0, "")
    found = json.loads((tmp_path / "scores" / "evaluate.json").read_text())["ledger"]["feed-forward"]
    expected = json.loads((run / "ledger.json").read_text())["test"]
    assert found["given"] == "condition" and found["bits"] == pytest.approx(expected["bits"], rel=1e-6)
    assert call(TOOLS / "encode_dataset.py", run, "--out", "codes", "--cpu")[::2] == (0, "")
    code, _, err = call(
        TOOLS / "evaluate.py", run, "--out", "blind", "--cpu", "--data.source", "array", "--data.condition", "None"
    )
    assert code == 2 and "no floats an image, and the model is given condition, 2 floats" in err
    code, _, err = call(TOOLS / "compress.py", run, "--split", "test", "--out", "archive")
    assert code == 2 and "--condition: missing" in err


def test_a_split_is_scored_with_its_own_floats(run):
    model, splits = vqstack.load(run), load_splits(data_of_run(run))
    found = evaluate_split(model, splits["test"], Accelerator(cpu=True), batch_size=7).ledger
    whole = model.ledger(splits["test"].pixels, None, splits["test"].condition)
    assert found.bits == pytest.approx(whole.bits, rel=1e-6)
    assert SamplingSettings(guidance=(2.0,)) and model.settings.draws(SamplingSettings(guidance=(2.0,)))


@pytest.mark.parametrize(("kind", "shape"), [("vector", (3,)), ("sequence", (2, 3)), ("attention", (2, 3))])
def test_a_program_of_what_is_given_takes_any_number_of_images(kind, shape):
    condition = build_condition(ConditionSettings(kind=kind, name="told", shape=shape), 8).eval()
    program = torch.export.export(condition, (torch.randn(3, *shape),), dynamic_shapes=({0: torch.export.Dim("b")},))
    for num in (1, 3, 5):
        values = torch.randn(num, *shape)
        torch.testing.assert_close(program.module()(values), condition(values))
