"""Residual and product quantizers, and the chain that the codes of a site form in every distribution over them."""

import json

import pytest
import torch
from helpers import assert_coded, every_map, randomised, trained
from test_model import total

from vqstack.codes import CodeDataset
from vqstack.commands import encode
from vqstack.config import RunConfig
from vqstack.errors import InputError
from vqstack.likelihood import ChainHead, Known, noise, walked_log_prob
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings
from vqstack.quantizer import QuantizerSettings, build_quantizer, usage

KINDS = ["residual", "product"]
FAMILIES = {
    "product, raster": ({}, {}, ({"level": 2},)),
    "product, masked": ({}, {"family": "masked", "groups": 2}, ({"level": 2, "family": "masked", "groups": 2},)),
    "window": ({"family": "window", "radius": 1, "width": 8, "features": 4}, {}, ()),
    "window, refined": (
        {"family": "window", "radius": 1, "width": 8, "features": 4},
        {},
        ({"level": 2, "wavefront": 2, "window": 1},),
    ),
    "unified": ({}, {}, ()),
}


def quantizer(kind, codes=3, size=4, dim=6):
    """With codebooks of random vectors."""
    torch.manual_seed(3)
    return build_quantizer(QuantizerSettings(kind=kind, codes=codes, codebook_size=size, dim=dim)).eval()


def world(family="product, raster", kind="residual", maps=((2, 1), (1, 1)), shape=(1, 2, 1), codes=2, classes=2):
    """Two levels with several codes a site and random weights."""
    torch.manual_seed(7)
    decoder, prior, refiners = FAMILIES[family]
    quantized = {"kind": kind, "codes": codes, "codebook_size": 2, "dim": 4}
    level = {"width": 8, "encoder_blocks": 1, "decoder_blocks": 1, "quantizer": quantized}
    levels = [{**level, "map": maps[0]}, {**level, "map": maps[1], "decoder": decoder}]
    transformer = {"depth": 1, "dim": 8, "heads": 2}
    settings = {
        "stack": {"levels": levels},
        "prior": transformer | prior,
        "refiners": [transformer | refiner for refiner in refiners],
        "unified": family == "unified",
        "image_shape": shape,
        "values": 2,
        "classes": classes,
    }
    model = HierarchicalModel(ModelSettings.model_validate(settings)).eval()
    return randomised(model, 0.5)


# Quantizers.


def test_a_residual_code_is_the_nearest_to_what_is_left():
    book = quantizer("residual")
    vectors = torch.randn(2, 6, 3, 2)
    codes, left = book.encode(vectors), vectors.clone()
    assert codes.shape == (2, 3, 3, 2)
    for place, rows in enumerate(book.codebook().split(4)):
        distances = (left[..., None] - rows.T[:, None, None]).square().sum(1)
        assert torch.equal(codes[:, place], distances.argmin(-1))
        left = left - rows[codes[:, place]].movedim(-1, 1)
    torch.testing.assert_close(book.lookup(codes), vectors - left)


def test_product_codes_are_the_nearest_of_all_combinations():
    book = quantizer("product")
    vectors = torch.randn(2, 6, 5)
    every = every_map((3, 1), 4)
    distances = (vectors[:, None] - book.lookup(every)[None]).square().sum(2)
    assert torch.equal(book.encode(vectors), every[distances.argmin(1), :, 0].mT)


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_codes_are_the_sum_of_fewer_rows(kind):
    book, codes = quantizer(kind), torch.randint(4, (2, 3, 5))
    rows = book.codebook().split(4)
    for count in (1, 2, 3):
        wanted = sum(rows[place][codes[:, place]] for place in range(count)).movedim(-1, 1)
        torch.testing.assert_close(book.lookup(codes, count), wanted)
    with pytest.raises(InputError):
        book.lookup(codes[:, :2])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_straight_and_codebooks_learn(kind):
    book = quantizer(kind).train()
    vectors, weights = torch.randn(8, 6, 4, requires_grad=True), torch.randn(8, 6, 4)
    before = book.codebook().clone()
    out = book(vectors)
    (out.vectors * weights).sum().backward()
    torch.testing.assert_close(vectors.grad, weights)
    assert not torch.equal(book.codebook(), before)
    assert out.codes.shape == (8, 3, 4) and out.loss > 0


@pytest.mark.parametrize("kind", KINDS)
def test_more_codes_come_nearer_once_they_have_learned(kind):
    """Of vectors with the noise of real ones: k-means has seen them, each code leaves less over."""
    book = quantizer(kind, size=8).train()
    vectors = torch.randn(16, 6, 8) * torch.tensor([3.0, 1, 2, 1, 2, 1])[:, None]
    book(vectors)
    codes = book.eval().encode(vectors)
    errors = [(book.lookup(codes, count) - vectors).square().mean() for count in (1, 2, 3)]
    assert errors == sorted(errors, reverse=True)


