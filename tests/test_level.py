"""One level: shapes, padding, gradients, what eval mode leaves alone."""

import pytest
import torch
from helpers import randomised

from vqstack.errors import InputError
from vqstack.level import CodeLevel, LevelSettings, PixelLevel
from vqstack.likelihood import PixelHead, PixelSettings
from vqstack.variables import Variable

KINDS = {"vq": 8, "cosine": 8, "fsq": 9, "lfq": 8, "simvq": 8}


def pixel_level(shape=(1, 6, 4), values=4, pad_to=None, kind="vq", **changes):
    quantizer = {"kind": kind, "codebook_size": KINDS[kind], "dim": 4}
    settings = LevelSettings(**{"map": (3, 2), "width": 8, "quantizer": quantizer, **changes})
    head = PixelHead(PixelSettings(), shape[0], values)
    return PixelLevel(Variable.pixels(shape, values), settings, head, pad_to or shape[1:])


def code_level(below, **changes):
    settings = LevelSettings(**{"map": (3, 1), "width": 8, "quantizer": {"codebook_size": 5, "dim": 3}, **changes})
    return CodeLevel(settings, below)


def images(batch, shape=(1, 6, 4), values=4):
    return torch.randint(0, values, (batch, *shape), dtype=torch.uint8)


def test_maps_need_not_be_square():
    one = pixel_level().eval()
    two = code_level(one).eval()
    pixels = images(5)
    z1 = one.encode(pixels)
    z2 = two.encode(z1)
    assert (z1.shape, z2.shape) == ((5, 3, 2), (5, 3, 1))
    assert one.decode(z1).shape == (1, 6, 4)
    assert two.decode(z2).shape == (3, 2)
    assert two.decode(z2).size == 8
    assert one.decode(z1).log_prob(pixels).shape == (5,)


def test_a_level_may_keep_the_size_of_its_map():
    one = pixel_level().eval()
    two = code_level(one, map=(3, 2), quantizer={"codebook_size": 4, "dim": 3}).eval()
    z2 = two.encode(one.encode(images(2)))
    assert z2.shape == (2, 3, 2)
    assert two.decode(z2).shape == (3, 2)


@pytest.mark.parametrize("wrong", [(4, 2), (3, 3), (0, 2), (12, 4)])
def test_a_map_that_does_not_divide_is_refused(wrong):
    with pytest.raises(InputError, match=rf"levels\.0\.map: {wrong[0]}x{wrong[1]} does not divide .*6x4"):
        pixel_level(map=wrong)


def test_a_map_above_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match=r"levels\.1\.map: 2x2 does not divide .*3x2"):
        code_level(pixel_level(), map=(2, 2))


def test_padding_is_neither_scored_nor_shown():
    shape = (1, 5, 3)
    level = randomised(pixel_level(shape, pad_to=(6, 4)), 0.3).eval()
    pixels, codes = images(4, shape), torch.randint(0, 8, (4, 3, 2))
    distribution = level.decode(codes)
    assert distribution.shape == shape
    assert distribution.mode().shape == pixels.shape
    # The likelihood is that of the real pixels alone, site by site.
    parameters = level.decoder(level.quantizer.lookup(codes))[1]
    assert parameters.shape[-2:] == (6, 4)
    tables = parameters.view(4, 1, 4, 6, 4).log_softmax(2)[..., :5, :3]
    torch.testing.assert_close(
        distribution.log_prob(pixels), tables.gather(2, pixels[:, :, None].long()).sum((1, 2, 3, 4))
    )
    # Whatever the decoder says about the padding changes nothing.
    before = distribution.log_prob(pixels)
    changed = parameters.clone()
    changed[..., 5:, :] = 100 * torch.randn(changed[..., 5:, :].shape)
    changed[..., 3:] = 100 * torch.randn(changed[..., 3:].shape)
    torch.testing.assert_close(level.head(level.crop(changed)).log_prob(pixels), before, rtol=0, atol=0)
    parameters.retain_grad()
    level.head(level.crop(parameters)).log_prob(pixels).sum().backward()
    assert parameters.grad[..., 5:, :].abs().max() == 0
    assert parameters.grad[..., 3:].abs().max() == 0
    assert parameters.grad[..., :5, :3].abs().min() > 0
    # What the encoder reads there repeats the edge: it is a function of the real pixels.
    assert torch.equal(level.features(pixels)[..., 5, :3], level.features(pixels)[..., 4, :3])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_encoder_through_the_quantizer(kind):
    level = randomised(pixel_level(kind=kind), 0.3).train()
    vectors = level.encoder(level.features(images(16)))
    vectors.retain_grad()
    quantized = level.quantizer(vectors)
    decoded = level.distribution(quantized.vectors, quantized.codes)
    decoded.log_prob(images(16)).mean().backward()  # the likelihood alone
    assert vectors.grad.abs().sum() > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in level.encoder.parameters())
    assert sum(p.grad.abs().sum() for p in level.encoder.parameters()) > 0


def test_gradients_reach_the_embedding_of_the_codes_below():
    one = pixel_level()
    two = randomised(code_level(one), 0.3).train()
    two(torch.randint(0, 8, (16, 3, 2))).loss.backward()
    assert two.embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_forward_changes_nothing_in_eval_mode(kind):
    level = randomised(pixel_level(kind=kind, dropout=0.5), 0.3).eval()
    before = {name: value.clone() for name, value in level.state_dict().items()}
    pixels = images(16)
    first, second = level(pixels), level(pixels)
    assert torch.equal(first.loss, second.loss)
    codes = level.encode(pixels)
    for name, value in level.state_dict().items():
        assert torch.equal(value, before[name]), name
    nats = -level.decode(codes).log_prob(pixels).mean()
    torch.testing.assert_close(first.metrics["nats"], nats.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first.loss, nats / 24, rtol=1e-5, atol=1e-5)
    assert torch.equal(first.histograms["codes"], torch.bincount(codes.flatten(), minlength=KINDS[kind]))


def test_start_from_brings_the_codebook_below():
    one = pixel_level()
    two, other = code_level(one), code_level(one, embedding="random")
    untouched = other.embedding.weight.clone()
    two.start_from(one)
    other.start_from(one)
    codebook = one.quantizer.codebook()
    torch.testing.assert_close(two.embedding.weight.detach(), (codebook - codebook.mean(0)) / codebook.std())
    assert torch.equal(other.embedding.weight, untouched)
    assert two.embedding.weight.requires_grad
