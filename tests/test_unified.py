"""One transformer for all maps of codes: normalised over all of them, one pass equals the walk, shared once."""

import json
import shutil

import pytest
import torch
from helpers import assert_as_often, assert_same_run, killed, main, phases_done
from safetensors import safe_open
from test_model import everything, tiny, total
from test_refined_run import ROOT

from vqstack.code_model import CodeModelSettings, RefinerSettings
from vqstack.codec.blocks import BlockCodec
from vqstack.config import RunConfig, read_yaml
from vqstack.errors import InputError
from vqstack.likelihood import Draw, Known, noise, walked_log_prob
from vqstack.model import HierarchicalModel
from vqstack.model_settings import SamplingSettings

FAMILIES = [
    {},
    {"window": 1, "wavefront": 1},
    {"groups": 2, "window": 1, "codebook": True},
]
SQUARE = {"shape": (1, 2, 2), "maps": ((2, 2), (1, 1)), "sizes": (2, 2)}  # its groups have several sites
GROUPED = [{**SQUARE, **family} for family in FAMILIES[1:]]
THREE = {"maps": ((2, 2), (2, 1), (1, 1)), "shape": (1, 4, 4), "values": 3, "sizes": (3, 3, 2)}


def unified(**changes):
    """Every weight random, the codebooks known."""
    model = tiny(unified=True, **changes)
    for number, segment in enumerate(model.segments[::-1], start=1):
        segment.know_codebook(model.stack.level(number).quantizer.codebook())
    return model


def some(model, batch=5):
    """Maps that are not encodings of each other, and labels."""
    worlds = zip(model.stack.map_shapes, model.stack.codebook_sizes, strict=True)
    maps = [torch.randint(0, k, (batch, *m)) for m, k in worlds]
    return maps, torch.randint(0, model.classes, (batch,)) if model.classes else None


@pytest.mark.parametrize("changes", [{}, {"classes": 0}, *GROUPED], ids=str)
def test_everything_sums_to_one(changes):
    assert total(unified(**changes)) == pytest.approx(1, abs=1e-6)


def test_three_maps_sum_to_one():
    model = unified(shape=(1, 2, 2), maps=((2, 2), (2, 1), (1, 1)), sizes=(2, 2, 2), window=1, wavefront=1)
    assert total(model) == pytest.approx(1, abs=1e-6)


