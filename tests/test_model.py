"""The whole model on worlds small enough to enumerate: every image, every code map, every label."""

import itertools
import math

import pytest
import torch

from vqstack.code_model import CodeModelSettings
from vqstack.errors import InputError
from vqstack.ledger import Ledger
from vqstack.level import LevelSettings
from vqstack.likelihood import PixelSettings
from vqstack.model import HierarchicalModel, ModelSettings, SamplingSettings
from vqstack.quantizer import QuantizerSettings
from vqstack.stack import StackSettings

KINDS = {"vq": (3, 2), "cosine": (3, 2), "fsq": (3, 3), "lfq": (4, 2), "simvq": (3, 2)}


def tiny(
    kind="vq", *, shape=(1, 2, 1), values=2, classes=2, pad_to=None, maps=((2, 1), (1, 1)), pixels="auto", sampling=None
):
    """Two levels of tiny codebooks; every weight is drawn from a normal distribution."""
    levels = tuple(
        LevelSettings(
            map=m, width=8, encoder_blocks=1, decoder_blocks=1, quantizer={"kind": kind, "codebook_size": k, "dim": 3}
        )
        for m, k in zip(maps, KINDS[kind], strict=True)
    )
    settings = ModelSettings(
        stack=StackSettings(levels=levels, pixels=PixelSettings(kind=pixels, components=2), pad_to=pad_to),
        prior=CodeModelSettings(depth=1, dim=8, heads=2),
        sampling=sampling or SamplingSettings(),
        image_shape=shape,
        values=values,
        classes=classes,
    )
    model = HierarchicalModel(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    if classes:
        model.count_labels(torch.tensor([0] * 3 + [1] * 7))
    return model


def all_maps(shape, size, dtype=torch.int64):
    """Every map of a shape: [size ** sites, *shape]."""
    return torch.tensor(list(itertools.product(range(size), repeat=math.prod(shape))), dtype=dtype).view(-1, *shape)


def everything(model):
    """Every (y, [z_1 … z_L], label) of a model's world, as one batch."""
    stack = model.stack
    worlds = [all_maps(stack.shape, stack.values, torch.uint8)]
    worlds += [all_maps(m, k) for m, k in zip(stack.map_shapes, stack.codebook_sizes, strict=True)]
    worlds.append(torch.arange(max(model.classes, 1)))
    index = torch.cartesian_prod(*(torch.arange(len(world)) for world in worlds))
    pixels, *codes, labels = (world[i] for world, i in zip(worlds, index.unbind(1), strict=True))
    return pixels, codes, labels if model.classes else None


@torch.no_grad()
def total(model):
    return model.joint_log_prob(*everything(model)).exp().sum().item()


@torch.no_grad()
def total_of_encoded(model):
    """Kraft's sum: code lengths with z = enc(y), over all images and labels."""
    pixels = all_maps(model.stack.shape, model.stack.values, torch.uint8).repeat(max(model.classes, 1), 1, 1, 1)
    labels = torch.arange(model.classes).repeat_interleave(len(pixels) // model.classes) if model.classes else None
    return model.joint_log_prob(pixels, model.encode(pixels), labels).exp().sum().item()


@pytest.mark.parametrize("kind", KINDS)
def test_everything_sums_to_one(kind):
    model = tiny(kind)
    assert total(model) == pytest.approx(1, abs=1e-6)
    assert 0 < total_of_encoded(model) <= 1 + 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": 0},
        {"pad_to": (2, 3), "maps": ((2, 1), (1, 1))},
        {"shape": (1, 1, 2), "pad_to": (2, 2), "maps": ((1, 2), (1, 1))},
        {"values": 3},
        {"values": 3, "pixels": "logistic_mixture"},
        {"shape": (3, 1, 1), "pixels": "logistic_mixture", "values": 3, "pad_to": (2, 1)},
        {"maps": ((1, 1), (1, 1))},
        {"maps": ((2, 1), (2, 1))},
    ],
    ids=str,
)
def test_other_worlds_sum_to_one(changes):
    model = tiny(**changes)
    assert total(model) == pytest.approx(1, abs=1e-6)
    assert 0 < total_of_encoded(model) <= 1 + 1e-6


@torch.no_grad()
def test_the_ledger_is_the_sum_of_its_rows():
    model = tiny(shape=(1, 4, 4), values=5, maps=((2, 2), (1, 2)))
    pixels = torch.randint(0, 5, (6, 1, 4, 4), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 1, 0, 1, 1])
    one, two = model.encode(pixels)
    apart = {
        "label": -torch.tensor([4 / 12, 8 / 12])[labels].log(),
        "prior": -model.prior.log_prob(two, labels),
        "level-2": -model.stack.level(2).decode(two).log_prob(one),
        "level-1": -model.stack.level(1).decode(one).log_prob(pixels),
    }
    ledger = model.ledger(pixels, labels)
    assert list(ledger.rows) == list(apart)
    for name, nats in apart.items():
        assert ledger.rows[name].nats == pytest.approx(nats.sum().item(), rel=1e-5)
    assert [row.dims for row in ledger.rows.values()] == [1, 2, 4, 16]
    whole = -model.joint_log_prob(pixels, [one, two], labels).mean().item() / math.log(2)
    assert ledger.bits == pytest.approx(whole, rel=1e-6)
    assert ledger.bits_per_dim == pytest.approx(whole / 16, rel=1e-6)
    halves = model.ledger(pixels[:2], labels[:2]).merge(model.ledger(pixels[2:], labels[2:]))
    assert isinstance(halves, Ledger)
    assert (halves.count, halves.bits) == (6, pytest.approx(ledger.bits, rel=1e-5))


