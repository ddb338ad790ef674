"""Likelihoods: every probability recomputed another way, every draw counted."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import every_map
from pydantic import ValidationError

from vqstack.errors import InputError
from vqstack.likelihood import (
    Bernoulli,
    Categorical,
    Clamped,
    Draw,
    Known,
    LogisticMixture,
    PixelHead,
    PixelSettings,
    draw_values,
    drawing,
    factors,
    logistic_parameters,
    noise,
)
from vqstack.likelihood.mixture import log_bin, log_bins, mean_value

ALMOST_ONE = 1 - 2.0**-53


def categorical(batch=2, spread=2.0):
    return Categorical(spread * torch.randn(batch, 2, 3, 4))


def bernoulli(batch=2, spread=2.0):
    return Bernoulli(spread * torch.randn(batch, 2, 1, 3))


def mixture(batch=2, spread=1.0, channels=3, size=8, components=4, rows=1, columns=2):
    parameters = spread * torch.randn(batch, logistic_parameters(channels, components), rows, columns)
    return LogisticMixture(parameters, channels, size)


FAMILIES = {"categorical": categorical, "bernoulli": bernoulli, "mixture": mixture}


KINDS = [  # the parameters of one image whose maps can be counted
    (Categorical, (1, 2, 2, 3), {}),
    (Bernoulli, (1, 1, 2, 3), {}),
    (LogisticMixture, (1, logistic_parameters(3, 2), 1, 1), {"channels": 3, "size": 4}),
    (LogisticMixture, (1, logistic_parameters(2, 3), 1, 2), {"channels": 2, "size": 3}),
]


def all_log_probs(distribution_of):
    """Log-probabilities of every map under a distribution that is built for a batch of that many equal images."""
    one = distribution_of(1)
    maps = every_map(one.shape, one.size, one.dtype)
    return maps, distribution_of(len(maps)).log_prob(maps).double()


def repeated(kind, parameters, **settings):
    """A distribution over ``n`` images, all with the parameters of one."""

    def build(n):
        return kind(parameters.expand(n, *parameters.shape[1:]), **settings)

    return build


def reference_logistic(parameters, image, channels, size):
    """ln P of one image in float64 from the formula: differences of logistic functions, explicit loops.

    Differences are taken between tails of the same side, so that none cancels.
    """

    def s(t):  # the logistic function
        return 1 / (1 + math.exp(-t)) if t > -700 else 0.0

    pairs = channels * (channels - 1) // 2
    components = len(parameters) // (1 + 2 * channels + pairs)
    total = 0.0
    for row, column in itertools.product(range(image.shape[1]), range(image.shape[2])):
        p = parameters[:, row, column].double().view(-1, components).numpy()
        weights = np.exp(p[0] - p[0].max())
        x = [2 * int(v) / (size - 1) - 1 for v in image[:, row, column]]
        likelihood = 0.0
        for k in range(components):
            term = weights[k] / weights.sum()
            coupling = iter(np.tanh(p[1 + 2 * channels :, k]))
            for i in range(channels):
                mean = p[1 + i, k] + sum(next(coupling) * x[j] for j in range(i))
                scale = math.exp(max(p[1 + channels + i, k], -7.0))
                upper = math.inf if x[i] == 1 else (x[i] + 1 / (size - 1) - mean) / scale
                lower = -math.inf if x[i] == -1 else (x[i] - 1 / (size - 1) - mean) / scale
                if lower > 0:  # s(a) - s(b) = s(-b) - s(-a)
                    upper, lower = -lower, -upper
                high, low = (1.0 if upper == math.inf else s(upper)), (0.0 if lower == -math.inf else s(lower))
                term *= high - low
            likelihood += term
        total += math.log(likelihood)
    return total


# --- normalisation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
@pytest.mark.parametrize(("kind", "shape", "settings"), KINDS)
def test_all_maps_sum_to_one(kind, shape, settings, spread):
    maps, log_probs = all_log_probs(repeated(kind, spread * torch.randn(shape), **settings))
    assert len(maps) >= 2**6
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("channels", "size"), [(1, 256), (1, 2), (2, 16)])
def test_logistic_mixture_sums_to_one_at_any_width(channels, size):
    parameters = torch.randn(1, logistic_parameters(channels, 3), 1, 1)
    for log_scale in (-20.0, -7.0, -3.0, 0.0, 5.0, 50.0):  # from far below one bin to far wider than the range
        parameters[:, 3 * (1 + channels) : 3 * (1 + 2 * channels)] = log_scale
        maps, log_probs = all_log_probs(repeated(LogisticMixture, parameters, channels=channels, size=size))
        assert len(maps) == size**channels
        # float32: an edge of a narrow bin is known to 1e-7, which is 1e-4 of the smallest scale
        assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-5 if log_scale > -7 else 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_factor_sums_to_one_and_every_site_comes_once(family):
    distribution = FAMILIES[family]()
    values, seen = torch.zeros(2, distribution.sites, dtype=torch.int64), []
    for factor in distribution.factors(values):
        assert factor.log_probs.shape == (2, len(factor.sites), distribution.size)
        sums = factor.log_probs.double().exp().sum(-1)
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
        values[:, factor.sites] = torch.randint(distribution.size, (2, len(factor.sites)))
        seen += factor.sites.tolist()
    assert sorted(seen) == list(range(distribution.sites))


# --- log-probabilities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.5, 2.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_prob_is_the_sum_along_the_factors(family, spread):
    """The values are written as the walk goes, one factor at a time, so a factor that looks ahead would be caught."""
    distribution = FAMILIES[family](batch=5, spread=spread)
    x = torch.randint(distribution.size, (5, *distribution.shape))
    flat, values = x.flatten(1), torch.zeros(5, distribution.sites, dtype=torch.int64)
    total = torch.zeros(5, dtype=torch.float64)
    for factor in distribution.factors(values):
        chosen = flat[:, factor.sites]
        total += factor.log_probs.double().gather(-1, chosen[..., None]).squeeze(-1).sum(1)
        values[:, factor.sites] = chosen
    log_prob = distribution.log_prob(x.to(distribution.dtype))
    assert torch.allclose(log_prob.double(), total, rtol=1e-5, atol=1e-4)
    assert log_prob.unique().numel() == 5


@pytest.mark.parametrize(("size", "spread"), [(8, 1.0), (256, 1.0), (256, 3.0)])
def test_the_cdf_of_a_factor_is_the_sum_of_its_table(size, spread):
    distribution = mixture(size=size, spread=spread)
    values = distribution.sample(noise(0, range(2), 0, 6)).flatten(1).long()
    edges = torch.arange(size + 1)
    for factor in distribution.factors(values.clone()):
        cdf = factor.cdf(edges)
        table = factor.log_probs.double().exp()
        assert cdf.dtype == torch.float64
        assert (cdf[..., 0] == 0).all() and (cdf[..., -1] == 1).all()
        assert torch.allclose(cdf.diff(dim=-1), table, rtol=1e-4, atol=1e-6)
        some = torch.randint(0, size + 1, (2, 2, 5))  # edges of each site's own
        assert torch.allclose(factor.cdf(some), cdf.gather(-1, some), rtol=1e-12)


def test_categorical_by_hand():
    tables = torch.rand(2, 2, 3, 4, dtype=torch.float64) + 0.1
    x = torch.randint(4, (2, 2, 3))
    expected = [
        sum(
            math.log(tables[b, i, j, x[b, i, j]] / tables[b, i, j].sum())
            for i, j in itertools.product(range(2), range(3))
        )
        for b in range(2)
    ]
    assert Categorical(tables.log().float()).log_prob(x).tolist() == pytest.approx(expected, rel=1e-5)


def test_bernoulli_by_hand():
    p = torch.rand(2, 1, 2, 3, dtype=torch.float64) * 0.9 + 0.05
    x = torch.randint(2, (2, 1, 2, 3), dtype=torch.uint8)
    expected = torch.where(x == 1, p, 1 - p).log().flatten(1).sum(1)
    assert torch.allclose(Bernoulli(p.logit().float()).log_prob(x).double(), expected, rtol=1e-5)


@pytest.mark.parametrize(("channels", "size"), [(1, 256), (3, 256), (3, 8), (2, 2), (4, 16)])
def test_logistic_mixture_by_formula_in_float64(channels, size):
    """The layout of the parameters, the coupling of the channels and the outer bins, against explicit loops."""
    parameters = torch.randn(4, logistic_parameters(channels, 5), 2, 3)
    x = torch.randint(size, (4, channels, 2, 3), dtype=torch.uint8)
    x[0], x[1] = 0, size - 1
    expected = [reference_logistic(p, image, channels, size) for p, image in zip(parameters, x, strict=True)]
    assert LogisticMixture(parameters, channels, size).log_prob(x).tolist() == pytest.approx(expected, rel=1e-5)


def test_coupling_looks_back_only():
    """The first channel's marginal does not know the coupling; the last channel's table changes with every other."""
    parameters = torch.randn(1, logistic_parameters(3, 4), 1, 1)
    other = parameters.clone()
    other[:, 4 * 7 :] += 1
    distributions = [LogisticMixture(p, 3, 8) for p in (parameters, other)]

    def tables(distribution, colour):
        values = torch.zeros(1, 3, dtype=torch.int64)
        out = []
        for factor in distribution.factors(values):
            out.append(factor.log_probs[0, 0])
            values[:, factor.sites] = colour[int(factor.sites[0])]
        return out

    first, second = (tables(d, [1, 2, 3]) for d in distributions)
    assert torch.equal(first[0], second[0]) and not torch.allclose(first[1], second[1])
    for colour, changed in (([5, 2, 3], (1, 2)), ([1, 6, 3], (2,)), ([1, 2, 0], ())):
        now = tables(distributions[0], colour)
        assert [i for i in range(3) if not torch.allclose(now[i], first[i])] == list(changed)


def log_bin_reference(value, mean, log_scale, size):
    """ln P(value) of one discretized logistic, in float64 but exact in both tails: via log1p and expm1."""
    x, half, scale = 2 * value / (size - 1) - 1, 1 / (size - 1), math.exp(log_scale)
    upper, lower = (x + half - mean) / scale, (x - half - mean) / scale

    def log_s(t):  # ln s(t)
        return -math.log1p(math.exp(-t)) if t > -30 else t - math.log1p(math.exp(t))

    if value == 0:
        return log_s(upper)
    if value == size - 1:
        return log_s(-lower)
    if lower > 0:
        upper, lower = -lower, -upper
    return log_s(upper) + math.log(-math.expm1(log_s(lower) - log_s(upper)))


@pytest.mark.parametrize("size", [3, 8, 256])
@pytest.mark.parametrize("log_scale", [-7.0, -5.0, -3.0, -1.0, 2.0, 10.0])
def test_log_bin_is_exact_in_the_tails(size, log_scale):
    """Means inside the range, at its edge and far outside; the naive difference of float32 would be ln 0 there."""
    values = sorted({0, 1, size // 2, size - 2, size - 1})
    lowest = 0.0
    for mean, value in itertools.product((-40.0, -3.0, -1.0, -0.3, 0.0, 0.7, 1.0, 2.5, 40.0), values):
        arguments = (torch.tensor(float(value)), torch.tensor(mean), torch.tensor(log_scale))
        expected = log_bin_reference(value, mean, log_scale, size)
        # inputs are float32: an edge is known to about 3e-7 of its size, in units of the scale
        tolerance = 3e-7 * (2 + abs(mean)) * math.exp(-log_scale) + 1e-5 + 1e-5 * abs(expected)
        assert log_bin(*arguments, size).item() == pytest.approx(expected, abs=tolerance)
        lowest = min(lowest, expected)
    if log_scale < -3:
        assert lowest < -700  # beyond float64's own range of probabilities


@pytest.mark.parametrize("log_scale", [-100.0, -7.0, 0.0, 30.0, 200.0])
@pytest.mark.parametrize("mean", [-1e4, -1.0, 0.0, 1e4])
@pytest.mark.parametrize("weight", [0.0, 1e4])
def test_logistic_gradients_are_finite_in_extreme_parameters(log_scale, mean, weight):
    parameters = torch.zeros(3, logistic_parameters(3, 2), 1, 2)
    parameters[:, 0] = weight
    parameters[:, 2:8], parameters[:, 8:14], parameters[:, 14:] = mean, log_scale, 100.0
    parameters.requires_grad_()
    x = torch.tensor([0, 100, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 1, 2)
    log_prob = LogisticMixture(parameters, 3).log_prob(x)
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and parameters.grad.isfinite().all()
    if log_scale <= 0 and abs(mean) > 1:  # a mean far away is still pulled back
        assert parameters.grad[:, 2:8].abs().sum() > 0


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_other_gradients_are_finite_in_extreme_parameters(logit):
    for build, shape in ((Bernoulli, (2, 1, 2, 2)), (Categorical, (2, 2, 2, 2))):
        logits = torch.zeros(shape)
        logits[..., 0] = logit
        logits.requires_grad_()
        distribution = build(logits)
        for value in (0, 1):
            x = torch.full((2, *distribution.shape), value, dtype=distribution.dtype)
            log_prob = distribution.log_prob(x)
            (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
            assert log_prob.isfinite().all() and gradient.isfinite().all()


# --- sampling -----------------------------------------------------------------------------------------------------


def frequencies_match(build, images, draw=Draw()):
    """Largest deviation of counted from computed frequencies of whole maps, in standard errors."""
    maps, log_probs = all_log_probs(build)
    distribution = build(images)
    samples = distribution.sample(noise(1, range(images), 0, distribution.sites), draw)
    assert samples.dtype == distribution.dtype and samples.shape == (images, *distribution.shape)
    weights = distribution.size ** torch.arange(distribution.sites - 1, -1, -1)
    counts = torch.bincount((samples.flatten(1).long() * weights).sum(1), minlength=len(maps)).double()
    p = log_probs.exp()
    used = p * images > 5
    assert p[used].sum() > 0.9
    return ((counts - p * images) / (p * (1 - p) * images).sqrt())[used].abs().max().item()


@pytest.mark.parametrize(("kind", "shape", "settings"), KINDS)
def test_samples_come_as_often_as_their_probability_says(kind, shape, settings):
    """Whole maps are counted, so a wrong dependence between sites or channels shows as well as a wrong table."""
    assert frequencies_match(repeated(kind, torch.randn(shape), **settings), 20000) < 4.5


def test_inverse_cdf_by_hand():
    log_probs = torch.tensor([0.25, 0.0, 0.5, 0.25]).log().view(1, 1, 4)
    expected = {0.0: 0, 0.2499: 0, 0.2501: 2, 0.5: 2, 0.7499: 2, 0.7501: 3, ALMOST_ONE: 3}
    for u, value in expected.items():
        assert draw_values(log_probs, torch.tensor([[u]], dtype=torch.float64), Draw()).item() == value


@pytest.mark.parametrize("size", [2, 5, 1000])
def test_values_of_probability_zero_never_come(size):
    """At noise 0 and at the largest noise below 1, wherever the values of probability 0 lie."""
    extremes = torch.tensor([0.0, 2.0**-53, 0.5, 1 - 2.0**-30, ALMOST_ONE], dtype=torch.float64)
    for possible in ([0], [size - 1], [size // 2], sorted({size // 3, size - 2})):
        logits = torch.full((1, 1, size), -torch.inf)
        logits[..., possible] = torch.randn(len(possible))
        table = logits.log_softmax(-1).expand(1, len(extremes), size)
        for draw in (Draw(), Draw(temperature=0.3), Draw(top_k=2), Draw(top_p=0.99)):
            drawn = draw_values(table, extremes[None], draw)
            assert set(drawn.flatten().tolist()) <= set(possible)
        drawn = draw_values(table, extremes[None], Draw())
        assert drawn[0, 0] == possible[0] and drawn[0, -1] == possible[-1]


def test_noise_that_rounds_to_one_still_gives_a_possible_value(monkeypatch):
    """On devices without float64 the largest noise becomes 1.0, past the end of every cumulated table."""
    monkeypatch.setattr(drawing, "finest", lambda device: torch.float32)
    u = torch.full((1, 7), ALMOST_ONE, dtype=torch.float64)
    assert (u.float() == 1).all()
    logits = torch.full((1, 7, 9), -torch.inf)
    logits[..., 2:5] = torch.randn(1, 7, 3)
    assert draw_values(logits.log_softmax(-1), u, Draw()).tolist() == [[4] * 7]


def ordered_factors(size, spread=2.0):
    """The factors of a mixture, walked along random values."""
    distribution = mixture(size=size, spread=spread, rows=8, columns=8)
    values = torch.zeros(2, distribution.sites, dtype=torch.int64)
    for factor in distribution.factors(values):
        yield factor
        values[:, factor.sites] = torch.randint(size, (2, len(factor.sites)))


@pytest.mark.parametrize("size", [2, 16, 20, 256])
def test_two_steps_find_the_value_that_the_noise_falls_into(size):
    """The one value v with P(x < v) <= u < P(x < v + 1), and what the table says unless u lies on its edge."""
    for factor in ordered_factors(size):
        u = torch.rand(2, len(factor.sites), dtype=torch.float64)
        u[0, :4] = torch.tensor([0.0, 2.0**-53, 0.5, ALMOST_ONE], dtype=torch.float64)
        drawn = factor.draw(u, Draw())
        below, above = factor.cdf(torch.stack([drawn, drawn + 1], -1)).unbind(-1)
        assert ((below <= u) & (u < above)).all()
        other = draw_values(factor.log_probs, u, Draw()) != drawn
        assert (torch.minimum(u - below, above - u)[other] < 1e-5).all()


def test_noise_that_rounds_to_one_falls_into_a_possible_value_of_an_ordered_factor():
    parameters = torch.zeros(1, logistic_parameters(1, 1), 1, 1)
    parameters[:, 2] = -7.0  # all mass within a few values of the middle
    factor = next(LogisticMixture(parameters, 1, 256).factors(torch.zeros(1, 1, dtype=torch.int64)))
    drawn = factor.draw(torch.ones(1, 1), Draw())
    assert 120 < drawn.item() < 136


@pytest.mark.parametrize("draw", [Draw(temperature=0.7), Draw(top_k=5), Draw(top_p=0.6), Draw(mode=True)])
def test_tables_taken_a_few_sites_at_a_time_give_the_same(monkeypatch, draw):
    for factor in ordered_factors(20):
        u = torch.rand(2, len(factor.sites), dtype=torch.float64)
        whole = draw_values(factor.log_probs, u, draw)
        for part in (1, 300, 2**20):
            monkeypatch.setattr(factors, "PART", part)
            assert torch.equal(factor.draw(u, draw), whole)


def shares(probs, draw):
    """Share of the unit interval that leads to each value, measured on a fine grid."""
    grid = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    table = torch.tensor(probs).log().expand(1, len(grid), len(probs))
    return (torch.bincount(draw_values(table, grid[None], draw).flatten(), minlength=len(probs)) / 10000).tolist()


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (Draw(), [0.1, 0.4, 0.2, 0.3]),
        (Draw(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squares, divided by 0.3
        (Draw(temperature=1e-4), [0, 1, 0, 0]),
        (Draw(top_k=1), [0, 1, 0, 0]),
        (Draw(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Draw(top_k=3), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Draw(top_k=9), [0.1, 0.4, 0.2, 0.3]),
        (Draw(top_p=0.39), [0, 1, 0, 0]),
        (Draw(top_p=0.41), [0, 4 / 7, 0, 3 / 7]),  # the value that crosses the border stays
        (Draw(top_p=0.69), [0, 4 / 7, 0, 3 / 7]),
        (Draw(top_p=0.71), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Draw(top_p=0.91), [0.1, 0.4, 0.2, 0.3]),
        (Draw(top_p=1e-6), [0, 1, 0, 0]),
        (Draw(top_k=3, top_p=0.5), [0, 4 / 7, 0, 3 / 7]),  # 4/9 < 0.5 <= 7/9: the nucleus is taken after top-k
        (Draw(temperature=0.5, top_p=0.53), [0, 1, 0, 0]),  # and after the temperature
        (Draw(mode=True, temperature=5), [0, 1, 0, 0]),
    ],
)
def test_temperature_top_k_and_top_p_by_hand(draw, expected):
    assert shares([0.1, 0.4, 0.2, 0.3], draw) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0}, {"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}, {"topk": 3}]
)
def test_draws_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        Draw(**wrong)


# --- mode ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "shape", "settings"),
    [
        (Categorical, (1, 2, 2, 3), {}),
        (Bernoulli, (1, 1, 2, 3), {}),
        (LogisticMixture, (1, logistic_parameters(1, 3), 1, 2), {"channels": 1, "size": 16}),
    ],
)
def test_mode_is_the_most_likely_of_every_map(kind, shape, settings):
    for _ in range(3):
        build = repeated(kind, torch.randn(shape), **settings)
        maps, log_probs = all_log_probs(build)
        mode = build(1).mode()
        assert mode.dtype == build(1).dtype
        assert torch.equal(mode[0], maps[log_probs.argmax()])
        drawn = build(1).sample(torch.rand(1, build(1).sites, dtype=torch.float64), Draw(mode=True))
        assert torch.equal(drawn, mode)


def test_mode_of_coupled_channels_takes_each_in_turn():
    """From the joint table of all 512 colours: the best first channel, the best second given it, the best third."""
    for _ in range(5):
        build = repeated(LogisticMixture, torch.randn(1, logistic_parameters(3, 3), 1, 1), channels=3, size=8)
        joint = all_log_probs(build)[1].exp().view(8, 8, 8)
        first = int(joint.sum((1, 2)).argmax())
        second = int(joint[first].sum(1).argmax())
        third = int(joint[first, second].argmax())
        assert build(1).mode().flatten().tolist() == [first, second, third]


# --- mean ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_mean_is_the_sum_of_all_values_by_their_probability(channels, spread):
    """From the joint table of all colours; of coupled channels only what the outer bins cut off is approximated."""
    grey = {"channels": channels, "size": 8}
    cases = [
        (lambda logits: Categorical(logits, torch.uint8), (1, channels, 1, 1, 8), {}, 1e-4),
        (Bernoulli, (1, channels, 1, 2), {}, 1e-4),
        (LogisticMixture, (1, logistic_parameters(channels, 4), 1, 1), grey, 0.03 if channels == 1 else 0.2),
    ]
    for kind, shape, settings, within in cases:
        build = repeated(kind, spread * torch.randn(shape), **settings)
        maps, log_probs = all_log_probs(build)
        expected = (maps.flatten(1) * log_probs.exp()[:, None]).sum(0)
        values = torch.zeros(1, build(1).sites, dtype=torch.int64)
        found = torch.cat([factor.mean() for factor in build(1).factors(values)], 1)[0].double()
        assert (found - expected).abs().max() < within
        picture = build(1).mean()
        assert picture.dtype == torch.uint8
        outer = (picture.flatten() == 0) | (picture.flatten() == build(1).size - 1)
        assert ((picture.flatten() - found).abs() <= 0.5)[~outer].all()


@pytest.mark.parametrize("size", [2, 17, 256])
def test_plain_grounds_stay_plain_in_pictures(size):
    """Black or white where it has most of the mass, though the mean is another grey; elsewhere the mean."""
    black, white, neither = [0.85, 0.15 / (size - 1)], [0.15 / (size - 1), 0.85], [0.4, 0.6 / (size - 1)]
    tables = torch.full((1, 1, 1, 3, size), 0.0)
    for place, (first, rest) in enumerate([black, white, neither]):
        tables[..., place, :] = rest if place != 1 else first
        tables[..., place, 0 if place != 1 else -1] = first if place != 1 else rest
    picture = Categorical(tables.log(), torch.uint8).mean().flatten().tolist()
    assert picture[:2] == [0, size - 1]
    means = (tables.flatten(0, 2)[0] * torch.arange(size)).sum(-1)
    assert picture[2] == pytest.approx(means[2].item(), abs=0.51) if size > 2 else picture[2] == 1
    narrow = LogisticMixture(logistic(mean=1.0, log_scale=-2 - math.log(size - 1)), 1, size)
    assert narrow.mean().item() == size - 1


def logistic(mean, log_scale):
    """Numbers of one component at one pixel of one channel."""
    return torch.tensor([0.0, mean, log_scale]).view(1, 3, 1, 1)


@pytest.mark.parametrize("size", [2, 17, 256])
def test_mean_of_a_component_counts_bins_whatever_its_scale(size):
    """Narrower than a bin, wider than all of them, beyond both ends."""
    mean, log_scale = 3 * torch.rand(4000, 1) - 1.5, 27 * torch.rand(4000, 1) - 7
    table = log_bins(mean.double(), log_scale.double(), size).exp()
    found = mean_value(mean, log_scale, size)[:, 0]
    assert (found - table @ torch.arange(size, dtype=torch.float64)).abs().max() < 0.03


def test_mean_keeps_a_white_ground_white_and_knows_no_colour_between_two_others():
    red, blue, white = (1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (1.2, 1.2, 1.2)
    numbers = torch.zeros(1, 10, 2, 1, 2)  # weight, means, scales, couplings of two components at two pixels
    numbers[0, 1:4, :, 0, 0] = torch.tensor([red, blue]).T
    numbers[0, 1:4, :, 0, 1] = torch.tensor([white, white]).T
    numbers[0, 4:7] = -3.0
    numbers[0, 0, 0, 0, 0] = 1.0  # red has 73 %
    between, ground = LogisticMixture(numbers.flatten(1, 2), 3, 256).mean()[0, :, 0].T.tolist()
    assert ground == [255, 255, 255]
    assert all(abs(a - b) < 10 for a, b in zip(between, [0.73 * 255, 0, 0.27 * 255], strict=True))


def test_mean_leaves_known_pixels_alone_and_is_none_of_codes():
    inner = mixture(batch=2, channels=3, size=256)
    given = torch.rand(2, *inner.shape) < 0.5
    known = Known(torch.randint(256, (2, *inner.shape)), given)
    assert torch.equal(Clamped(inner, known).mean(), torch.where(given, known.values, inner.mean()).to(torch.uint8))
    with pytest.raises(ValueError, match="codes"):
        categorical().mean()


@pytest.mark.parametrize("draw", [Draw(), Draw(mode=True), Draw(temperature=0.5, top_k=3)], ids=["", "mode", "cold"])
def test_unknown_sites_are_drawn_as_if_none_were_known_and_known_ones_are_certain(draw):
    inner = mixture(batch=2, channels=1, size=32, columns=9)
    given = torch.rand(2, *inner.shape) < 0.5
    known, u = Known(torch.randint(32, (2, *inner.shape), dtype=torch.uint8), given), noise(5, range(2), 0, 9)
    clamped, drawn = Clamped(inner, known), inner.sample(u, draw)
    found = clamped.sample(u, draw)
    assert torch.equal(found, torch.where(given, known.values, drawn))
    values = found.flatten(1).long()
    (held,) = clamped.factors(values.clone())
    table = held.log_probs
    torch.testing.assert_close(table.exp().sum(-1), torch.ones(2, 9))
    torch.testing.assert_close(held.log_prob(values), table.gather(-1, values[..., None])[..., 0])
    assert (held.log_prob(values)[given.flatten(1)] == 0).all()
    for end, column in zip(held.ends(), (0, -1), strict=True):
        torch.testing.assert_close(end.float(), table[..., column].exp())
    other = torch.where(given, (known.values + 1) % 32, drawn)
    assert (clamped.log_prob(other) == -torch.inf).all() and clamped.log_prob(found).isfinite().all()


def test_a_mean_beside_known_pixels_makes_no_table(monkeypatch):
    """Tables of 256 values for each component of each site cost more than the rest of a step."""
    inner = mixture(batch=1, size=256)
    monkeypatch.setattr("vqstack.likelihood.mixture.log_bins", None)
    Clamped(inner, Known(torch.zeros(1, *inner.shape), torch.rand(1, *inner.shape) < 0.5)).mean()


# --- noise --------------------------------------------------------------------------------------------------------


def test_noise_belongs_to_the_sample_and_not_to_its_batch():
    whole = noise(3, range(8), 1, 16)
    for i in range(8):
        assert torch.equal(noise(3, [i], 1, 16)[0], whole[i])
    assert torch.equal(noise(3, [5, 2], 1, 16), whole[[5, 2]])
    assert torch.equal(noise(3, range(1, 8, 2), 1, 16), whole[1::2])  # as a second process of two would ask


@pytest.mark.parametrize(
    ("kind", "shape", "settings"),
    [
        (Categorical, (8, 2, 3, 4), {}),
        (Bernoulli, (8, 2, 1, 3), {}),
        (LogisticMixture, (8, logistic_parameters(3, 4), 2, 2), {"channels": 3, "size": 8}),
    ],
)
def test_batches_of_one_and_of_eight_draw_the_same(kind, shape, settings):
    parameters = torch.randn(shape)
    whole = kind(parameters, **settings)
    draws = whole.sample(noise(0, range(8), 0, whole.sites))
    for i in range(8):
        one = kind(parameters[i : i + 1], **settings)
        assert torch.equal(one.sample(noise(0, [i], 0, whole.sites))[0], draws[i])


def test_noise_is_different_for_every_seed_level_and_sample():
    seeds, levels = [0, 1, 2, -1, 2**32, 2**63, 2**64 - 2], range(4)
    rows = torch.cat([noise(seed, [0, 1, 2, 2**31], level, 32) for seed in seeds for level in levels])
    assert len(rows) == 7 * 4 * 4
    assert rows.unique().numel() == rows.numel()  # not one number twice, shifted or not
    assert torch.equal(noise(-1, [0], 0, 4), noise(2**64 - 1, [0], 0, 4))


def test_noise_is_uniform_in_the_half_open_interval():
    u = noise(0, range(200), 0, 500)
    assert u.dtype == torch.float64 and u.shape == (200, 500)
    assert u.min() >= 0 and u.max() < 1
    counts = torch.histc(u, 20, 0, 1)
    assert ((counts - 5000).square() / 5000).sum() < 45  # chi-square, 19 degrees of freedom: p < 0.001
    assert abs(torch.corrcoef(u.T[:2])[0, 1]) < 0.25 and abs(torch.corrcoef(u[:2])[0, 1]) < 0.2
    assert noise(0, [], 0, 5).shape == (0, 5) and noise(0, range(0), 0, 5).dtype == torch.float64


def test_noise_stays_what_it_was():
    """Published samples are named by their seed: these numbers must never change."""
    philox = np.random.Philox(key=np.array([7, 2], dtype=np.uint64), counter=np.array([0, 0, 3, 0], dtype=np.uint64))
    assert noise(7, [3], 2, 4)[0].tolist() == np.random.Generator(philox).random(4).tolist()
    assert noise(0, [0], 0, 2)[0].tolist() == PUBLISHED


PUBLISHED = [0.011546754286331562, 0.24154919656271812]


# --- heads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [
        ("auto", 2, Bernoulli),
        ("auto", 3, Categorical),
        ("auto", 32, Categorical),
        ("auto", 33, LogisticMixture),
        ("auto", 256, LogisticMixture),
        ("categorical", 2, Categorical),
        ("categorical", 64, Categorical),
        ("logistic_mixture", 2, LogisticMixture),
    ],
)
def test_head_builds_the_family_it_counts_parameters_for(kind, size, expected):
    head = PixelHead(PixelSettings(kind=kind, components=3), channels=3, size=size)
    by_hand = {Bernoulli: 3, Categorical: 3 * size, LogisticMixture: 3 * (1 + 3 + 3 + 3)}[expected]
    assert head.parameters == by_hand
    distribution = head(torch.randn(2, head.parameters, 4, 5))
    assert type(distribution) is expected
    assert distribution.shape == (3, 4, 5) and distribution.size == size and distribution.dtype == torch.uint8
    assert distribution.sites == 60 and distribution.batch == 2
    x = torch.randint(size, (2, 3, 4, 5), dtype=torch.uint8)
    assert distribution.log_prob(x).shape == (2,)
    sample = distribution.sample(noise(0, range(2), 0, 60))
    assert sample.shape == x.shape and sample.long().max() < size


def test_categorical_head_reads_its_channels_in_blocks():
    head = PixelHead(PixelSettings(), channels=2, size=5)
    parameters = torch.randn(1, 10, 2, 3)
    x = torch.randint(5, (1, 2, 2, 3), dtype=torch.uint8)
    total = 0.0
    for c, i, j in itertools.product(range(2), range(2), range(3)):
        block = parameters[0, 5 * c : 5 * c + 5, i, j].double()
        total += (block[int(x[0, c, i, j])] - block.exp().sum().log()).item()
    assert head(parameters).log_prob(x).item() == pytest.approx(total, rel=1e-5)


def test_bernoulli_head_refuses_more_grey_values():
    with pytest.raises(InputError, match="2 grey values"):
        PixelHead(PixelSettings(kind="bernoulli"), channels=1, size=3)


@pytest.mark.parametrize("channels", [1, 3])
def test_corrections_move_means_in_units_of_their_scales(channels):
    head = PixelHead(PixelSettings(components=2), channels, 256)
    base, change = torch.randn(2, 3, 4, head.parameters), torch.randn(2, 3, 4, head.parameters)
    base[0, 0, 0], base[0, 0, 1] = -20, 40  # the clamped scales are what counts
    assert torch.equal(head.correct(base, torch.zeros_like(base)), base)
    plain, moved = (head(x.permute(0, 3, 1, 2)) for x in (base, head.correct(base, change)))
    added = head((base + change).permute(0, 3, 1, 2))
    asked = added.means - plain.means
    units = plain.log_scales.exp() + 1 / 255
    torch.testing.assert_close(moved.means - plain.means, asked * units, rtol=1e-4, atol=1e-5)
    for same in ("log_weights", "log_scales", "coupling"):
        torch.testing.assert_close(getattr(moved, same), getattr(added, same))


@pytest.mark.parametrize(("kind", "size"), [("bernoulli", 2), ("categorical", 17)])
def test_corrections_of_other_pixels_are_added(kind, size):
    head = PixelHead(PixelSettings(kind=kind), 1, size)
    base, change = torch.randn(2, 5, head.parameters), torch.randn(2, 5, head.parameters)
    assert torch.equal(head.correct(base, change), base + change)


@pytest.mark.parametrize("size", [3, 33, 256])
def test_the_table_of_a_component_is_its_bins(size):
    mean, log_scale = torch.randn(2, 5, 1) * 2, torch.linspace(-7, 20, 10).view(2, 5, 1)
    one_by_one = torch.stack([log_bin(torch.tensor(v), mean, log_scale, size)[..., 0] for v in range(size)], -1)
    torch.testing.assert_close(log_bins(mean, log_scale, size), one_by_one)
