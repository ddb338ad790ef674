"""The transformers over maps: normalised, causal, cached equals uncached; every law for both classes and any groups."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_as_often, every_map, randomised

from vqstack.code_model import (
    AutoregressiveCodeModel,
    CodeModelSettings,
    MaskedCodeModel,
    Parent,
    RefinerSettings,
    build_code_model,
    build_refiner,
    parent_of,
)
from vqstack.code_model.window import Window
from vqstack.conditions import NO_LABEL
from vqstack.errors import InputError
from vqstack.level import CodeLevel, LevelSettings, PixelLevel
from vqstack.likelihood import Clamped, CodeHead, Draw, Known, PixelHead, PixelSettings, noise, walked_log_prob
from vqstack.variables import Variable

FAMILIES = {"autoregressive": AutoregressiveCodeModel, "masked": MaskedCodeModel}
EVERY = [
    ("autoregressive", 0),
    ("autoregressive", 1),
    ("autoregressive", 3),
    ("masked", 0),
    ("masked", 1),
    ("masked", 3),
]
WAYS = [(0, False, 0), (1, True, 0), (1, False, 1), (1, True, 2)]


def randomise(model, std=0.4):
    """All weights random: the last layer would start at zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
        if getattr(model, "space", None) is not None:
            model.know_codebook(torch.randn_like(model.space.vectors))
    return model.eval()


def build(family="autoregressive", groups=0, map_shape=(2, 3), size=5, classes=3, **changes):
    settings = CodeModelSettings(
        **{"depth": 2, "dim": 16, "heads": 2, "dropout": 0.0, "family": family, "groups": groups, **changes}
    )
    return randomise(build_code_model(settings, map_shape, size, classes, vector_dim=2))