@torch.no_grad()
def test_a_row_reads_every_map_above_it_as_it_is_given():
    model = unified(**THREE)
    (one, two, three), labels = some(model)
    other = (three + 1) % 2
    row = model.conditional(2, two, labels, above=[three]).log_prob(one)
    assert not torch.allclose(row, model.conditional(2, two, labels, above=[other]).log_prob(one))
    alone = model.conditional(2, two, labels).log_prob(one)  # z_3 is then the encoding of z_2
    encoded = model.conditional(2, two, labels, above=[model.stack.level(3).encode(two)]).log_prob(one)
    torch.testing.assert_close(alone, encoded)
    pixels = torch.randint(0, 3, (5, 1, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(model.code_lengths(pixels, [one, two, three], labels)["level-2"], -row)


@torch.no_grad()
@pytest.mark.parametrize("changes", FAMILIES, ids=str)
def test_the_rows_the_walk_and_the_objective_agree(changes):
    model = unified(**THREE, **changes)
    maps, labels = some(model)
    pixels = torch.randint(0, 3, (5, 1, 4, 4), dtype=torch.uint8)
    rows = model.code_lengths(pixels, maps, labels)
    walks = {
        "prior": (model.prior.distribution(5, {"label": labels}, model.device), maps[2]),
        "level-3": (model.conditional(3, maps[2], labels, above=[]), maps[1]),
        "level-2": (model.conditional(2, maps[1], labels, above=maps[2:]), maps[0]),
    }
    for row, (distribution, values) in walks.items():
        torch.testing.assert_close(-walked_log_prob(distribution, values), rows[row], atol=1e-4, rtol=1e-4)
    values = {"label": labels} | {f"z_{n}": z for n, z in enumerate(maps, start=1)}
    parents = [model.term(n).inputs(values, 5)[1] for n in (3, 2)]
    metrics = model.unified(labels, *maps[::-1], *(x for parent in parents for x in parent[:2])).metrics
    for row in walks:
        assert metrics[row].item() == pytest.approx(rows[row].mean().item(), rel=1e-5)
    assert metrics["nats"].item() == pytest.approx(sum(metrics[row].item() for row in walks), rel=1e-5)


@pytest.mark.parametrize("changes", FAMILIES, ids=str)
def test_causality_by_gradients(changes):
    """What a place of any segment depends on: values of groups before its own, of its segment and those above."""
    model = unified(**THREE, **changes)
    maps, labels = some(model, 2)
    lowest, parent = model.term(2).inputs({"label": labels, "z_2": maps[1], "z_3": maps[2]}, 2)
    segment, values = model.refiner(2), torch.randn(2, 4, 8, requires_grad=True)
    segment.embed = lambda chosen: values if chosen.shape[1] == 4 else values[:, segment.source]
    before = parent.before.inputs(lowest).detach().requires_grad_()
    parent = parent._replace(before=parent.before._replace(inputs=lambda _: before))
    logits = segment.logits(maps[0].flatten(1), lowest, parent)
    for site in range(4):
        score = (logits[:, site] * torch.randn(3)).sum()
        own, higher = torch.autograd.grad(score, (values, before), retain_graph=True, allow_unused=True)
        reached = torch.zeros(4) if own is None else own.abs().amax(dim=(0, 2))
        assert ((reached > 0) == (segment.schedule.group < segment.schedule.group[site])).all()
        assert (higher.abs().amax(dim=(0, 2)) > 0).all()  # all of z_3 and z_2


@torch.no_grad()
def test_it_starts_as_the_decoders_under_a_uniform_prior():
    torch.manual_seed(1)
    model = HierarchicalModel(unified(**THREE).settings).eval()
    maps, labels = some(model)
    pixels = torch.randint(0, 3, (5, 1, 4, 4), dtype=torch.uint8)
    rows, alone = (model.code_lengths(pixels, maps, labels, refined=r) for r in (True, False))
    for row in rows:
        torch.testing.assert_close(rows[row], alone[row])
    torch.testing.assert_close(rows["prior"], torch.full((5,), 2.0).log())


def test_frequencies_of_samples():
    model, num = unified(window=1, wavefront=1), 8000
    pixels, codes, labels = everything(model)
    with torch.no_grad():
        p = model.joint_log_prob(pixels, codes, labels).exp()
    sample = model.sample(num, seed=1)
    worlds = [torch.cat([x.flatten(1), *(z.flatten(1) for z in maps), y[:, None]], 1) for x, maps, y in (
        (pixels, codes, labels), (sample.pixels, [sample.codes[1], sample.codes[2]], sample.labels))]  # fmt: skip
    place = {tuple(row): i for i, row in enumerate(worlds[0].tolist())}
    assert_as_often(torch.tensor([place[tuple(row)] for row in worlds[1].tolist()]), p)


def test_variations_known_sites_guidance_and_temperature():
    model = unified(**THREE, label_dropout=0.2)
    maps, labels = some(model, 6)
    together = model.vary(maps[1], 2, labels, seed=3)
    alone = [model.vary(maps[1][i : i + 1], 2, labels[i : i + 1], seed=3, first=i) for i in range(6)]
    assert torch.equal(together.pixels, torch.cat([x.pixels for x in alone]))
    assert torch.equal(together.codes[2], maps[1])
    known = {1: Known(maps[0], torch.rand(6, 2, 2) < 0.5)}
    drawn = model.sample(6, labels, seed=1, known=known).codes[1]
    assert torch.equal(drawn[known[1].given], maps[0][known[1].given])
    guided = model.sample(64, torch.zeros(64, dtype=torch.int64), sampling=SamplingSettings(guidance=(1, 1, 30, 1)))
    plain = model.sample(64, torch.zeros(64, dtype=torch.int64))
    assert torch.equal(guided.codes[2], plain.codes[2]) and not torch.equal(guided.codes[1], plain.codes[1])
    cold = SamplingSettings(temperature=(1.0, 1.0, 0.001, 1.0))
    first = model.sample(64, torch.zeros(64, dtype=torch.int64), sampling=cold)
    upper = model.conditional(2, first.codes[2], first.labels, above=[first.codes[3]])
    assert torch.equal(first.codes[1], upper.sample(noise(7, range(64), 1, 4), Draw(mode=True)))


def test_the_backbone_is_stored_once(tmp_path):
    model = unified(**THREE, codebook=True)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert [name for name in names if ".blocks.0.query" in name] == ["prior.blocks.0.query.weight"]
    loaded = HierarchicalModel.from_pretrained(tmp_path)
    assert loaded.refiner(2).backbone is loaded.prior.backbone
    maps, labels = some(model)
    pixels = torch.randint(0, 3, (5, 1, 4, 4), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model.joint_log_prob(pixels, maps, labels), loaded.joint_log_prob(pixels, maps, labels))


def test_archives():
    model, threads = unified(**THREE, window=1, wavefront=1), torch.get_num_threads()
    pixels = torch.randint(0, 3, (40, 1, 4, 4), dtype=torch.uint8)
    codec = BlockCodec(model)
    block = codec.encode(pixels, None, batch=32, seed=1)
    stored = list(zip(block.sections, block.checks, strict=True))
    assert not block.raw
    assert torch.equal(codec.decode(stored, 40, batch=32, seed=1)[-1][0], pixels)
    for row, bits in block.bits.items():
        assert bits / 40 == pytest.approx(block.ledger.row_bits(row), rel=0.01, abs=0.01)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"family": "masked"}, "prior.family"),
        ({"refiners": [{"level": 2}]}, "level 2"),
        ({"maps": ((2, 1),)}, "one map"),
    ],
    ids=str,
)
def test_what_excludes_it_is_refused(changes, word):
    with pytest.raises(ValueError, match=f"unified.*{word}"):
        tiny(unified=True, **changes)


