"""Maps of one, two and three axes, and values past 255: the laws that hold for images hold for all of them."""

import itertools
from math import prod

import numpy as np
import pytest
import torch
from helpers import assert_coded, toy, trained

from vqstack.codec.coder import Decoder, Encoder, code
from vqstack.codes import CodeDataset
from vqstack.commands import encode, generate
from vqstack.errors import InputError
from vqstack.images import load_splits
from vqstack.likelihood import Draw, LogisticMixture, Near, noise, walked_log_prob
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings
from vqstack.nets import fold, unfold
from vqstack.schedule import Schedule, advance

SIGNALS = {
    "series": {"image_shape": (1, 16), "maps": [(8,), (2,)], "values": 2**16},
    "stereo": {"image_shape": (2, 16), "maps": [(8,), (4,)], "values": 2**12},
    "image": {"image_shape": (3, 4, 8), "maps": [(4, 4), (2, 1)], "values": 256},
    "volume": {"image_shape": (1, 4, 4, 6), "maps": [(2, 2, 3), (1, 1, 1)], "values": 16},
    "deep volume": {"image_shape": (1, 2, 4, 4), "maps": [(1, 2, 2), (1, 1, 2)], "values": 300},
}
PRIORS = {"raster": {}, "diagonals": {"wavefront": 2, "window": 1}, "masked": {"family": "masked", "groups": 3}}
DECODERS = {
    "product": {},
    "window": {"family": "window", "radius": 2, "slope": 1, "width": 6, "features": 4},
    "adaptive": {"family": "window", "radius": 2, "width": 6, "features": 4, "adaptive": True},
    "tiles": {"family": "window", "radius": 1, "width": 6, "features": 4},
}


def build(image_shape, maps, values, decoder=(), prior=(), refiners=(), classes=3):
    """A model with random weights, its predictions far from uniform."""
    torch.manual_seed(5)
    level = {"width": 8, "encoder_blocks": 1, "decoder_blocks": 1, "decoder": dict(decoder)}
    quantizer = {"codebook_size": 6, "dim": 4}
    model = HierarchicalModel(
        ModelSettings.model_validate(
            {
                "stack": {
                    "levels": [{**level, "map": one, "quantizer": quantizer} for one in maps],
                    "pixels": {"components": 3},
                },
                "prior": {"depth": 1, "dim": 8, "heads": 2, **dict(prior)},
                "refiners": [{"depth": 1, "dim": 8, "heads": 2, **refiner} for refiner in refiners],
                "image_shape": image_shape,
                "values": values,
                "classes": classes,
            }
        )
    ).eval()
    for part in model.parts:
        torch.nn.init.normal_(part.to_logits.weight, std=0.3)
    for level in model.stack.levels:
        if decoder:
            torch.nn.init.normal_(level.decoder.window.leave.weight, std=0.1)
    return model


def inputs(signal, count):
    return torch.randint(signal["values"], (count, *signal["image_shape"])).to(
        torch.uint8 if signal["values"] <= 256 else torch.int32
    )


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 2)], ids=str)
def test_what_is_folded_comes_back_patch_by_patch(shape):
    scale = tuple(range(2, 2 + len(shape)))
    below = torch.randn(2, 3, *(n * s for n, s in zip(shape, scale, strict=True)))
    folded = fold(below, scale)
    assert folded.shape == (2, 3 * prod(scale), *shape) and unfold(folded, scale).equal(below)
    first = below[(slice(None), slice(None), *(slice(s) for s in scale))]
    assert folded[(..., *(0 for _ in shape))].equal(first.flatten(1))


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("slope", [1, 2, 3])
def test_a_wavefront_reaches_every_site_after_its_neighbours(shape, slope):
    schedule = Schedule.wavefront(shape, slope)
    places = torch.tensor(list(itertools.product(*map(range, shape))))
    assert schedule.order.sort().values.equal(torch.arange(prod(shape)))
    for one, place in enumerate(places):
        for axis in range(len(shape)):
            before = place.clone()
            before[axis] -= 1
            if before[axis] >= 0:
                number = int((places == before).all(1).nonzero())
                assert schedule.group[number] < schedule.group[one]
    steps = advance(places, slope)
    assert len(schedule) == len(steps.unique()) and (steps.argsort().diff() != 0).all()


