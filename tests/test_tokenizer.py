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


def local(folder, norm="site", options=None):
    """Staged networks over patches of 2x2, random weights everywhere, normalised as asked."""
    model = untrained(folder, (1, 8, 8), [(4, 4)], renderer={**RENDERER, "norm": norm})
    settings = model.settings.model_dump()
    networks = {"kind": "staged", "options": {"least": 8, "norm": norm, **(options or {})}}
    settings["stack"]["levels"][0].update(networks=networks)
    model = type(model)(type(model.settings).model_validate(settings)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def test_tiles_that_overlap_by_twice_the_reach_are_the_whole(tmp_path):
    """Codes and pictures of small tiles are those of one tile as large as the image; and reach is no larger than it is.

    By hand, patches of 2x2, a residual block at either resolution: a code reads, from its own outwards, 2 codes by the
    block, 1 by the convolution down, 2 pixels and 1 pixel: 3 codes and 3 pixels, so 5 codes. A pixel reads 1 and 2
    pixels, so up to 2 codes, then 1 by the convolution up, 2 by the block and 1 by the first.
    """
    model, size = local(tmp_path / "model"), (116, 58)
    pixels = torch.nn.functional.interpolate(torch.rand(1, 1, 29, 29), size, mode="bicubic").clamp(0, 1) * 15
    pixels = pixels.round().to(torch.uint8)
    whole = Tokenizer(model, size)
    tiled = Tokenizer(model, (48, 48))
    assert tiled.reach == {"encode": 5, "likelihood": 6, "renderer": 6} and tiled.overlap == 12
    codes = whole.encode(pixels)
    assert torch.equal(tiled.encode(pixels), codes) and codes.unique().numel() > 2
    for decoder in ("renderer", "likelihood"):
        assert tiled.seamless("encode") and tiled.seamless(decoder)
        one, other = (tokenizer.decode(codes, decoder=decoder).float() for tokenizer in (whole, tiled))
        assert (one - other).abs().max() <= 1 and (one != other).float().mean() < 1e-3  # at a tie of the rounding
        assert one.unique().numel() > 4
    level, vectors = model.stack.level(1), whole.stack.vectors(codes, 1)
    with torch.no_grad():  # what the networks say, to rounding, and from one site less not
        x = level._scaled(pixels)
        for network, given, patch, reach in ((level.encoder, x, 2, 5), (whole.renderer.up, vectors, 1, 6)):
            out = network(given) if network is level.encoder else network(given)[1]
            per = out.shape[2] / given.shape[2] * patch  # numbers that come out for each code along an axis
            for margin in (reach, reach - 1):
                part = network(given[:, :, 10 * patch :])
                part = part if network is level.encoder else part[1]
                cut = int(margin * per)
                same = torch.allclose(part[:, :, cut:], out[:, :, int(10 * per) + cut :], atol=1e-5)
                assert same == (margin == reach)


@pytest.mark.parametrize(
    ("norm", "options"), [("group", {}), ("site", {"attention": 1})], ids=["statistics of a map", "attention"]
)
def test_what_sees_everything_has_no_reach(norm, options, tmp_path):
    tokenizer = Tokenizer(local(tmp_path / "model", norm, options), (48, 48))
    assert tokenizer.reach["encode"] is None and not tokenizer.seamless("encode")
    assert tokenizer.overlap == (6 if norm == "group" else 12)  # the renderer alone has one


def test_a_norm_that_is_none_is_refused(tmp_path):
    refused(lambda: local(tmp_path / "model", options={"norm": "batch"}), "norm", "group or site")


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
    refused(lambda: Tokenizer(model).decode(torch.zeros(6, 6, dtype=torch.int64)), "codes", "[b, n, n]")
    for size in ((13, 12), (12,), (10, 12), (12, 12, 12)):  # 6x6 codes are of 11 or 12 pixels
        refused(
            lambda size=size: Tokenizer(model).decode(torch.zeros(1, 6, 6, dtype=torch.int64), size), "size", "12x12"
        )