def test_batch_size_does_not_matter():
    model = tiny(shape=(1, 4, 4), values=5, maps=((2, 2), (1, 2)))
    together = model.sample(8, seed=3)
    alone = [model.sample(1, seed=3, first=i) for i in range(8)]
    assert torch.equal(together.pixels, torch.cat([x.pixels for x in alone]))
    assert torch.equal(together.labels, torch.cat([x.labels for x in alone]))
    for level in (1, 2):
        assert torch.equal(together.codes[level], torch.cat([x.codes[level] for x in alone]))
    assert not torch.equal(together.pixels, model.sample(8, seed=4).pixels)
    assert len(together.pixels.unique(dim=0)) > 1


@pytest.mark.parametrize("kind", ["vq", "lfq"])
def test_frequencies_of_samples(kind):
    """20,000 samples of (y, z_1, z_2, label) against the enumerated probabilities."""
    model, num = tiny(kind), 20_000
    pixels, codes, labels = everything(model)
    with torch.no_grad():
        p = model.joint_log_prob(pixels, codes, labels).exp()

    def names(pixels, codes, labels):
        return [
            tuple(row)
            for row in torch.cat([pixels.flatten(1), *(z.flatten(1) for z in codes), labels[:, None]], 1).tolist()
        ]

    place = {name: i for i, name in enumerate(names(pixels, codes, labels))}
    sample = model.sample(num, seed=1)
    drawn = names(sample.pixels, [sample.codes[1], sample.codes[2]], sample.labels)
    counts = torch.bincount(torch.tensor([place[name] for name in drawn]), minlength=len(p))
    assert (counts / num - p).abs().max() < 0.015
    expected = num * p
    big = expected > 5
    squares = ((counts - expected).square() / expected)[big].sum().item()
    degrees = int(big.sum())
    assert squares < degrees + 5 * math.sqrt(2 * degrees) + 5


def test_variations_keep_the_codes_of_the_level():
    model = tiny(shape=(1, 4, 4), values=5, maps=((2, 2), (1, 2)))
    top = model.encode(torch.randint(0, 5, (5, 1, 4, 4), dtype=torch.uint8))[1]
    sample = model.vary(top, 2, seed=1)
    assert torch.equal(sample.codes[2], top)
    assert sorted(sample.codes) == [1, 2]
    assert not torch.equal(sample.pixels, model.vary(top, 2, seed=2).pixels)
    below = model.vary(sample.codes[1], 1, seed=1)
    assert torch.equal(below.codes[1], sample.codes[1])
    assert torch.equal(below.pixels, sample.pixels)  # pixels of image i of seed 1 are drawn with the same noise
    for level in (0, 3):
        with pytest.raises(InputError, match=f"level {level} does not exist"):
            model.vary(top, level)


def test_wrong_labels_are_refused():
    model = tiny()
    pixels = torch.zeros(2, 1, 2, 1, dtype=torch.uint8)
    with pytest.raises(InputError, match="conditional on the class"):
        model.ledger(pixels)
    for wrong in (2, -1):
        labels = torch.tensor([1, wrong])
        with pytest.raises(InputError, match=f"label {wrong} is out of range: this model knows 0 … 1"):
            model.ledger(pixels, labels)
        with pytest.raises(InputError, match=f"label {wrong} is out of range"):
            model.sample(2, labels)
    free = tiny(classes=0)
    assert free.sample(2, torch.tensor([7, 7])).labels is None
    assert "label" not in free.ledger(pixels, torch.tensor([7, 7])).rows


def test_wanted_labels_are_used():
    assert tiny().sample(3, torch.tensor([1, 0, 1])).labels.tolist() == [1, 0, 1]


def test_a_prior_without_labels():
    settings = tiny().settings
    model = HierarchicalModel(
        settings.model_copy(update={"prior": CodeModelSettings(depth=1, dim=8, heads=2, labels=False)})
    )
    assert model.classes == 0
    assert list(model.ledger(torch.zeros(1, 1, 2, 1, dtype=torch.uint8), torch.tensor([1])).rows) == [
        "prior",
        "level-2",
        "level-1",
    ]


def test_sampling_settings_one_or_one_a_level():
    draws = SamplingSettings(temperature=(0.5,), top_k=(0, 2, 3), mode=(False, True, False)).draws(2)
    assert [d.temperature for d in draws] == [0.5, 0.5, 0.5]
    assert [d.top_k for d in draws] == [None, 2, 3]
    assert [d.mode for d in draws] == [False, True, False]
    top = torch.full((4, 1, 1), 1)
    given = SamplingSettings(mode=(False, True, True))
    assert len(tiny().vary(top, 2, sampling=given).pixels.unique(dim=0)) == 1  # everything below level 2 by its mode


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": (1.0, 1.0)}, "temperature takes one value or 3"),
        ({"top_p": (1.0,) * 4}, "top_p takes one value or 3"),
        ({"temperature": (0.0,)}, "temperature 0.0 is not above 0"),
        ({"temperature": (1.0, -1.0, 1.0)}, "temperature -1.0 is not above 0"),
        ({"temperature": (math.nan,)}, "temperature nan is not above 0"),
        ({"top_k": (-1,)}, "top_k -1 is negative"),
        ({"top_p": (0.0,)}, "top_p 0.0 is outside"),
        ({"top_p": (1.5,)}, "top_p 1.5 is outside"),
        ({"mode": ()}, "mode takes one value or 3"),
    ],
    ids=str,
)
def test_wrong_sampling_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        tiny().sample(1, sampling=SamplingSettings(**settings))


def test_quantizer_settings_are_checked():
    with pytest.raises(ValueError, match="power of two"):
        QuantizerSettings(kind="lfq", codebook_size=3)
