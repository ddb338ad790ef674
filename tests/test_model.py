"""The whole model on worlds small enough to enumerate: every image, every code map, every label."""

import json
import math
import re

import pytest
import torch
from helpers import every_map, every_world, randomised

from vqstack.code_model import CodeModelSettings, RefinerSettings
from vqstack.errors import InputError
from vqstack.evaluation import Leak, leaks, upper_share
from vqstack.ledger import Ledger
from vqstack.level import LevelSettings
from vqstack.likelihood import Draw, Known, PixelSettings, noise
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings, SamplingSettings
from vqstack.stack import StackSettings

KINDS = {"vq": (3, 2), "cosine": (3, 2), "fsq": (3, 3), "lfq": (4, 2), "simvq": (3, 2)}


def tiny(
    kind="vq",
    *,
    shape=(1, 2, 1),
    values=2,
    classes=2,
    pad_to=None,
    maps=((2, 1), (1, 1)),
    pixels="auto",
    sampling=None,
    refiners=(),
    unified=False,
    sizes=None,
    condition_of=None,
    **prior,
):
    """Two levels of tiny codebooks; every weight is drawn from a normal distribution."""
    levels = tuple(
        LevelSettings(
            map=m, width=8, encoder_blocks=1, decoder_blocks=1, quantizer={"kind": kind, "codebook_size": k, "dim": 3}
        )
        for m, k in zip(maps, sizes or KINDS[kind][: len(maps)], strict=True)
    )
    settings = ModelSettings(
        stack=StackSettings(levels=levels, pixels=PixelSettings(kind=pixels, components=2), pad_to=pad_to),
        prior=CodeModelSettings(**{"depth": 1, "dim": 8, "heads": 2, **prior}),
        refiners=tuple(RefinerSettings(depth=1, dim=8, heads=2, **refiner) for refiner in refiners),
        unified=unified,
        sampling=sampling or SamplingSettings(),
        image_shape=shape,
        values=values,
        classes=classes,
        condition=condition_of,
    )
    model = HierarchicalModel(settings).eval()
    randomised(model, 0.5)
    if classes:
        model.count_labels(torch.tensor([0] * 3 + [1] * 7))
    return model


def everything(model):
    """Every (y, [z_1 … z_L], label) of a model's world, as one batch."""
    stack = model.stack
    worlds = [every_map(stack.shape, stack.values, torch.uint8)]
    worlds += [every_map(m, k) for m, k in zip(stack.map_shapes, stack.codebook_sizes, strict=True)]
    worlds.append(torch.arange(max(model.classes, 1)))
    pixels, *codes, labels = every_world(*worlds)
    return pixels, codes, labels if model.classes else None


@torch.no_grad()
def total(model):
    return model.joint_log_prob(*everything(model)).exp().sum().item()


@torch.no_grad()
def total_of_encoded(model):
    """Kraft's sum: code lengths with z = enc(y), over all images and labels."""
    pixels = every_map(model.stack.shape, model.stack.values, torch.uint8).repeat(max(model.classes, 1), 1, 1, 1)
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
        "prior": -model.prior.log_prob(two, {"label": labels}),
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
        with pytest.raises(InputError, match=f"level: {level} is no whole number from 1 to 2"):
            model.vary(top, level)


def test_labels_are_given_where_classes_are_known():
    model = tiny()
    pixels = torch.zeros(2, 1, 2, 1, dtype=torch.uint8)
    with pytest.raises(InputError, match="conditional on the class"):
        model.ledger(pixels)
    free = tiny(classes=0)
    assert free.sample(2).labels is None
    assert "label" not in free.ledger(pixels, free.labels_read(torch.tensor([7, 7]))).rows


def test_a_prior_without_labels():
    settings = tiny().settings
    model = HierarchicalModel(
        settings.model_copy(update={"prior": CodeModelSettings(depth=1, dim=8, heads=2, labels=False)})
    )
    assert model.classes == 0
    assert list(model.ledger(torch.zeros(1, 1, 2, 1, dtype=torch.uint8)).rows) == ["prior", "level-2", "level-1"]


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
        ({"temperature": (1.0, 1.0)}, "temperature: 2 values: give one, or 3"),
        ({"top_p": (1.0,) * 4}, "top_p: 4 values: give one, or 3"),
        ({"temperature": (0.0,)}, "temperature: 0.0 is below 0.001"),
        ({"temperature": (1.0, -1.0, 1.0)}, "temperature: -1.0 is below 0.001"),
        ({"top_k": (-1,)}, "top_k: -1 is negative"),
        ({"top_p": (0.0,)}, "top_p: 0.0 is outside"),
        ({"top_p": (1.5,)}, "top_p: 1.5 is outside"),
        ({"mode": ()}, "mode: 0 values: give one, or 3"),
    ],
    ids=str,
)
def test_wrong_sampling_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        tiny().sample(1, sampling=SamplingSettings(**settings))