RECIPE = """
data: {source: digits, limit: 32}
levels:
  - {map: [4, 4], width: 8, encoder_blocks: 1, decoder_blocks: 1, quantizer: {codebook_size: 8, dim: 4}}
  - {map: [2, 2], width: 8, encoder_blocks: 1, decoder_blocks: 1, quantizer: {codebook_size: 4, dim: 4}}
train_levels: [{steps: 4, batch_size: 16, warmup: 2, evaluate_every: 2}]
unified: true
prior: {depth: 1, dim: 8, heads: 2, label_dropout: 0.2, codebook: true}
train_prior: {steps: 20, batch_size: 16, warmup: 2, evaluate_every: 10, checkpoint_every: 5, ema: 0.9,
              learning_rate: 1.0e-2}
sample_grid: 4
"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unified")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    train(folder / "run")
    return folder / "run"


def train(out, *arguments):
    main(ROOT / "recipes/train_stack.py", "--config", out.parent / "tiny.yaml", "--out", out, *arguments)


def test_a_run(run_folder):
    done = phases_done(run_folder)
    assert set(done) == {"level-1", "level-2", "transformer"}
    first = json.loads((run_folder / "phases/transformer/metrics.jsonl").read_text().splitlines()[0])
    assert first["validation/nats"] == pytest.approx(first["validation/prior"] + first["validation/level-2"], rel=1e-5)
    assert done["transformer"]["validation_nats"] < done["level-2"]["validation_nats"] + 4 * torch.tensor(4.0).log()
    assert len(list((run_folder / "samples").glob("transformer-*.png"))) == 2
    rows = [row["row"] for row in json.loads((run_folder / "ledger.json").read_text())["test"]["rows"]]
    assert rows == ["label", "prior", "level-2", "level-1"]


def test_a_killed_run_ends_as_one_that_was_not(run_folder, tmp_path):
    shutil.copy(run_folder.parent / "tiny.yaml", tmp_path)
    with killed("transformer", 16):
        train(tmp_path / "run")
    assert not (tmp_path / "run/phases/transformer/DONE").exists()
    train(tmp_path / "run")
    assert_same_run(run_folder, tmp_path / "run")


def test_what_a_run_costs_is_told(run_folder, tmp_path, capsys):
    train(run_folder, "--dry-run")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("unified "))
    model = HierarchicalModel.from_pretrained(run_folder)
    assert "20 sites in 20 groups" in line
    assert f"{sum(p.numel() for p in model.unified.parameters()):,} parameters" in line


def test_generating(run_folder, tmp_path):
    command = (ROOT / "tools/generate.py", run_folder, "--device", "cpu", "--num", 4, "--label", 3)
    main(*command, "--out", tmp_path / "a", "--guidance", 3)
    image = tmp_path / "a" / "000000.png"
    main(*command, "--out", tmp_path / "b", "--images", image, "--from-level", 2)
    with pytest.raises(InputError, match="--label"):
        main(*command, "--out", tmp_path / "c", "--images", image, "--from-level", 1)


def test_a_recipe_that_excludes_it_is_refused(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(RECIPE + "refiners: [{level: 2}]\n", encoding="utf-8")
    with pytest.raises(InputError, match="unified"):
        read_yaml(path, RunConfig)
    assert RefinerSettings.model_fields.keys() > CodeModelSettings.model_fields.keys()


@pytest.mark.parametrize("changes", [{}, {"window": 1, "wavefront": 1}], ids=str)
def test_a_map_that_is_known_but_for_its_end_is_read_behind_the_maps_above(changes):
    model = unified(**THREE, **changes)
    codes, labels = some(model)
    given = torch.ones_like(codes[0], dtype=torch.bool)
    given[:, -1, -1] = False
    u = noise(1, range(len(given)), 0, given[0].numel())
    short, long = (
        model.conditional(2, codes[1], labels, above=codes[2:], known=Known(codes[0], given)) for _ in range(2)
    )
    long.inner.fixed = None
    drawn = short.sample(u)
    assert torch.equal(drawn, long.sample(u)) and torch.equal(drawn[given], codes[0][given])
    torch.testing.assert_close(short.log_prob(drawn), long.log_prob(drawn))