def test_usage_is_that_of_each_codebook():
    book, codes = quantizer("residual"), torch.tensor([[[0, 0], [1, 2], [3, 3]]])
    counts = book.counts(codes)
    assert counts.tolist() == [[2, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 2]]
    assert usage(counts).share == 4 / 12 and usage(counts).perplexity == pytest.approx((1 + 2 + 1) / 3)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "vq", "codes": 2},
        {"kind": "residual", "codes": 1},
        {"kind": "product", "codes": 3, "dim": 32},
        {"kind": "residual", "codes": 2, "gradient": "rotation"},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValueError):
        QuantizerSettings(**settings)


# Distributions.


def chain(sites=(2, 3), codes=3, size=4):
    """A distribution over maps whose codes of a site depend on each other."""
    torch.manual_seed(1)
    head = ChainHead(codes, size, 8)
    randomised(head.network, 0.7)
    return head(torch.randn(5, 8, *sites))


@torch.no_grad()
def test_the_factors_are_the_likelihood():
    distribution = chain()
    values = torch.randint(4, (5, 3, 2, 3))
    torch.testing.assert_close(walked_log_prob(distribution, values), distribution.log_prob(values))


@torch.no_grad()
def test_a_code_depends_on_those_before_it_alone():
    distribution, values = chain(), torch.randint(4, (5, 18))
    tables = [factor.log_probs.clone() for factor in distribution.factors(values)]
    for changed in range(3):
        other = values.clone()
        other[:, changed * 6 : changed * 6 + 6] = (other[:, changed * 6 : changed * 6 + 6] + 1) % 4
        for place, factor in enumerate(distribution.factors(other)):
            assert torch.equal(factor.log_probs, tables[place]) == (place <= changed)


@torch.no_grad()
def test_samples_have_the_frequencies_of_their_probabilities():
    distribution = chain(sites=(1,), codes=2, size=2)
    count = 4000
    one = type(distribution)(distribution.network, distribution.features[:1].mT.expand(count, -1, -1))
    drawn = one.sample(noise(0, range(count), 1, 2))
    for value in every_map((2, 1), 2):
        share = (drawn == value).flatten(1).all(1).double().mean().item()
        p = distribution.log_prob(value.expand(5, -1, -1))[0].exp().item()
        assert abs(share - p) < 5 * (p * (1 - p) / count) ** 0.5 + 1e-9


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_everything_sums_to_one(family, kind):
    model = world(family, kind)
    assert model.stack.map_shapes == [(2, 2, 1), (2, 1, 1)]
    assert total(model) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_codec_gives_back_every_code_in_the_bits_of_the_ledger(family):
    model = world(family, maps=((4, 4), (2, 2)), shape=(1, 8, 8))
    assert_coded(model, torch.randint(2, (4, 1, 8, 8), dtype=torch.uint8), torch.tensor([1, 0, 0, 1]))


@torch.no_grad()
def test_a_refiner_starts_as_the_decoder():
    model = world(maps=((4, 4), (2, 2)), shape=(1, 8, 8))
    refiner = model.refiner(2)
    torch.nn.init.zeros_(refiner.to_logits.weight)
    torch.nn.init.zeros_(refiner.to_logits.bias)
    refiner.start_from(model.stack.level(2).head)
    lower, upper = torch.randint(2, (3, 2, 4, 4)), torch.randint(2, (3, 2, 2, 2))
    labels = torch.tensor([0, 1, 1])
    alone = model.conditional(2, upper, labels, refined=False).log_prob(lower)
    torch.testing.assert_close(model.conditional(2, upper, labels).log_prob(lower), alone)


@torch.no_grad()
def test_known_codes_of_a_site_are_kept():
    model = world(maps=((4, 4), (2, 2)), shape=(1, 8, 8), classes=0)
    given = torch.zeros(6, 2, 2, 2, dtype=torch.bool)
    given[:, 0] = True  # the first code of every site
    values = torch.randint(2, given.shape)
    drawn = model.sample(6, known={2: Known(values, given)})
    assert torch.equal(drawn.codes[2][:, 0], values[:, 0])
    assert not torch.equal(drawn.codes[2][:, 1], values[:, 1])


# A run.


def test_a_run_stores_chains_and_takes_them_up_again(tmp_path):
    several = {"kind": "residual", "codes": 2, "codebook_size": 4, "dim": 8}
    fit = {"steps": 6, "batch_size": 16, "evaluate_every": 3}
    config = RunConfig.model_validate(
        {
            "levels": [
                {"map": [2, 2], "width": 8, "quantizer": several},
                {"map": [1, 1], "width": 8, "quantizer": several},
            ],
            "train_levels": [fit],
            "refiners": [{"level": 2, "depth": 1, "dim": 8, "heads": 2, "corruption": 0.5}],
            "train_refiners": [fit],
            "prior": {"depth": 1, "dim": 8, "heads": 2},
            "train_prior": fit,
        }
    )
    trained(config, tmp_path / "run")
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text("utf-8"))["test"]
    rows = {row["row"]: row for row in ledger["rows"]}
    assert rows["prior"]["dims"] == 2 and rows["level-2"]["dims"] == 8
    assert ledger["bits"] == pytest.approx(sum(row["bits"] for row in rows.values()))
    encode.main([str(tmp_path / "run"), "--out", str(tmp_path / "codes")])
    stored = CodeDataset(tmp_path / "codes")
    assert stored.map_shapes == [(2, 2, 2), (2, 1, 1)]