# Refiners.

FAMILIES = ("autoregressive", "masked")


def refined(*families, groups=2, **changes):
    """Both levels refined: families and groups of level 1, level 2."""
    both = [{"level": n, "family": f, "groups": groups, **changes} for n, f in enumerate(families, start=1)]
    return {"refiners": both}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("groups", [0, 1, 2])
@pytest.mark.parametrize("labels", [False, True])
def test_everything_sums_to_one_with_refiners(family, groups, labels):
    model = tiny(**refined(family, family, groups=groups, labels=labels), family=family, groups=groups)
    assert total(model) == pytest.approx(1, abs=1e-6)
    assert 0 < total_of_encoded(model) <= 1 + 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": 0},
        {"pad_to": (2, 3)},
        {"shape": (1, 1, 2), "pad_to": (2, 2), "maps": ((1, 2), (1, 1))},
        {"values": 3, "pixels": "logistic_mixture"},
        {"shape": (3, 1, 1), "pixels": "logistic_mixture", "values": 3, "pad_to": (2, 1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_refined_worlds_sum_to_one(family, changes):
    model = tiny(**refined("masked", family), **changes)
    assert total(model) == pytest.approx(1, abs=1e-6)


@torch.no_grad()
def test_a_class_that_only_a_refiner_reads_has_its_row():
    model = tiny(**refined("masked", "masked", labels=True), labels=False)
    assert model.classes == 2
    assert total(model) == pytest.approx(1, abs=1e-6)
    assert next(iter(model.ledger(torch.zeros(1, 1, 2, 1, dtype=torch.uint8), torch.tensor([1])).rows)) == "label"


@torch.no_grad()
def test_rows_of_decoders_and_of_refiners():
    model = tiny(shape=(1, 4, 4), values=5, maps=((2, 2), (1, 2)), refiners=[{"level": 2, "groups": 2}])
    pixels, labels = torch.randint(0, 5, (6, 1, 4, 4), dtype=torch.uint8), torch.randint(0, 2, (6,))
    one, two = model.encode(pixels)
    refined, decoded = (model.code_lengths(pixels, [one, two], labels, refined=r) for r in (True, False))
    assert list(refined) == list(decoded)
    for row in ("label", "prior", "level-1"):
        assert torch.equal(refined[row], decoded[row])
    torch.testing.assert_close(decoded["level-2"], -model.stack.level(2).decode(two).log_prob(one))
    assert not torch.equal(refined["level-2"], decoded["level-2"])
    torch.testing.assert_close(refined["level-2"], -model.conditional(2, two).log_prob(one))


@pytest.mark.parametrize("families", [FAMILIES, FAMILIES[::-1]], ids=str)
def test_batch_size_does_not_matter_to_refiners(families):
    world = {"shape": (1, 4, 4), "values": 5, "maps": ((2, 2), (1, 2))}
    model = tiny(**world, **refined(*families, groups=3, labels=True, label_dropout=0.1), label_dropout=0.1)
    sampling = SamplingSettings(guidance=(2.0,))
    together = model.sample(8, seed=3, sampling=sampling)
    alone = [model.sample(1, seed=3, first=i, sampling=sampling) for i in range(8)]
    assert torch.equal(together.pixels, torch.cat([x.pixels for x in alone]))
    assert not torch.equal(together.pixels, model.sample(8, seed=3).pixels)


@torch.no_grad()
def test_samples_follow_the_refiners():
    model = tiny(**refined("autoregressive", "masked", labels=True))
    pixels, codes, labels = everything(model)
    exact = torch.zeros(4).index_add(0, _number(pixels), model.joint_log_prob(pixels, codes, labels).exp().float())
    drawn = torch.bincount(_number(model.sample(20000, seed=1).pixels), minlength=4) / 20000
    assert ((drawn - exact).abs() < 5 * (exact * (1 - exact) / 20000).sqrt()).all()


def _number(pixels):
    return (pixels.flatten(1).long() * torch.tensor([2, 1])).sum(1)


def test_known_pixels_and_codes_are_kept():
    model = tiny(shape=(1, 4, 4), values=5, maps=((2, 2), (1, 2)), refiners=[{"level": 1, "family": "masked"}])
    pixels, codes = torch.randint(0, 5, (6, 1, 4, 4), dtype=torch.uint8), torch.randint(0, 3, (6, 2, 2))
    known = {0: Known(pixels, torch.rand(6, 1, 4, 4) < 0.5), 1: Known(codes, torch.rand(6, 2, 2) < 0.5)}
    sample = model.sample(6, known=known)
    assert torch.equal(sample.pixels[known[0].given], pixels[known[0].given])
    assert torch.equal(sample.codes[1][known[1].given], codes[known[1].given])
    top = torch.tensor([[[1, 0]]]).expand(6, 1, 2)
    everything_known = Known(top, torch.ones(6, 1, 2, dtype=torch.bool))
    assert torch.equal(model.sample(6, known={2: everything_known}).codes[2], top)
    assert torch.equal(model.vary(top, 2, known=known).pixels[known[0].given], pixels[known[0].given])


@pytest.mark.parametrize("family", ["masked", "autoregressive"])
@pytest.mark.parametrize("confident", [False, True], ids=["schedule", "confidence"])
def test_single_channels_of_a_pixel_can_be_known(family, confident):
    refiner = {"level": 1, "family": family, "groups": 3, "window": 1}
    model = tiny(shape=(3, 4, 4), values=5, maps=((2, 2), (1, 2)), refiners=[refiner], classes=0)
    pixels, given = torch.randint(0, 5, (9, 3, 4, 4), dtype=torch.uint8), torch.rand(9, 3, 4, 4) < 0.5
    codes, uniforms, draw = model.sample(9).codes[1], noise(0, range(9), 0, 48), Draw(confidence=confident)
    sampled = model.conditional(1, codes, known=Known(pixels, given)).sample(uniforms, draw)
    assert torch.equal(sampled[given], pixels[given])
    free = model.conditional(1, codes).sample(uniforms, draw)
    assert not torch.equal(free[given], pixels[given])  # nothing else would have given them


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.sample(2, torch.tensor([0])), "labels have shape (1,): give one for each of the 2 images"),
        (lambda model: model.sample(2, torch.tensor([0, 1, 1])), "labels have shape (3,)"),
        (lambda model: model.vary(torch.zeros(2, 3, 3).long(), 1), "codes of level 1 have shape (2, 3, 3)"),
        (lambda model: model.vary(torch.full((2, 2, 2), 99), 1), "codes of level 1: 99 lies outside 0 …"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(call, message):
    model = tiny(shape=(1, 4, 4), values=5, maps=((2, 2), (1, 2)))
    with pytest.raises(InputError, match=re.escape(message)):
        call(model)


@pytest.mark.parametrize(
    ("level", "shape", "value", "message"),
    [
        (3, (6, 1, 2), 0, "level 3 is not drawn here: give maps of levels 0 … 2"),
        (-1, (6, 1, 2), 0, "level -1 is not drawn here"),
        (1, (6, 3, 3), 0, "both must be (6, 2, 2)"),
        (1, (5, 2, 2), 0, "both must be (6, 2, 2)"),
        (1, (6, 2, 2), 99, "level 1 has a value outside 0"),
        (0, (6, 1, 4, 4), -1, "level 0 has a value outside 0"),
    ],
)
def test_known_maps_that_do_not_fit_are_refused(level, shape, value, message):
    model = tiny(shape=(1, 4, 4), values=5, maps=((2, 2), (1, 2)))
    known = {level: Known(torch.full(shape, value), torch.ones(shape, dtype=torch.bool))}
    with pytest.raises(InputError, match=re.escape(message)):
        model.sample(6, known=known)
    nowhere = {level: Known(known[level].values, torch.zeros(shape, dtype=torch.bool))}
    if "outside" in message:  # values count only where they are given
        model.sample(6, known=nowhere)


def test_a_map_that_is_kept_cannot_be_known_in_part():
    model = tiny(shape=(1, 4, 4), values=5, maps=((2, 2), (1, 2)))
    top = torch.zeros(6, *model.stack.map_shapes[1], dtype=torch.int64)
    known = {2: Known(top, torch.ones_like(top, dtype=torch.bool))}
    with pytest.raises(InputError, match="level 2 is not drawn here: give maps of levels 0 … 1"):
        model.vary(top, 2, known=known)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"guidance": (2.0,)}, "guidance needs .* label_dropout above 0; prior has none"),
        ({"classes": 0, "label_dropout": 0.1}, {"guidance": (2.0,)}, "guidance needs"),
        ({"label_dropout": 0.1}, {"guidance": (2.0, 2.0, 1.0)}, "level 2 has none"),
        ({"label_dropout": 0.1}, {"guidance": (-1.0,)}, "guidance: -1.0 is negative"),
        ({}, {"mean": (False, True, False)}, "mean needs .* level 2 has none"),
        ({}, {"confidence": (True,)}, "confidence needs a transformer of the masked family"),
        ({"family": "masked", "label_dropout": 0.1}, {"guidance": (2.0,), "confidence": (True,)}, "exclude each other"),
    ],
    ids=str,
)
def test_sampling_that_the_model_cannot_do_is_refused(changes, settings, message):
    with pytest.raises(InputError, match=message):
        tiny(**changes).sample(1, sampling=SamplingSettings(**settings))


