"""Cluster levels: what they draw encodes back, probabilities over a cluster sum to one, tables lose least."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from helpers import assert_same_run, every_map, every_world, killed, main, randomised
from pydantic import ValidationError

from vqstack.cluster import ClusterLevel, merged, neighbours
from vqstack.code_model import CodeModelSettings, RefinerSettings
from vqstack.config import RunConfig
from vqstack.evaluation import leaks
from vqstack.joint import JointDecoders
from vqstack.likelihood import Draw, noise
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings, SamplingSettings

CODES, CLUSTERS = 5, 2
FAMILIES = {
    "product": ({}, None),
    "window": ({"family": "window", "radius": 1, "features": 4, "width": 8}, None),
    "autoregressive": ({}, {"groups": 2}),
    "guided": ({}, {"groups": 2, "labels": True, "label_dropout": 0.1}),
    "masked": ({}, {"family": "masked", "groups": 2}),
    "refined window": ({"family": "window", "radius": 1, "features": 4, "width": 8}, {"wavefront": 2, "window": 1}),
}


def build(family="product", table=(0, 1, 1, 0, 1), seed=0, map_shape=(1, 2)):
    """Pixels, codes, clusters of them: a world small enough to count, every weight drawn from a normal distribution."""
    decoder, refiner = FAMILIES[family]
    level = {"map": map_shape, "width": 8, "quantizer": {"codebook_size": CODES, "dim": 3}}
    cluster = {**level, "quantizer": {"kind": "cluster", "codebook_size": CLUSTERS, "dim": 3}, "decoder": decoder}
    settings = ModelSettings(
        stack={"levels": [level, cluster]},
        prior=CodeModelSettings(depth=1, dim=8, heads=2),
        refiners=() if refiner is None else (RefinerSettings(level=2, depth=1, dim=8, heads=2, **refiner),),
        image_shape=(1, *map_shape),
        values=2,
        classes=2,
    )
    torch.manual_seed(seed)
    model = HierarchicalModel(settings).eval()
    randomised(model, 0.5)
    model.stack.level(2).encoder.table.copy_(torch.tensor(table))
    return model


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_every_draw_encodes_back_and_the_support_sums_to_one(family):
    model, count = build(family), 300
    level, labels = model.stack.level(2), torch.arange(count) % 2
    maps = every_map((1, 2), CODES)
    for codes in every_map((1, 2), CLUSTERS):
        guidance = 2.0 if family == "guided" else 1.0
        of = model.conditional(2, codes.expand(len(maps), 1, 2), labels[: len(maps)] * 0, guidance=guidance)
        probabilities = of.log_prob(maps).exp()
        inside = (level.encode(maps) == codes).flatten(1).all(1)
        assert probabilities[~inside].sum() == 0
        assert probabilities[inside].min() > 0
        assert probabilities.sum() == pytest.approx(1, abs=1e-5)
        of = model.conditional(2, codes.expand(count, 1, 2), labels, guidance=guidance)
        for draw in (Draw(), Draw(temperature=50.0), Draw(top_k=4), Draw(mode=True)):
            drawn = of.sample(noise(0, range(count), 1, 2), draw)
            assert (level.encode(drawn) == codes).all()


@torch.no_grad()
def test_the_whole_model_sums_to_one_and_the_codes_of_an_image_are_possible():
    model = build()
    images = every_map((1, 1, 2), 2, torch.uint8)
    maps = every_map((1, 2), CODES), every_map((1, 2), CLUSTERS)
    pixels, one, two, labels = every_world(images, *maps, torch.arange(2))
    assert model.joint_log_prob(pixels, [one, two], labels).exp().sum() == pytest.approx(1, abs=1e-5)
    images = images.repeat(2, 1, 1, 1)
    assert model.joint_log_prob(images, model.encode(images), torch.arange(8) // 4).isfinite().all()
    found = leaks(model, images, torch.arange(8) // 4)
    assert found[2].maps == len(images)
    assert found[2].surely == 0
    sample = model.sample(50, sampling=SamplingSettings(temperature=(3.0,)))
    assert torch.equal(model.stack.level(2).encode(sample.codes[1]), sample.codes[2])


@pytest.mark.parametrize("family", ["product", "window"])
def test_training_learns_the_decoder_and_leaves_the_table(family):
    model = build(family)
    level, codes = model.stack.level(2), torch.randint(CODES, (64, 1, 2))
    codes[..., 1] = codes[..., 0]
    table, optimizer = level.encoder.table.clone(), torch.optim.Adam(level.parameters(), 0.02)
    first = None
    for _ in range(60):
        objective = level.train()(codes)
        first = first or objective.metrics["nats"].item()
        optimizer.zero_grad()
        objective.loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in level.parameters())
        optimizer.step()
    assert objective.metrics["nats"] < first - 0.3
    assert torch.equal(level.encoder.table, table)
    assert JointDecoders(model.stack)(torch.randint(2, (4, 1, 1, 2), dtype=torch.uint8)).loss.isfinite()


def brute_loss(table, weights, rows, convex):
    """What a table loses, from its clusters as a whole."""
    lost = (weights * convex(rows)).sum()
    for cluster in table.unique():
        w = weights * (table == cluster)
        mean = (w[:, None] * rows).sum(0) / w.sum()
        lost = lost - w.sum() * convex(mean[None])[0]
    return lost


@pytest.mark.parametrize("kind", ["vectors", "distributions"])
def test_merges_lose_least_one_by_one_and_what_clusters_lose_is_never_negative(kind):
    for _ in range(5):
        weights, rows = torch.rand(6).double() + 0.1, torch.randn(6, 4).double()
        convex = lambda r: r.square().sum(-1)  # noqa: E731
        if kind == "distributions":
            rows, convex = rows.softmax(-1), lambda r: (r * r.log()).sum(-1)
        table, before = torch.arange(6), 0.0
        for count in range(5, 0, -1):
            pairs = itertools.combinations(table.unique().tolist(), 2)
            tables = [torch.where(table == j, i, table) for i, j in pairs]
            table = min(tables, key=lambda t: brute_loss(t, weights, rows, convex).item())
            found = merged(weights, rows, count, convex)
            assert torch.equal(found, table.unique(return_inverse=True)[1])
            lost = brute_loss(found, weights, rows, convex)
            assert lost >= before - 1e-9
            before = lost


def test_codes_that_stand_beside_the_same_codes_come_together():
    """0 and 1 stand beside 2 and 3 only, and the other way round, whatever their vectors are."""
    model = build(map_shape=(4, 4))
    level, below = model.stack.level(2), model.stack.level(1)
    parity = (torch.arange(4)[:, None] + torch.arange(4)) % 2
    codes = 2 * parity + torch.randint(2, (200, 4, 4))
    codes[0, 0, 0] = 4  # hardly ever used
    counts, beside = torch.bincount(codes.flatten(), minlength=CODES), neighbours(codes, CODES)
    assert beside.sum() == 2 * 200 * 24
    assert beside[4].sum() == 2
    level.learn_from(below, counts, beside)
    table = level.encoder.table.tolist()
    assert table[0] == table[1] != table[2] == table[3]
    again = level.encoder.table.clone()
    level.learn_from(below, counts, beside)
    assert torch.equal(level.encoder.table, again)


def test_an_artefact_comes_back_and_a_table_that_leaves_a_cluster_empty_does_not():
    model = build()
    state = model.state_dict()
    other = build(seed=1, table=(0, 0, 0, 0, 1))
    other.load_state_dict(state)
    assert torch.equal(other.stack.level(2).encoder.table, model.stack.level(2).encoder.table)
    for wrong in ([0, 0, 0, 0, 0], [0, 1, 2, 0, 1], [0, 1, -1, 0, 1]):
        with pytest.raises(RuntimeError, match="table"):
            other.load_state_dict({**state, "stack.levels.1.encoder.table": torch.tensor(wrong)})


LEVEL = {"map": [4, 4], "quantizer": {"codebook_size": 8, "dim": 4}}


@pytest.mark.parametrize(
    ("first", "second", "others", "message"),
    [
        ({"quantizer": {"kind": "cluster", "codebook_size": 4, "dim": 4}}, None, {}, "level 1"),
        ({}, {"map": [2, 2]}, {}, "map"),
        ({}, {"quantizer": {"kind": "cluster", "codebook_size": 9, "dim": 4}}, {}, "9 clusters of 8"),
        ({}, {"quantizer": {"kind": "cluster", "codebook_size": 4, "dim": 5}}, {}, "dim"),
        ({"map": [1, 1]}, {"map": [1, 1]}, {}, "neighbours"),
        ({"quantizer": {"codebook_size": 5000, "dim": 4}}, {}, {}, "4096"),
        ({}, {}, {"joint": True}, "joint"),
        ({}, {}, {"refiners": [{"level": 2, "corruption": 0.1}]}, "corruption"),
        ({}, {}, {"refiners": [{"level": 2, "soft_targets": 0.1}]}, "soft_targets"),
    ],
    ids=str,
)
def test_clusters_that_cannot_be_are_refused(first, second, others, message):
    cluster = {**LEVEL, "quantizer": {"kind": "cluster", "codebook_size": 4, "dim": 4}}
    RunConfig(levels=[LEVEL, cluster])
    levels = [{**LEVEL, **first}] + ([] if second is None else [{**cluster, **second}])
    with pytest.raises(ValidationError, match=message):
        RunConfig(levels=levels, **others)


def test_only_a_cluster_level_is_one():
    assert [isinstance(level, ClusterLevel) for level in build().stack.levels] == [False, True]


RECIPE = """
data: {source: digits, limit: 48}
levels:
  - {map: [4, 4], width: 8, encoder_blocks: 1, decoder_blocks: 1, quantizer: {codebook_size: 8, dim: 4}}
  - {map: [4, 4], width: 8, decoder_blocks: 1, dropout: 0.1, quantizer: {kind: cluster, codebook_size: 3, dim: 4},
     decoder: {family: window, radius: 1, features: 4, width: 8}}
