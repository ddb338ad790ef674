"""Level 1 for inputs of any size: codes and pictures by tiles, against the model itself and against single windows."""

import numpy as np
import pytest
import torch
from helpers import refused, untrained

from vqstack import Tokenizer

RENDERER = {"width": 8, "least_width": 4, "perceptual": "none"}
KINDS = {
    "image": ((1, 8, 8), [(4, 4), (2, 2)], {"renderer": RENDERER}),
    "padded": ((3, 7, 7), [(4, 4)], {"pad_to": (8, 8)}),
    "sound": ((1, 64), [(16,), (4,)], {"geometry": {"rate": 8000}}),
    "two codes": ((1, 8, 8), [(4, 4)], {"quantizer": {"kind": "residual", "codes": 2}}),
}


def model_of(folder, shape=(1, 8, 8), maps=((4, 4),), **changes):
    """Random weights, positions and last layers among them, so that codes and pictures differ from place to place."""
    model = untrained(folder, shape, list(maps), **changes)
    for name, parameter in model.named_parameters():
        if name.endswith("position") or "last" in name or "leave.2.weight" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def random(model, *size, count=1):
    return torch.randint(0, 16, (count, model.stack.shape[0], *size), dtype=torch.uint8)


def firsts(sites, tile, overlap):
    """Where the tiles of an axis begin: as few as have ``overlap`` sites in common, evenly spread."""
    count = 1
    while count * tile - (count - 1) * overlap < sites:
        count += 1
    return [round(i * (sites - tile) / max(1, count - 1)) for i in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_at_its_own_size_it_is_the_model(kind, tmp_path):
    shape, maps, changes = KINDS[kind]
    model = model_of(tmp_path / "model", shape, maps, **changes)
    tokenizer, pixels = Tokenizer(model), random(model, *shape[1:], count=3)
    codes = tokenizer.encode(pixels)
    assert torch.equal(codes, model.encode(pixels)[0]) and codes.unique().numel() > 1
    assert torch.equal(tokenizer.decode(codes, shape[1:]), model.decode(codes))
    if model.renderer is not None:
        assert torch.equal(tokenizer.decode(codes, decoder="renderer"), model.render(codes))
    else:
        refused(lambda: tokenizer.decode(codes, decoder="renderer"), "no renderer")


@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_each_code_comes_from_the_tile_in_which_it_lies_deepest(overlap, tmp_path):
    model = model_of(tmp_path / "model")
    pixels = random(model, 22, 10)
    codes = Tokenizer(model, overlap=overlap).encode(pixels)
    assert codes.shape == (1, 11, 5)
    begin = [firsts(11, 4, overlap), firsts(5, 4, overlap)]
    for row, column in np.ndindex(11, 5):
        allowed = []  # along each axis the tiles that hold the site deepest
        for site, some in zip((row, column), begin, strict=True):
            depth = {first: min(site - first, first + 3 - site) for first in some}
            allowed.append([first for first in some if depth[first] == max(depth.values()) >= 0])
        found = set()
        for i in allowed[0]:
            for j in allowed[1]:
                window = pixels[..., 2 * i : 2 * i + 8, 2 * j : 2 * j + 8]
                found.add(int(model.encode(window)[0][0, row - i, column - j]))
        assert int(codes[0, row, column]) in found


def test_pictures_of_tiles_are_blended_where_they_overlap_and_nowhere_else(tmp_path):
    model = model_of(tmp_path / "model", renderer=RENDERER)
    tokenizer, codes = Tokenizer(model, overlap=2), torch.randint(0, 6, (1, 6, 4))
    for decoder in ("likelihood", "renderer"):
        pixels = tokenizer.decode(codes, decoder=decoder)[0, 0].float()
        upper, lower = (model.decode(codes[:, i : i + 4], decoder=decoder)[0, 0].float() for i in (0, 2))
        assert torch.equal(pixels[:4], upper[:4]) and torch.equal(pixels[8:], lower[4:])
        share = torch.tensor([4.0, 3.0, 2.0, 1.0])[:, None] / 5  # of the upper one, row by row
        torch.testing.assert_close(pixels[4:8], (share * upper[4:] + (1 - share) * lower[:4]).round(), atol=1, rtol=0)
        assert not torch.equal(upper[4:], lower[:4])


def test_a_tile_of_another_size_has_the_same_weights_and_stretched_positions(tmp_path):
    model = model_of(tmp_path / "model")
    level, pixels = model.stack.level(1), random(model, 16, 12)
    x = level._scaled(pixels)
    trunk = level.encoder.trunk
    stretched = torch.nn.functional.interpolate(trunk.position.data[None], (8, 6), mode="bilinear")[0]
    with torch.no_grad():
        trunk.position.data, kept = stretched, trunk.position.data
        wanted = level.quantizer.unchecked_encode(level.encoder(x))
        trunk.position.data = kept
    assert torch.equal(Tokenizer(model, tile=(16, 12)).encode(pixels), wanted)


def test_stages_have_no_positions_and_read_any_size(tmp_path):
    model = model_of(tmp_path / "model")
    staged = model.settings.model_dump()
    staged["stack"]["levels"][0]["networks"] = {"kind": "staged", "options": {}}
    model = type(model)(type(model.settings).model_validate(staged)).eval()
    pixels = random(model, 12, 20)
    with torch.no_grad():
        wanted = model.stack.level(1).quantizer.unchecked_encode(
            model.stack.level(1).encoder(model.stack.level(1)._scaled(pixels))
        )
    assert torch.equal(Tokenizer(model, tile=(12, 20)).encode(pixels), wanted)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (9, 17), (30, 8)])
def test_inputs_of_any_size_have_the_codes_of_replicated_ones(size, tmp_path):
    model = model_of(tmp_path / "model")
    tokenizer, pixels = Tokenizer(model), random(model, *size)
    codes = tokenizer.encode(pixels)
    assert codes.shape[1:] == tuple(-(-n // 2) for n in size)
    more = [max(8, n + n % 2) - n for n in size]
    filled = torch.nn.functional.pad(pixels.float(), (0, more[1], 0, more[0]), mode="replicate").to(torch.uint8)
    wanted = tokenizer.encode(filled)[..., : codes.shape[1], : codes.shape[2]]
    assert torch.equal(codes, wanted)
    assert tokenizer.decode(codes, size).shape[2:] == size


def test_what_does_not_fit_is_refused(tmp_path):
    model = model_of(tmp_path / "model")
    refused(lambda: Tokenizer(model, tile=(9, 8)), "tile", "2x2")
    refused(lambda: Tokenizer(model, tile=(8,)), "tile")
    refused(lambda: Tokenizer(model, overlap=4), "overlap")
    refused(lambda: Tokenizer(model).encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), "pixels")
    refused(lambda: Tokenizer(model).decode(torch.full((1, 6, 6), 9)), "codes")