def test_one_value_is_for_the_parts_that_can():
    model = tiny(label_dropout=0.1, refiners=[{"level": 1, "family": "masked"}])
    draws = model.settings.draws(SamplingSettings(guidance=(3.0,)))
    assert [d.guidance for d in draws] == [3.0, 1.0, 1.0]
    draws = model.settings.draws(SamplingSettings(confidence=(True,)))
    assert [d.confidence for d in draws] == [False, False, True]


def test_mean_draws_the_same_codes_and_averages_the_pixels():
    model = tiny()
    drawn, shown = (model.sample(9, sampling=SamplingSettings(mean=(mean,))) for mean in (False, True))
    assert all(torch.equal(drawn.codes[level], shown.codes[level]) for level in (1, 2))
    assert torch.equal(shown.pixels, model.decode(drawn.codes[1], 1))
    likeliest = model.sample(9, sampling=SamplingSettings(mode=(True,), mean=(True,)))
    assert torch.equal(likeliest.pixels, model.decode(likeliest.codes[2], 2))


@torch.no_grad()
@pytest.mark.parametrize("refiners", [(), ({"level": 2, "labels": True},)], ids=["decoders", "refined"])
def test_leaks_are_the_mass_on_maps_with_other_codes_above(refiners):
    """Against every map below, encoded: the shares that come back, and a bound below the mean of what is lost."""
    model, count = tiny(shape=(1, 2, 2), maps=((2, 1), (1, 1)), refiners=refiners), 4000
    pixels = every_map((1, 2, 2), 2, torch.uint8).repeat(count // 16, 1, 1, 1)
    labels = torch.arange(count) % 2
    found = leaks(model, pixels, labels, batch_size=1000)
    worlds = {1: every_map((1, 2, 2), 2, torch.uint8), 2: every_map((2, 1), 3)}
    for level, codes in enumerate(model.encode(pixels), start=1):
        mass, sites = torch.zeros(count), torch.zeros(count)
        for below in worlds[level]:
            maps = below.expand(count, *below.shape)
            probability = model.conditional(level, codes, labels).log_prob(maps).exp()
            same = (model.stack.level(level).encode(maps) == codes).flatten(1)
            mass, sites = mass + probability * same.all(1), sites + probability * same.float().mean(1)
        leak = found[level].to_json()
        assert leak["maps"] == pytest.approx(mass.mean().item(), abs=4 * (0.25 / count) ** 0.5)
        assert leak["sites"] == pytest.approx(sites.mean().item(), abs=4 * (0.25 / count) ** 0.5)
        assert 0 <= leak["lost_bits_95"] <= leak["lost_bits"]
        assert leak["lost_bits_95"] <= -mass.log2().mean() + 1e-5
    assert found[1].maps < 0.99 * count


def test_a_share_that_was_never_found_is_bounded():
    assert upper_share(0, 1000) == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert upper_share(7, 7) == 1
    share = upper_share(3, 10)  # three or fewer of ten have a chance of 5 % there
    assert sum(math.comb(10, k) * share**k * (1 - share) ** (10 - k) for k in range(4)) == pytest.approx(0.05)
    assert Leak(images=50, sites=0, maps=0, size=4).bits is None


def test_a_refiner_that_needs_labels_says_so():
    top = torch.zeros(2, 1, 1, dtype=torch.int64)
    with pytest.raises(InputError, match="refiner of level 1 is conditional on the class: give labels"):
        tiny(refiners=[{"level": 1, "labels": True}]).vary(top, 2)
    model = tiny(refiners=[{"level": 1, "labels": True, "label_dropout": 0.1}])
    assert model.vary(top, 2).labels is None
    assert model.vary(top, 2, torch.tensor([0, 1])).labels.tolist() == [0, 1]


def test_refiners_belong_to_levels():
    with pytest.raises(ValueError, match="level 3 does not exist"):
        tiny(refiners=[{"level": 3}])
    with pytest.raises(ValueError, match="level 1 has more than one"):
        tiny(refiners=[{"level": 1}, {"level": 1}])


@torch.no_grad()
def test_an_artefact_without_refiners_still_loads(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("refiners",):
        del config["model"][name]
    for name in ("family", "groups", "label_dropout", "masks", "soft_targets"):
        del config["model"]["prior"][name]
    for name in ("guidance", "confidence", "mean"):
        del config["model"]["sampling"][name]
    config = {"format_version": 1, "model": config["model"]}  # the format of that time had no checksums
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = HierarchicalModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.joint_log_prob(*everything(model)), model.joint_log_prob(*everything(model)))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_refiners_are_saved_in_the_artefact(tmp_path, family):
    model = tiny(**refined(family, family, labels=True))
    model.save_pretrained(tmp_path)
    loaded = HierarchicalModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.joint_log_prob(*everything(model)), model.joint_log_prob(*everything(model)))
