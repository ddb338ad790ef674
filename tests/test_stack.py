"""Levels in order: codes of codes up, maps drawn down."""

import pytest
import torch
from helpers import randomised

from vqstack.errors import InputError
from vqstack.level import LevelSettings
from vqstack.likelihood import Draw, noise
from vqstack.stack import Stack, StackSettings
from vqstack.terms import descend

MAPS = ((4, 2), (2, 2), (1, 2))


def build(shape=(3, 8, 4), values=256, **changes):
    levels = tuple(
        LevelSettings(map=m, width=8, encoder_blocks=1, decoder_blocks=1, quantizer={"codebook_size": k, "dim": 4})
        for m, k in zip(MAPS, (8, 6, 4), strict=True)
    )
    stack = Stack(StackSettings(**{"levels": levels, **changes}), shape, values).eval()
    return randomised(stack, 0.3)


def images(batch, shape=(3, 8, 4)):
    return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8)


def test_codes_of_codes():
    stack, pixels = build(), images(5)
    maps = stack.encode(pixels)
    below = pixels
    for number, codes in enumerate(maps, start=1):
        below = stack.level(number).encode(below)
        assert torch.equal(codes, below)
    assert [z.shape[1:] for z in maps] == stack.map_shapes == list(MAPS)
    assert stack.codebook_sizes == [8, 6, 4]
    assert all(int(z.max()) < k for z, k in zip(maps, stack.codebook_sizes, strict=True))
    assert len(stack) == 3
    partial = stack.encode(pixels, 2)
    assert len(partial) == 2
    assert torch.equal(partial[1], maps[1])


def test_encoding_does_not_depend_on_the_batch():
    stack, pixels = build(), images(6)
    whole = stack.encode(pixels)
    for number in range(3):
        assert torch.equal(whole[number], torch.cat([stack.encode(p[None])[number] for p in pixels]))


def test_decode_takes_the_mode_of_codes_and_the_mean_of_pixels():
    stack = build()
    codes = stack.encode(images(4))
    z1 = stack.level(2).decode(codes[1]).mode()
    assert torch.equal(stack.decode(codes[1], 2), stack.level(1).decode(z1).mean())
    assert torch.equal(stack.decode(codes[0], 1), stack.level(1).decode(codes[0]).mean())
    assert torch.equal(stack.decode(codes[2], 3), stack.decode(codes[2], 3))
    assert stack.decode(codes[2], 3).shape == (4, 3, 8, 4)
    assert stack.decode(codes[2], 3).dtype == torch.uint8


def test_descending_draws_each_level_with_its_own_noise():
    stack = build()
    top = stack.encode(images(3))[2]
    values = descend(stack.terms(3), {"z_3": top}, [Draw()] * 3, 5, [7, 8, 9])
    z2, z1, pixels = values["z_2"], values["z_1"], values["pixels"]
    assert (z2.shape, z1.shape, pixels.shape) == ((3, 2, 2), (3, 4, 2), (3, 3, 8, 4))
    distribution = stack.level(3).decode(top)
    assert torch.equal(z2, distribution.sample(noise(5, [7, 8, 9], 2, 4)))
    assert torch.equal(pixels, stack.level(1).decode(z1).sample(noise(5, [7, 8, 9], 0, 96)))
    with pytest.raises(ValueError, match="zip"):
        descend(stack.terms(3), {"z_3": top}, [Draw()] * 2, 5, [7, 8, 9])


def test_padding_is_cropped():
    stack = build(shape=(3, 7, 3), pad_to=(8, 4))
    pixels = images(2, (3, 7, 3))
    codes = stack.encode(pixels)
    assert stack.decode(codes[2], 3).shape == pixels.shape
    with pytest.raises(InputError, match="pad_to: 4x4 is smaller than the images"):
        build(pad_to=(4, 4))
    with pytest.raises(InputError, match="does not divide"):
        build(shape=(3, 7, 3))


def test_the_encoder_state_leaves_decoders_out():
    stack = build()
    state = stack.encoder_state()
    assert state
    assert not [name for name in state if ".decoder." in name]
    pixels = images(3)
    codes = stack.encode(pixels)
    with torch.no_grad():
        for name, parameter in stack.named_parameters():
            if name not in state:
                parameter.normal_()
    assert all(torch.equal(a, b) for a, b in zip(codes, stack.encode(pixels), strict=True))