train_levels: [{steps: 6, batch_size: 8, warmup: 2, evaluate_every: 3, checkpoint_every: 2}]
refiners: [{level: 2, wavefront: 2, window: 1, depth: 1, dim: 8, heads: 2}]
train_refiners: [{steps: 6, batch_size: 8, warmup: 2, evaluate_every: 3, checkpoint_every: 2}]
prior: {depth: 1, dim: 8, heads: 2}
train_prior: {steps: 4, batch_size: 8, warmup: 2, evaluate_every: 2}
sample_grid: 2
"""
TRAIN = Path(__file__).parents[1] / "recipes" / "train_stack.py"


def test_a_run_with_clusters_that_was_killed_ends_as_one_that_was_not(tmp_path):
    """Before its table is made, amid its level, and amid its refiner."""
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    given = (TRAIN, "--config", tmp_path / "tiny.yaml", "--out")
    main(*given, tmp_path / "whole")
    for at in [("level-2", 0), ("level-2", 3), ("refiner-2", 3)]:
        with killed(*at):
            main(*given, tmp_path / "parts")
    main(*given, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_dry_run_plans_clusters(call, tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    code, out, _ = call(TRAIN, "--config", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--dry-run")
    assert code == 0
    assert f"level 2  4x4 of 3 codes: at most {16 * math.log2(3):,.0f} bits" in out
    assert not (tmp_path / "run").exists()
