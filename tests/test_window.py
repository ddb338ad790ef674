"""Window decoders: what a site sees, in which order sites are drawn, and that both ways of computing them agree."""

import itertools
import math

import pytest
import torch
from helpers import assert_as_often, every_map
from test_model import total

from vqstack.errors import InputError
from vqstack.level import CodeLevel, LevelSettings, PixelLevel
from vqstack.likelihood import Known, PixelHead, PixelSettings, noise, walked_log_prob
from vqstack.likelihood.conditioned import Clamped
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings
from vqstack.stack import StackSettings
from vqstack.variables import Variable
from vqstack.window import DecoderSettings, WindowNetwork

KINDS = {"bernoulli": 2, "categorical": 3, "logistic_mixture": 40}


def pixel_level(shape=(1, 4, 6), kind="logistic_mixture", values=None, **decoder):
    settings = LevelSettings(
        map=(2, 2),
        width=8,
        decoder=DecoderSettings(**{"family": "window", "radius": 2, "width": 8, "features": 3, **decoder}),
        quantizer={"codebook_size": 5, "dim": 3},
    )
    size = values or KINDS[kind]
    head = PixelHead(PixelSettings(kind=kind, components=3), shape[0], size)
    return randomised(PixelLevel(Variable.pixels(shape, size), settings, head, shape[1:]))


def code_level(below, **decoder):
    settings = LevelSettings(
        map=(2, 1),
        width=8,
        decoder=DecoderSettings(**{"family": "window", "radius": 1, "width": 8, "features": 3, **decoder}),
        quantizer={"codebook_size": 4, "dim": 3},
    )
    return randomised(CodeLevel(settings, below))


