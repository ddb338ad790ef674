"""Half precision: walks and single passes agree as far as it rounds, for every family of decoders and transformers."""

import pytest
import torch
from test_model import refined, tiny
from test_unified import unified
from test_window import KINDS, ORDERS, maps, pixel_level

from vqstack.likelihood import walked_log_prob
from vqstack.precision import autocast

HALVES = ("bf16", "fp16")
MODELS = {
    "autoregressive": lambda: tiny(**refined("autoregressive", "autoregressive", labels=True)),
    "masked": lambda: tiny(**refined("masked", "masked"), family="masked", groups=2),
    "raster, codes as vectors": lambda: tiny(groups=0, window=1, codebook=True),
    "unified": lambda: unified(groups=2, window=1, codebook=True),
    "lfq": lambda: tiny("lfq"),
}


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_says_in_one_pass_what_it_says_step_by_step(kind, order, precision):
    level = pixel_level((3, 4, 6), kind, **order)
    pixels = maps(level, 5)
    codes = level.encode(pixels)
    exact = level.decode(codes).log_prob(pixels)
    with autocast(precision, level.device), torch.no_grad():
        distribution = level.decode(codes)
        one_pass, walked = distribution.log_prob(pixels), walked_log_prob(distribution, pixels)
    assert one_pass.dtype == walked.dtype == torch.float32
    torch.testing.assert_close(one_pass, walked, rtol=0.03, atol=0.3)
    torch.testing.assert_close(one_pass, exact, rtol=0.1, atol=1)
    assert not torch.equal(one_pass, exact)  # else nothing was tested


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("kind", MODELS)
def test_samples_are_as_likely_as_in_full_precision(kind, precision):
    model = MODELS[kind]()
    with autocast(precision, model.device):
        sample = model.sample(200, seed=1)
        codes = [sample.codes[level] for level in sorted(sample.codes)]
        half = model.joint_log_prob(sample.pixels, codes, sample.labels)
    exact = model.joint_log_prob(sample.pixels, codes, sample.labels)
    assert half.dtype == exact.dtype
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.2)
    drawn = model.sample(200, seed=1).codes[1]  # by the same noise, from chances that are rounded otherwise
    assert (drawn == codes[0]).double().mean() > 0.9