@pytest.mark.parametrize("decoder", DECODERS, ids=str)
@pytest.mark.parametrize("prior", PRIORS, ids=str)
@pytest.mark.parametrize("name", SIGNALS, ids=str)
@torch.inference_mode()
def test_one_pass_says_what_the_walk_says(name, prior, decoder):
    signal, chosen = SIGNALS[name], dict(DECODERS[decoder])
    if decoder == "adaptive" and signal["values"] <= 32:
        pytest.skip("no logistics")
    if decoder == "tiles":
        chosen["tile"] = tuple(2 if n % 2 == 0 else 0 for n in signal["maps"][0])
    model = build(**{**signal, "maps": signal["maps"][:1]}, decoder=chosen, prior=PRIORS[prior])
    pixels, labels = inputs(signal, 3), torch.tensor([0, 1, 2])
    (codes,) = model.encode(pixels)
    assert codes.shape == (3, *signal["maps"][0])
    values = model.values(pixels, [codes], labels)
    for term in model.terms()[1:]:  # the label has no sites
        found = term.distribution(values, 3)
        if found.size > 2**12:
            continue  # a table of every value is what the codec, below, does without
        wanted = walked_log_prob(found, values[term.target.name])
        assert found.log_prob(values[term.target.name]).allclose(wanted, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", SIGNALS, ids=str)
def test_samples_are_the_same_in_any_batch_and_refined_or_varied(name):
    signal = SIGNALS[name]
    refiners = [{"level": 2, "groups": 3, "labels": True}, {"level": 1, "wavefront": 1, "window": 1}]
    model = build(**signal, refiners=refiners)
    labels = torch.tensor([0, 2, 1])
    together = model.sample(3, labels, seed=4)
    alone = model.sample(1, labels[1:2], seed=4, first=1)
    assert together.pixels[1:2].equal(alone.pixels) and together.codes[1][1:2].equal(alone.codes[1])
    assert together.pixels.shape == (3, *signal["image_shape"])
    assert model.vary(together.codes[2], 2, labels, seed=9).codes[2].equal(together.codes[2])
    shown = model.decode(together.codes[2], 2)
    assert shown.shape == together.pixels.shape and shown.dtype == together.pixels.dtype


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("decoder", ["product", "window"])
@pytest.mark.parametrize("name", SIGNALS, ids=str)
def test_the_codec_gives_back_every_value_in_the_bits_of_the_ledger(name, decoder, portable):
    model = build(**SIGNALS[name], decoder=DECODERS[decoder])
    assert_coded(model, inputs(SIGNALS[name], 4), torch.tensor([1, 1, 0, 2]), portable)


def test_values_past_255_add_up_to_one_and_are_drawn_as_often_as_their_probability():
    torch.manual_seed(3)
    mixture = LogisticMixture(torch.randn(1, 9, 1), 1, 2000)
    every = torch.arange(2000, dtype=torch.int32)
    logs = torch.stack([mixture.log_prob(v.view(1, 1, 1)) for v in every])[:, 0]
    assert float(logs.double().exp().sum()) == pytest.approx(1, abs=1e-5)
    (factor,) = mixture.factors(torch.zeros(1, 1, dtype=torch.int64))
    assert factor.log_probs[0, 0].allclose(logs, atol=1e-3)
    cumulated = logs.double().exp().cumsum(0)
    for u in torch.rand(50, dtype=torch.float64):
        drawn = factor.draw(u.view(1, 1), Draw())
        by_table = int((cumulated <= u).sum())
        assert abs(int(drawn) - by_table) <= 1  # the table is of float32
    assert int(factor.draw(None, Draw(mode=True))) == int(logs.argmax())


def test_a_series_on_a_parabola_is_foretold():
    t = torch.arange(8.0)
    values = 0.01 * t * t + 0.1 * t - 0.3
    near = Near(1, 3, lambda step: values[None, None, 3 + step : 8 + step])
    last, line, parabola = near.predictions()
    assert parabola.flatten().allclose(values[3:], atol=1e-5) and not line.flatten().allclose(values[3:], atol=1e-3)
    assert last.flatten().equal(values[2:7])


def test_a_volume_that_is_a_sum_of_planes_is_foretold():
    d, h, w = torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij")
    values = 0.1 * d * h - 0.2 * h * w + 0.3 * d * w + 0.01 * d
    near = Near(3, 1, lambda a, b, c: values[None, None, 1 + a : 4 + a, 1 + b : 4 + b, 1 + c : 4 + c])
    assert near.predictions()[-1][0, 0].allclose(values[1:, 1:, 1:], atol=1e-5)


def test_maps_of_other_numbers_of_axes_are_refused():
    with pytest.raises(InputError, match="axes"):
        build((1, 16), [(4, 4)], 256)
    with pytest.raises(InputError, match="adaptive"):
        build((1, 16), [(4,)], 2**16, decoder={"family": "window", "radius": 1, "adaptive": True})
    with pytest.raises(InputError, match="tile"):
        build((1, 16), [(4,)], 256, decoder={"family": "window", "tile": (2, 2)})


@torch.inference_mode()
def test_a_coded_value_costs_what_its_probability_says():
    torch.manual_seed(8)
    mixture = LogisticMixture(torch.randn(5, 9, 40), 1, 2**16)
    values = mixture.sample(noise(0, range(5), 0, 40))
    encoder = Encoder()
    assert code(encoder, mixture, 5, values.flatten(1).long()).equal(values.flatten(1).long())
    encoder.cut()
    decoded = code(Decoder(b"".join(encoder.sections())), mixture, 5, None)
    assert decoded.equal(values.flatten(1).long())
    encoder.mark("all")
    bits = -float(mixture.log_prob(values).sum()) / 0.6931471805599453
    assert encoder.bits["all"] == pytest.approx(bits, rel=0.002)


@pytest.mark.parametrize(
    ("size", "channels", "values", "maps"),
    [((8, 4, 4), 1, 256, [(4, 2, 2), (1, 1, 1)]), ((32,), 3, 2**12, [(8,)]), ((8, 8), 5, 2**10, [(4, 4)])],
    ids=["volumes", "series", "five channels of ten bits"],
)
def test_a_run_on_arrays_of_any_shape(size, channels, values, maps, tmp_path, monkeypatch):
    monkeypatch.setenv("VQSTACK_CACHE", str(tmp_path / "cache"))
    numbers = np.random.default_rng(0).integers(0, values, (40, channels, *size), dtype=np.uint16)
    np.save(tmp_path / "all.npy", numbers)
    data = {"source": "array", "files": {"train": str(tmp_path / "all.npy")}, "size": size, "channels": channels}
    data |= {"values": values, "validation": 8, "test": 8}
    config = toy(data, *maps, augment={"shift": 1} if len(size) == 3 else {})
    model = trained(config, tmp_path / "run")
    assert any(path.name.startswith("level-1") for path in (tmp_path / "run" / "samples").iterdir())
    generate.main([str(tmp_path / "run"), "--num", "2", "--out", str(tmp_path / "drawn")])
    stored = np.load(tmp_path / "drawn" / "000001.npy")
    assert np.array_equal(stored, model.sample(2).pixels[1].numpy())
    encode.main([str(tmp_path / "run"), "--out", str(tmp_path / "codes")])
    codes = next(CodeDataset(tmp_path / "codes").blocks("test")).codes
    test = load_splits(config.data, ["test"])["test"].pixels
    assert all(one.equal(other) for one, other in zip(codes, model.encode(test), strict=True))