def randomised(level):
    """Every weight from a normal distribution, so that nothing is left out because it starts at zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in level.parameters():
            parameter.normal_(std=0.3)
    return level.eval()


def maps(level, batch):
    shape, size, dtype = level.lower.shape, level.lower.size, torch.uint8
    return torch.randint(0, size, (batch, *shape), dtype=dtype)


ORDERS = [{"slope": 1}, {"slope": 2}, {"slope": 0}, {"tile": (2, 3)}, {"tile": (4, 2), "slope": 1}, {"blocks": 0}]


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_says_what_the_walk_says(kind, order):
    level = pixel_level((3, 4, 6), kind, **order)
    pixels = maps(level, 5)
    distribution = level.decode(level.encode(pixels))
    torch.testing.assert_close(
        distribution.log_prob(pixels), walked_log_prob(distribution, pixels), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("order", [{"slope": 1}, {"slope": 2}, {"tile": (1, 2)}], ids=str)
def test_one_pass_says_what_the_walk_says_of_codes(order):
    one = pixel_level()
    level = code_level(one, **order)
    codes = torch.randint(0, 5, (7, 2, 2))
    distribution = level.decode(level.encode(codes))
    torch.testing.assert_close(distribution.log_prob(codes), walked_log_prob(distribution, codes))


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_a_site_depends_on_the_sites_of_its_window_and_on_no_others(order):
    """By gradients, against the definition written out for every pair of sites."""
    level = pixel_level((1, 4, 6), "categorical", **{"width": 64, **order})  # a dead unit tells nothing: many units
    network, head = level.decoder.window, level.head
    known = torch.rand(1, 1, 4, 6, requires_grad=True)
    numbers = network(known, torch.randn(1, 3, 4, 6))
    settings = level.settings.decoder
    slope, (rows, columns) = settings.slope or settings.radius + 1, network.tile

    def group(row, column):
        return slope * (row % rows) + column % columns

    for row, column in itertools.product(range(4), range(6)):
        (reached,) = torch.autograd.grad(numbers[0, :, row, column].sum(), known, retain_graph=True)
        for r, c in itertools.product(range(4), range(6)):
            same_tile = (r // rows, c // columns) == (row // rows, column // columns)
            near = max(abs(r - row), abs(c - column)) <= settings.radius
            expected = same_tile and near and group(r, c) < group(row, column)
            assert bool(reached[0, 0, r, c] != 0) == expected, ((row, column), (r, c))
    assert head.parameters == numbers.shape[1]


@pytest.mark.parametrize(("tile", "slope", "steps"), [((0, 0), 1, 9), ((0, 0), 0, 15), ((2, 3), 2, 5)])
def test_evaluations_are_those_of_one_tile(tile, slope, steps):
    """``slope * (rows - 1) + columns``, whatever the size of the map."""
    for scale in (1, 2):
        shape = (1, 4, 6) if tile == (0, 0) else (1, 4 * scale, 6 * scale)
        level = pixel_level(shape, "categorical", tile=tile, slope=slope)
        values = torch.zeros(2, math.prod(shape), dtype=torch.int64)
        found = [factor.sites for factor in level.decode(torch.zeros(2, 2, 2, dtype=torch.int64)).factors(values)]
        assert len(found) == steps
        assert sorted(torch.cat(found).tolist()) == list(range(math.prod(shape)))


@pytest.mark.parametrize(
    ("kind", "shape", "size"),
    [("bernoulli", (2, 2, 2), 2), ("categorical", (1, 2, 2), 3), ("logistic_mixture", (2, 2, 2), 2)],
)
def test_all_images_sum_to_one(kind, shape, size):
    level = pixel_level(shape, kind, values=size)
    images = every_map(shape, size, torch.uint8)
    codes = torch.tensor([[[0, 3], [1, 4]]]).expand(len(images), -1, -1)
    total = level.decode(codes).log_prob(images).double().exp().sum().item()
    assert total == pytest.approx(1, abs=1e-5)


def test_frequencies_of_samples():
    level = pixel_level((1, 2, 2), "categorical", slope=1)
    codes = torch.tensor([[[0, 3], [1, 4]]]).expand(20000, -1, -1)
    distribution = level.decode(codes)
    drawn = distribution.sample(noise(0, range(20000), 0, 4))
    images = every_map((1, 2, 2), 3, torch.uint8)
    probs = level.decode(codes[: len(images)]).log_prob(images).exp()
    place = (drawn.flatten(1).long() * torch.tensor([27, 9, 3, 1])).sum(1)
    assert_as_often(place, probs)


def test_samples_do_not_depend_on_their_batch():
    level = pixel_level((3, 4, 6), slope=1)
    codes = torch.randint(0, 5, (6, 2, 2))
    together = level.decode(codes).sample(noise(3, range(6), 0, 72))
    alone = torch.cat([level.decode(codes[i : i + 1]).sample(noise(3, [i], 0, 72)) for i in range(6)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_steps_in_which_all_is_known_are_left_out_and_change_nothing(order, channels):
    """Images that know the same sites, and one that knows a few less."""
    level = pixel_level((channels, 4, 6), **order)
    codes, values, u = torch.randint(0, 5, (3, 2, 2)), maps(level, 3), torch.rand(3, channels * 24, dtype=torch.float64)
    given = torch.ones(3, channels, 4, 6, dtype=torch.bool)
    given[:, :, 1:3, 2:4] = False
    given[2, 0, 3] = False
    short, long = (Clamped(level.decode(codes), Known(values, given)) for _ in range(2))
    long.inner.fixed = None
    steps = [sum(1 for _ in one.factors(torch.zeros(3, channels * 24, dtype=torch.long))) for one in (short, long)]
    assert steps[0] < steps[1]
    drawn = short.sample(u)
    assert torch.equal(drawn, long.sample(u)) and torch.equal(drawn[given], values[given])
    assert torch.equal(short.mean(), long.mean())
    torch.testing.assert_close(short.log_prob(drawn), long.log_prob(drawn))
    other = drawn.clone()
    other[0, 0, 0, 0] = (int(other[0, 0, 0, 0]) + 1) % 40
    assert torch.isneginf(short.log_prob(other)[0]) and short.log_prob(other)[1:].isfinite().all()


def test_known_sites_are_kept_and_seen_by_later_ones():
    level = pixel_level((1, 4, 6), "categorical", slope=1)
    codes, u = torch.randint(0, 5, (6, 2, 2)), noise(3, range(6), 0, 24)
    given = torch.zeros(6, 1, 4, 6, dtype=torch.bool)
    given[..., 0, 0] = True
    drawn = [Clamped(level.decode(codes), Known(torch.full((6, 1, 4, 6), value), given)).sample(u) for value in (0, 2)]
    assert (drawn[0][..., 0, 0] == 0).all()
    assert (drawn[1][..., 0, 0] == 2).all()
    assert not torch.equal(drawn[0][..., 1:], drawn[1][..., 1:])


def test_gradients_reach_the_encoder_and_the_vectors_of_known_codes():
    one = pixel_level()
    level = code_level(one).train()
    level(torch.randint(0, 5, (16, 2, 2))).loss.backward()
    for name, parameter in level.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_pixels_start_near_their_neighbours():
    """Before a step is taken flat images cost far less than the eight bits that a uniform distribution needs."""
    torch.manual_seed(0)
    settings = LevelSettings(map=(2, 2), decoder=DecoderSettings(family="window"))
    level = PixelLevel(Variable.pixels((3, 8, 8), 256), settings, PixelHead(PixelSettings(), 3, 256), (8, 8)).eval()
    flat = torch.tensor([10, 100, 250], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    bits = -level.decode(torch.zeros(1, 2, 2, dtype=torch.int64)).log_prob(flat).item() / math.log(2)
    assert bits / flat.numel() < 3


def test_padding_is_neither_read_nor_scored():
    shape = (1, 3, 5)
    settings = LevelSettings(map=(2, 2), width=8, decoder=DecoderSettings(family="window", radius=2, width=8))
    level = randomised(PixelLevel(Variable.pixels(shape, 3), settings, PixelHead(PixelSettings(), 1, 3), (4, 6)))
    pixels = maps(level, 4)
    distribution = level.decode(level.encode(pixels))
    assert distribution.shape == shape
    torch.testing.assert_close(distribution.log_prob(pixels), walked_log_prob(distribution, pixels))


def test_tiles_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match=r"tile.*4x4.*4x6"):
        WindowNetwork(DecoderSettings(family="window", tile=(4, 4)), (4, 6), 1, PixelHead(PixelSettings(), 1, 3))


def small_model(refiners=()):
    """Two levels with windows over 2×2 binary pixels."""
    window = DecoderSettings(family="window", radius=1, width=4, features=2, slope=1)
    level = {"width": 8, "decoder": window}
    stack = StackSettings(
        levels=(
            LevelSettings(map=(2, 1), quantizer={"codebook_size": 3, "dim": 3}, **level),
            LevelSettings(map=(1, 1), quantizer={"codebook_size": 2, "dim": 3}, **level),
        )
    )
    network = {"depth": 1, "dim": 8, "heads": 2}
    settings = ModelSettings(
        stack=stack,
        prior=network,
        refiners=tuple({**network, "window": 1, "wavefront": 1, **refiner} for refiner in refiners),
        image_shape=(1, 2, 2),
        values=2,
    )
    return randomised(HierarchicalModel(settings))


REFINERS = [
    (),
    ({"level": 1, "family": "masked"}, {"level": 2, "family": "autoregressive"}),
    ({"level": 1, "family": "autoregressive"},),
]


@pytest.mark.parametrize("refiners", REFINERS, ids=str)
def test_the_whole_model_sums_to_one(refiners):
    """Decoders alone, and as the base of refiners."""
    assert total(small_model(refiners)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("family", ["masked", "autoregressive"])
def test_a_refiner_walks_along_with_the_decoder_that_it_corrects(family):
    model = small_model(({"level": 1, "family": family},))
    pixels = torch.randint(0, 2, (9, 1, 2, 2), dtype=torch.uint8)
    distribution = model.conditional(1, model.encode(pixels)[0])
    with torch.no_grad():
        torch.testing.assert_close(distribution.log_prob(pixels), walked_log_prob(distribution, pixels))
    model.refiner(1).to_logits.requires_grad_(False)
    for parameter in model.refiner(1).to_logits.parameters():
        parameter.zero_()
    unrefined = model.conditional(1, model.encode(pixels)[0], refined=False)
    with torch.no_grad():
        torch.testing.assert_close(distribution.log_prob(pixels), unrefined.log_prob(pixels))


@pytest.mark.parametrize(
    "changes", [{"wavefront": 2}, {"wavefront": 0}, {"family": "masked", "masks": "random"}], ids=str
)
def test_refiners_that_take_another_order_are_refused(changes):
    with pytest.raises(ValueError, match="window decoder"):
        small_model(({"level": 1, "family": "autoregressive", **changes},))