def with_parent(family="autoregressive", groups=0, head=None, map_shape=(2, 4), classes=0, **changes):
    """A model of a map below a map of half its sides, and a parent for a batch of images."""
    settings = CodeModelSettings(
        **{"depth": 2, "dim": 16, "heads": 2, "dropout": 0.0, "family": family, "groups": groups, **changes}
    )
    model = randomise(FAMILIES[family](settings, map_shape, head or CodeHead(5), classes, (2, 2), 3, vector_dim=2))

    def parent(batch):
        rows, columns = map_shape
        base = torch.randn(batch, model.head.parameters, rows, columns)
        return Parent(base, torch.randn(batch, 3, rows // 2, columns // 2), torch.rand(batch))

    return model, parent


def some(model, batch=4):
    codes = torch.randint(0, model.size, (batch, *model.map_shape))
    return codes, {"label": torch.randint(0, model.classes, (batch,))} if model.classes else {}


def groups_before(model):
    """For each site, which sites the factorisation lets it depend on."""
    group = model.schedule.group
    return group[None, :] < group[:, None]


@pytest.mark.parametrize("groups", [0, 1, 3])
@pytest.mark.parametrize(("window", "wavefront"), [(0, 0), (1, 0), (1, 1), (1, 2)])
def test_causality_by_gradients(groups, window, wavefront):
    model, parent = with_parent(groups=groups, map_shape=(2, 4), window=window, wavefront=wavefront)
    codes, above = torch.randint(0, 5, (2, 8)), parent(2)
    values = torch.randn(2, 8, 16, requires_grad=True)
    # The features of each site's own value, for all sites (the window) and for the inputs of the sequence.
    model.embed = lambda chosen: values if chosen.shape[1] == 8 else values[:, model.source]
    logits = model.logits(codes, {}, above)
    allowed = groups_before(model)
    for site in range(8):
        score = (logits[:, site] * torch.randn(5)).sum()
        (gradient,) = torch.autograd.grad(score, values, retain_graph=True, allow_unused=True)
        reached = torch.zeros(8) if gradient is None else gradient.abs().amax(dim=(0, 2))
        assert ((reached > 0) == allowed[site]).all()


@torch.no_grad()
@pytest.mark.parametrize("groups", [0, 1, 3])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(("window", "codebook", "wavefront"), WAYS)
def test_cached_equals_uncached(groups, classes, window, codebook, wavefront):
    model, parent = with_parent(groups=groups, classes=classes, window=window, codebook=codebook, wavefront=wavefront)
    codes, labels = some(model)
    flat, above = codes.flatten(1), parent(4)
    whole, context = model.logits(flat, labels, above), model.context(above)
    base = above.base.flatten(2).transpose(1, 2)
    hidden, cache = model.prefill(4, labels, context)
    for group in range(len(model.schedule)):
        if group:
            before = torch.isin(torch.arange(8), torch.cat([model.schedule.sites(k) for k in range(group)]))
            drawn = torch.where(before, flat, torch.randint(0, 5, flat.shape))  # later values must not matter
            hidden, cache = model.step(group, drawn[..., None], context, cache)
        sites = model.schedule.sites(group)
        torch.testing.assert_close(model.correct(hidden, base[:, sites]), whole[:, sites], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("family", "groups"), EVERY)
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(("window", "codebook", "wavefront"), WAYS)
def test_log_prob_is_the_sum_over_the_walked_factors(family, groups, classes, window, codebook, wavefront):
    model = build(family, groups, classes=classes, window=window, codebook=codebook, wavefront=wavefront)
    codes, labels = some(model)
    distribution = model.distribution(len(codes), labels, torch.device("cpu"))
    walked, values, nats = [], torch.zeros(4, 6, dtype=torch.int64), torch.zeros(4)
    for factor in distribution.factors(values):
        chosen = codes.flatten(1)[:, factor.sites]
        torch.testing.assert_close(factor.log_probs.exp().sum(-1), torch.ones(chosen.shape))
        nats += factor.log_probs.gather(-1, chosen[..., None])[..., 0].sum(1)
        values[:, factor.sites] = chosen
        walked.append(factor.sites.tolist())
    assert [len(sites) for sites in walked] == list(model.schedule.sizes)
    assert sorted(itertools.chain(*walked)) == list(range(model.sites))
    torch.testing.assert_close(nats, model.log_prob(codes, labels), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(distribution.log_prob(codes), model.log_prob(codes, labels))
    torch.testing.assert_close(walked_log_prob(distribution, codes), nats)


@torch.no_grad()
@pytest.mark.parametrize(("family", "groups"), EVERY)
@pytest.mark.parametrize(("window", "codebook", "wavefront"), WAYS)
def test_all_maps_sum_to_one(family, groups, window, codebook, wavefront):
    changes = {"window": window, "codebook": codebook, "wavefront": wavefront}
    model, codes = build(family, groups, map_shape=(2, 2), size=3, classes=2, **changes), every_map((2, 2), 3)
    for label in (0, 1, NO_LABEL):
        labels = {"label": torch.full((len(codes),), label)}
        assert model.log_prob(codes, labels).double().exp().sum().item() == pytest.approx(1, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("window", "codebook"), [(0, False), (1, True)])
def test_the_masked_likelihood_is_the_product_of_its_conditionals(window, codebook):
    """Each group recomputed alone: its conditional is what the network says with the other sites blanked out."""
    model = build("masked", 3, window=window, codebook=codebook)
    codes, labels = some(model)
    flat = codes.flatten(1)[..., None]
    total = torch.zeros(4)
    for group in range(3):
        known = torch.isin(torch.arange(6), torch.cat([model.schedule.sites(j) for j in range(group)] or [flat[0, 0]]))
        known = known if group else torch.zeros(6, dtype=torch.bool)
        blank = torch.where(known[:, None], flat, torch.randint(0, 5, flat.shape))  # hidden values must not matter
        table = model.correct(model.predict(blank, known.expand(4, 6), labels), None).log_softmax(-1)
        sites = model.schedule.sites(group)
        total += table[:, sites].gather(-1, flat[:, sites])[..., 0].sum(1)
    torch.testing.assert_close(model.log_prob(codes, labels), total)


@torch.no_grad()
@pytest.mark.parametrize("masks", ["schedule", "random"])
def test_the_training_estimate_is_unbiased(masks):
    model = build("masked", 3, masks=masks, map_shape=(2, 2), size=3, classes=0)
    codes = torch.randint(0, 3, (1, 2, 2))
    if masks == "schedule":
        truth = -model.log_prob(codes, {}).item()
    else:  # the mean over all orders, one site at a time
        truth = 0.0
        orders = list(itertools.permutations(range(4)))
        for order in orders:
            for place, site in enumerate(order):
                known = torch.isin(torch.arange(4), torch.tensor(order[:place]))[None]
                table = model.to_logits(model.predict(codes.flatten(1)[..., None], known, {})).log_softmax(-1)
                truth -= table[0, site, codes.flatten()[site]].item() / len(orders)
    model.train()
    draws = 4000
    loss, nats = model._training_nats(codes.expand(draws, 2, 2), {}, None)
    error = nats.std().item() / math.sqrt(draws)
    assert nats.mean().item() == pytest.approx(truth, abs=4 * error)
    assert loss.item() == pytest.approx(nats.mean().item(), rel=1e-5)
    if masks == "random":
        again = model.random_order_nats(codes.expand(draws, 2, 2), {})
        assert again.mean().item() == pytest.approx(truth, abs=4 * error)


@torch.no_grad()
def test_validation_of_a_masked_model_visits_its_groups_evenly():
    model = build("masked", 3)
    codes, labels = some(model, 1)
    codes, labels = codes.expand(6, 2, 3), {"label": labels["label"].expand(6)}
    nats = model(codes, *labels.values()).metrics["nats"].item()
    assert nats == pytest.approx(-model.log_prob(codes, labels)[0].item(), rel=1e-5)
    assert nats == model(codes, *labels.values()).metrics["nats"].item()


@torch.no_grad()
@pytest.mark.parametrize(("family", "groups"), EVERY)
@pytest.mark.parametrize(("window", "codebook"), [(0, False), (1, True)])
def test_frequencies_of_samples(family, groups, window, codebook):
    model, parent = with_parent(family, groups, map_shape=(2, 2), head=CodeHead(3), window=window, codebook=codebook)
    above = Parent(*(x.expand(4000, *x.shape[1:]) for x in parent(1)[:3]))
    drawn = model.distribution(4000, {}, torch.device("cpu"), above).sample(noise(0, range(4000), 1, 4))
    maps = every_map((2, 2), 3)
    probs = model.log_prob(maps, {}, Parent(*(x[:1].expand(81, *x.shape[1:]) for x in above[:3]))).exp()
    assert_as_often((drawn.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1), probs)


@torch.no_grad()
@pytest.mark.parametrize(("family", "groups"), EVERY)
def test_the_first_code_is_scored_and_the_label_matters(family, groups):
    model = build(family, groups, map_shape=(1, 1), size=3)
    codes = torch.arange(3).view(3, 1, 1)
    values = torch.stack([model.log_prob(codes, {"label": torch.full((3,), label)}) for label in (NO_LABEL, 0, 1)])
    assert len(values.unique()) == 9
    with pytest.raises(InputError, match="conditional on the class: give labels"):
        model.log_prob(codes, {})
    free = build(family, groups, labels=False)
    assert free.classes == 0
    assert torch.isfinite(free.log_prob(some(free)[0], {})).all()


@torch.no_grad()
@pytest.mark.parametrize(("family", "groups"), EVERY)
def test_a_prior_starts_uniform(family, groups):
    settings = CodeModelSettings(depth=1, dim=8, heads=2, family=family, groups=groups)
    model = build_code_model(settings, (2, 2), 4, 0).eval()
    codes, _ = some(model)
    torch.testing.assert_close(model.log_prob(codes, {}), -4 * torch.tensor(4.0).log().expand(len(codes)))


def test_forward_is_nats_a_site():
    model = build()
    codes, labels = some(model)
    objective = model(codes, *labels.values())
    nats = -model.log_prob(codes, labels).mean()
    torch.testing.assert_close(objective.loss, nats / 6)
    torch.testing.assert_close(objective.metrics["nats"], nats.detach())
    assert objective.loss.requires_grad
    assert not objective.metrics["nats"].requires_grad


@pytest.mark.parametrize(("family", "own"), [("autoregressive", {"begin"}), ("masked", {"hidden"})])
def test_names_are_our_own_and_travel(family, own):
    model, other = build(family, 3), build(family, 3)
    state = model.state_dict()
    assert not [name for name in state if "backbone" in name or "layers" in name]
    assert {"blocks.0.query.weight", "blocks.1.feedforward_out.bias", "final_norm.gain", *own} <= set(state)
    assert len(state) == len(list(model.named_parameters()))
    codes, labels = some(model)
    assert not torch.equal(model.log_prob(codes, labels), other.log_prob(codes, labels))
    other.load_state_dict(state, strict=True)
    assert torch.equal(model.log_prob(codes, labels), other.log_prob(codes, labels))


def test_labels_are_dropped_in_training_only():
    model = build(label_dropout=0.5).train()
    codes, labels = some(model, 200)
    codes, labels = codes[:1].expand(200, 2, 3), labels["label"][:1].expand(200)
    seen = []
    inner = model._training_nats
    model._training_nats = lambda values, labels, parent: seen.append(labels) or inner(values, labels, parent)
    model(codes, labels)
    assert 60 < (seen[0]["label"] == NO_LABEL).sum() < 140
    model.eval()(codes, labels)
    assert torch.equal(seen[1]["label"], labels)


# Guidance.


@torch.no_grad()
@pytest.mark.parametrize(("family", "groups"), EVERY)
def test_guidance_mixes_the_tables(family, groups):
    model = build(family, groups)
    codes, labels = some(model, 8)

    def made(scale):
        return model.distribution(8, labels, torch.device("cpu"), guidance=scale)

    neutral = made(1.0)
    u = noise(0, range(8), 1, 6)
    assert torch.equal(neutral.sample(u), model.distribution(8, labels, torch.device("cpu")).sample(u))
    nobody = model.log_prob(codes, {"label": torch.full((8,), NO_LABEL)})
    torch.testing.assert_close(made(0.0).log_prob(codes), nobody)
    torch.testing.assert_close(made(1.0 + 1e-7).log_prob(codes), model.log_prob(codes, labels), atol=1e-4, rtol=1e-4)
    values = codes.flatten(1)
    with_label = next(iter(neutral.factors(values))).log_probs
    without = next(iter(made(0.0).factors(values))).log_probs
    guided = next(iter(made(3.0).factors(values))).log_probs
    expected = (3 * with_label - 2 * without).log_softmax(-1)
    torch.testing.assert_close(guided, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("family", "groups"), EVERY)
def test_guided_maps_sum_to_one(family, groups):
    model = build(family, groups, map_shape=(2, 2), size=3)
    codes = every_map((2, 2), 3)
    labels = {"label": torch.ones(81, dtype=torch.int64)}
    guided = model.distribution(81, labels, torch.device("cpu"), guidance=2.5)
    assert guided.log_prob(codes).double().exp().sum().item() == pytest.approx(1, abs=1e-5)


# Maps that are partly known.


@torch.no_grad()
@pytest.mark.parametrize(("family", "groups"), EVERY)
@pytest.mark.parametrize("draw", [Draw(), Draw(temperature=0.3), Draw(top_k=2), Draw(mode=True)], ids=str)
def test_known_sites_are_kept(family, groups, draw):
    model = build(family, groups)
    codes, labels = some(model, 16)
    given = torch.rand(16, 2, 3) < 0.5
    distribution = model.distribution(16, labels, torch.device("cpu"), known=Known(codes, given))
    drawn = distribution.sample(noise(0, range(16), 1, 6), draw)
    assert torch.equal(drawn[given], codes[given])
    assert not torch.equal(drawn, codes)


@torch.no_grad()
@pytest.mark.parametrize("radius", [1, 2])
def test_the_window_is_a_convolution_around_what_is_known(radius):
    """Recomputed by conv2d over the known values, with nothing at the centre."""
    rows, columns, dim, side = 4, 5, 3, 2 * radius + 1
    window = Window((rows, columns), radius, dim)
    embedded, known = torch.randn(2, 20, dim), torch.rand(2, 20) < 0.5
    kernel = torch.zeros(dim, dim, side * side)
    kernel[..., torch.arange(side * side) != side * side // 2] = window.mix.weight.view(dim, -1, dim).transpose(1, 2)
    maps = (embedded * known[..., None]).transpose(1, 2).view(2, dim, rows, columns)
    truth = F.conv2d(maps, kernel.view(dim, dim, side, side), padding=radius).flatten(2).transpose(1, 2)
    sites = torch.tensor([7, 0, 19])
    torch.testing.assert_close(window(embedded, torch.arange(20), known), truth)
    torch.testing.assert_close(window(embedded, sites, known), truth[:, sites])


def test_the_gradient_of_a_window_repeats_to_the_bit_on_several_threads():
    window = Window((8, 8), 1, 16)
    embedded, weight, sites = torch.randn(5, 64, 16, requires_grad=True), torch.randn(5, 64, 16), torch.arange(64)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = [torch.autograd.grad((window(embedded, sites) * weight).sum(), embedded)[0] for _ in range(20)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_large_maps_have_no_table_of_pairs(family):
    """Nor would their artefacts be loaded: a table far larger than the weights is refused."""
    model = build(family, map_shape=(96, 96), window=1, dim=8)
    assert max(buffer.numel() for buffer in model.buffers()) <= 8 * model.sites


@torch.no_grad()
def test_the_codebook_is_read_and_scored():
    """Recomputed by hand; codes with the same vector are read alike and gain the same."""
    model = build(size=3, classes=0, codebook=True)
    model.know_codebook(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-2.0, 3.0]]))
    space, hidden = model.space, torch.randn(4, 16)
    truth = torch.tensor([[0.5, -0.5], [0.5, -0.5], [-1.0, 1.0]]) * 2**0.5
    torch.testing.assert_close(space.vectors, truth)
    codes = torch.tensor([[0, 1, 2]])[..., None]
    read = model.embed(codes) - model.embedding(codes)
    torch.testing.assert_close(read[0], truth @ space.read.weight.T)
    gained = model.correct(hidden, None) - model.to_logits(hidden)
    torch.testing.assert_close(gained, hidden @ space.write.weight.T @ truth.T)


@torch.no_grad()
def test_the_codebook_travels_with_the_weights():
    model, other = build(codebook=True), build(codebook=True)
    other.load_state_dict(model.state_dict())
    codes, labels = some(model)
    assert torch.equal(other.log_prob(codes, labels), model.log_prob(codes, labels))


def test_a_window_in_raster_order_has_no_weights_for_what_comes_later():
    model = build(map_shape=(4, 4), window=1)
    assert model.window.mix.in_features == 4 * 16  # left, and three above
    assert build(groups=1, window=1).window is None


@torch.no_grad()
def test_a_masked_model_sees_what_is_known_from_the_start():
    """One hidden site: its distribution is the network's given all others, by either sampler and whatever its group."""
    model = build("masked", 3)
    codes, labels = some(model)
    for site in range(6):
        given = torch.ones(4, 6, dtype=torch.bool)
        given[:, site] = False
        truth = model.to_logits(model.predict(codes.flatten(1)[..., None], given, labels)).log_softmax(-1)[:, site]
        distribution = model.distribution(4, labels, torch.device("cpu"), known=Known(codes, given.view(4, 2, 3)))
        for value in range(5):
            changed = codes.flatten(1).clone()
            changed[:, site] = value
            torch.testing.assert_close(distribution.log_prob(changed.view(4, 2, 3)), truth[:, value])


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_sampling_by_confidence(groups):
    model = build("masked", groups)
    codes, labels = some(model, 16)
    u = noise(0, range(16), 1, 6)
    given = torch.rand(16, 2, 3) < 0.4
    distribution = model.distribution(16, labels, torch.device("cpu"), known=Known(codes, given))
    drawn = distribution.sample(u, Draw(confidence=True))
    assert torch.equal(drawn[given], codes[given])
    free = model.distribution(16, labels, torch.device("cpu"))
    drawn = free.sample(u, Draw(confidence=True))
    alone = [
        model.distribution(1, {n: v[i : i + 1] for n, v in labels.items()}, torch.device("cpu")).sample(
            u[i : i + 1], Draw(confidence=True)
        )
        for i in range(16)
    ]
    assert torch.equal(drawn, torch.cat(alone))
    if groups == 1:
        assert torch.equal(drawn, free.sample(u))
    else:  # the first site kept is the likeliest draw of the first pass
        assert not torch.equal(drawn, free.sample(u))


# Soft targets.


@pytest.mark.parametrize("family", FAMILIES)
def test_soft_targets(family):
    model = build(family, 1, classes=0, map_shape=(1, 1), size=3, soft_targets=0.7).train()
    codes = torch.tensor([[[1]]])
    hard = model(codes)
    torch.testing.assert_close(hard.loss.detach(), hard.metrics["nats"])
    codebook = torch.tensor([[0.0], [1.0], [3.0]])
    model.know_codebook(codebook)
    unit = (1 + 1 + 4) / 3  # mean squared distance to the nearest other code
    weights = torch.exp(-(codebook[:, 0] - 1).square() / (0.7 * unit))
    logits = torch.stack([model.log_prob(torch.tensor([[[k]]]), {})[0] for k in range(3)])
    expected = -(weights / weights.sum() * logits).sum()
    soft = model(codes)
    torch.testing.assert_close(soft.loss, expected)
    torch.testing.assert_close(soft.metrics["nats"], hard.metrics["nats"])  # what is reported stays a code length
    torch.testing.assert_close(model.eval()(codes).loss, hard.loss)


# Refiners.


def levels(kind="auto", values=3, shape=(2, 4, 4), pad_to=(4, 4)):
    """Levels 1 and 2 with random weights."""
    head = PixelHead(PixelSettings(kind=kind, components=2), shape[0], values)
    quantizer = {"codebook_size": 5, "dim": 3}
    settings = {"width": 8, "encoder_blocks": 1, "decoder_blocks": 1, "quantizer": quantizer}
    one = PixelLevel(Variable.pixels(shape, values), LevelSettings(map=(2, 2), **settings), head, pad_to)
    return one, randomise(CodeLevel(LevelSettings(map=(1, 2), **settings), randomise(one, 0.5)), 0.5)


PIXELS = [
    ("bernoulli", 2, (2, 4, 4)),
    ("categorical", 3, (3, 3, 2)),
    ("logistic_mixture", 5, (3, 3, 2)),
    ("logistic_mixture", 256, (2, 4, 4)),
]


@torch.no_grad()
@pytest.mark.parametrize(("family", "groups"), EVERY)
@pytest.mark.parametrize(("kind", "values", "shape"), PIXELS)
def test_a_refiner_of_pixels_starts_as_the_decoder(family, groups, kind, values, shape):
    one, _ = levels(kind, values, shape)
    settings = RefinerSettings(level=1, family=family, groups=groups, depth=1, dim=8, heads=2)
    refiner = build_refiner(settings, one, 0).eval()
    codes = torch.randint(0, 5, (3, 2, 2))
    pixels = torch.randint(0, values, (3, *shape), dtype=torch.uint8)
    parent = parent_of(one, codes)
    expected = one.decode(codes).log_prob(pixels)
    torch.testing.assert_close(refiner.log_prob(pixels, {}, parent), expected, atol=1e-5, rtol=1e-5)
    distribution = refiner.distribution(3, {}, torch.device("cpu"), parent)
    assert distribution.shape == shape
    torch.testing.assert_close(walked_log_prob(distribution, pixels), expected, atol=1e-4, rtol=1e-4)
    u = noise(0, range(3), 0, math.prod(shape))
    assert distribution.sample(u).dtype == torch.uint8
    assert torch.equal(distribution.sample(u), one.decode(codes).sample(u))


@torch.no_grad()
@pytest.mark.parametrize(("family", "groups"), EVERY)
def test_a_refiner_of_codes_starts_as_the_decoder(family, groups):
    _, two = levels()
    refiner = build_refiner(
        RefinerSettings(level=2, family=family, groups=groups, depth=1, dim=8, heads=2), two, 0
    ).eval()
    codes, below = torch.randint(0, 5, (3, 1, 2)), torch.randint(0, 5, (3, 2, 2))
    got = refiner.log_prob(below, {}, parent_of(two, codes))
    torch.testing.assert_close(got, two.decode(codes).log_prob(below), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("family", "groups"), EVERY)
@pytest.mark.parametrize(
    ("kind", "values", "window"),
    [("bernoulli", 2, 0), ("bernoulli", 2, 1), ("categorical", 3, 1), ("logistic_mixture", 3, 0)],
)
def test_all_images_given_a_parent_sum_to_one(family, groups, kind, values, window):
    """Two channels a pixel: the channels of a site are a chain inside it."""
    channels = 2
    head = PixelHead(PixelSettings(kind=kind, components=2), channels, values)
    model, parent = with_parent(family, groups, head, map_shape=(2, 2), window=window)
    images = every_map((2, 2, 2), values, torch.uint8)
    above = Parent(*(x.expand(len(images), *x.shape[1:]) for x in parent(1)[:3]))
    log_probs = model.log_prob(images, {}, above)
    assert log_probs.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    walked = walked_log_prob(model.distribution(len(images), {}, torch.device("cpu"), above), images)
    torch.testing.assert_close(walked, log_probs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("family", "groups"), EVERY)
def test_everything_above_matters(family, groups):
    model, parent = with_parent(family, groups)
    codes, above = torch.randint(0, 5, (4, 2, 4)), parent(4)
    truth = model.log_prob(codes, {}, above)
    for field in ("base", "features", "share"):
        changed = above._replace(**{field: torch.randn_like(getattr(above, field))})
        assert (model.log_prob(codes, {}, changed) != truth).all()
    with pytest.raises(ValueError, match="what lies above is needed"):
        model.log_prob(codes, {})


def test_settings_are_checked():
    with pytest.raises(ValueError, match="multiple of heads"):
        CodeModelSettings(dim=10, heads=4)
    with pytest.raises(ValueError, match="models pixels"):
        RefinerSettings(level=1, soft_targets=1.0)


@torch.no_grad()
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_pixels_are_corrected_as_their_head_says(family):
    """Recomputed from the correction that the network puts out: of narrow logistics the means hardly move."""
    head = PixelHead(PixelSettings(components=2), 1, 256)
    model, _ = with_parent(family, 0, head, window=1)
    base, hidden = torch.randn(5, head.parameters), torch.randn(5, 16)
    base[:, 4:] = -6.0  # log scales: two weights and two means come before
    correction = model.to_logits(hidden)
    expected = base + correction
    expected[:, 2:4] = base[:, 2:4] + correction[:, 2:4] * (math.exp(-6) + 1 / 255)
    torch.testing.assert_close(model.correct(hidden, base), expected)


@pytest.mark.parametrize("order", [{}, {"groups": 5}, {"wavefront": 1, "window": 1}, {"window": 1}], ids=str)
@pytest.mark.parametrize("chain", [(), (2,)], ids=["one code", "two codes"])
def test_steps_in_which_all_is_known_are_read_in_one_pass_or_left_out(order, chain):
    """Images that know the same sites, and one that knows a few less."""
    torch.manual_seed(0)
    settings = CodeModelSettings(depth=2, dim=16, heads=2, **order)
    model = build_code_model(settings, (4, 5), 7, 0, chain=chain).eval()
    randomised(model, 0.2)
    shape = (3, *chain, 4, 5)
    values, u = torch.randint(0, 7, shape), torch.rand(3, math.prod(shape[1:]), dtype=torch.float64)
    given = torch.ones(shape, dtype=torch.bool)
    given[..., 1:3, 2:4] = False
    given[2, ..., 2, 4] = False
    short, long = (Clamped(model.distribution(3, {}, torch.device("cpu")), Known(values, given)) for _ in range(2))
    long.inner.fixed = None
    steps = [sum(1 for _ in one.factors(torch.zeros(3, u.shape[1], dtype=torch.long))) for one in (short, long)]
    assert steps[0] < steps[1]
    drawn = short.sample(u)
    assert torch.equal(drawn, long.sample(u)) and torch.equal(drawn[given], values[given])
    torch.testing.assert_close(short.log_prob(drawn), long.log_prob(drawn))
    torch.testing.assert_close(short.unchecked_log_prob(drawn), long.unchecked_log_prob(drawn))
    everything = Clamped(model.distribution(3, {}, torch.device("cpu")), Known(values, torch.ones_like(given)))
    assert torch.equal(everything.sample(u), values)
