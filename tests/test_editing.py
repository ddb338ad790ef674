"""Codes that are changed before they are decoded: kept by a level, mixed, put together; by call and by command."""

from pathlib import Path

import pytest
import torch
from helpers import files_of, refused
from PIL import Image

import vqstack
from vqstack.commands import interpolate as interpolate_command
from vqstack.commands import reconstruct as reconstruct_command
from vqstack.commands import splice as splice_command
from vqstack.images import captioned, save_png


@pytest.fixture(params=["vq", "fsq", "cluster"])
def model(request):
    """Two levels, the upper one with a quantizer of each kind."""
    upper = {"kind": request.param, "codebook_size": 4, "dim": 4}
    upper |= {"codebook_size": 9, "fsq_levels": (3, 3)} if request.param == "fsq" else {}
    size = [4, 4] if request.param == "cluster" else [2, 2]
    small = {"width": 8, "encoder_blocks": 1, "decoder_blocks": 1}
    levels = [
        {"map": [4, 4], "quantizer": {"codebook_size": 8, "dim": 4}, **small},
        {"map": size, "quantizer": upper, **small},
    ]
    config = vqstack.RunConfig.model_validate({"levels": levels, "prior": {"depth": 1, "dim": 8, "heads": 2}})
    return vqstack.HierarchicalModel(config.model_settings((1, 8, 8), 0)).eval()


def test_a_way_has_its_ends_and_the_nearest_codes_between(model):
    for level, book in ((1, 8), (2, model.stack.level(2).quantizer.size)):
        shape = model.stack.map_shapes[level - 1]
        first, second = torch.randint(0, book, (2, 1, *shape))
        way = vqstack.interpolate(model, first, second, level, steps=5)
        vectors = model.stack.level(level).quantizer.codebook()
        for step, codes in enumerate(way):
            mixed = (4 - step) / 4 * vectors[first[0]] + step / 4 * vectors[second[0]]
            distance = (mixed[..., None, :] - vectors).square().sum(-1)
            chosen = distance.gather(-1, codes[..., None])[..., 0]
            assert torch.allclose(chosen, distance.amin(-1), atol=1e-5)
        distances = torch.cdist(vectors, vectors) + torch.eye(book)
        if distances.min() > 1e-4:  # vectors that differ are told apart
            assert torch.equal(way[:1], first) and torch.equal(way[-1:], second)
    refused(lambda: vqstack.interpolate(model, first, second, 2, steps=1), "steps")
    refused(lambda: vqstack.interpolate(model, first, second[:, :1], 2), "level 2")


def test_a_splice_takes_every_site_from_where_it_was_told():
    first, second = torch.randint(0, 99, (2, 3, 4, 5))
    spliced = vqstack.splice(first, second, (1, 0, 3, 2))
    for row in range(4):
        for column in range(5):
            source = second if 1 <= row < 3 and column < 2 else first
            assert torch.equal(spliced[:, row, column], source[:, row, column])
    series = vqstack.splice(first[:, 0], second[:, 0], (2, 4))
    assert torch.equal(series, torch.cat([first[:, 0, :2], second[:, 0, 2:4], first[:, 0, 4:]], 1))
    for box in ((1, 0, 3), (0, 0, 5, 5), (2, 0, 2, 3), (-1, 0, 2, 2)):
        refused(lambda box=box: vqstack.splice(first, second, box), "box")
    refused(lambda: vqstack.splice(first, second[:, :2], (0, 0, 1, 1)), "splice")


def test_a_level_keeps_what_its_codes_say(model):
    pixels = torch.randint(0, 17, (3, 1, 8, 8), dtype=torch.uint8)
    for level in (1, 2):
        kept = vqstack.reconstruct(model, pixels, level)
        assert torch.equal(kept, model.decode(model.encode(pixels)[level - 1], level))
    refused(lambda: vqstack.reconstruct(model, pixels, 3), "3")


@pytest.fixture
def released(tmp_path):
    model = vqstack.HierarchicalModel(vqstack.recipe().model_settings((1, 8, 8), 10)).eval()
    model.save_pretrained("model")
    pixels = torch.randint(0, 17, (2, 1, 8, 8), dtype=torch.uint8)
    for name, image in zip("ab", pixels, strict=True):
        save_png(image, Path(f"{name}.png"), 17)
    return model, pixels


def read(path):
    """Values of an image file, as PNG has them."""
    return torch.tensor(list(Image.open(path).tobytes())).view(1, 8, 8).mul(16).div(255).round().to(torch.uint8)


def test_images_keep_their_size_where_that_is_asked_for(released):
    model, _ = released
    photograph = torch.randint(0, 17, (1, 11, 30), dtype=torch.uint8)
    save_png(photograph, Path("c.png"), 17)
    reconstruct_command.main("model c.png a.png --out kept --own-size".split())
    tokenizer = vqstack.Tokenizer(model)
    wanted = tokenizer.decode(tokenizer.encode(photograph[None]), (11, 30))[0]
    found = torch.tensor(list(Image.open("kept/c.png").tobytes())).view(1, 11, 30).mul(16).div(255).round()
    assert torch.equal(found, wanted.float())
    for arguments, words in (
        ("model c.png --out x --tile 8 8", ("--own-size",)),
        ("model c.png --out x --own-size --level 2", ("--own-size",)),
        ("model c.png --out x --own-size --tile 9 8", ("tile",)),
        ("model c.png --out x --own-size --decoder renderer", ("no renderer",)),
    ):
        refused(lambda arguments=arguments: reconstruct_command.main(arguments.split()), *words)


def test_commands_do_what_the_calls_do(released, capsys):
    model, pixels = released
    codes = model.encode(pixels)
    reconstruct_command.main("model a.png b.png --out kept".split())
    interpolate_command.main("model a.png b.png --out way --num 3 --level 1".split())
    refused(lambda: splice_command.main("model a.png b.png --out no --level 1 --box 0 2".split()), "--box", "give 4")
    refused(lambda: splice_command.main("model a.png b.png --out no --level 1".split()), "--box 2 2 4 4")
    splice_command.main("model a.png b.png --out both --level 1 --box 0 0 2 4".split())
    for number in (0, 1):
        assert torch.equal(read(f"kept/{number:06d}-image.png"), pixels[number])
        for level in (1, 2):
            kept = vqstack.reconstruct(model, pixels, level)[number]
            assert torch.equal(read(f"kept/{number:06d}-level-{level}.png"), kept)
    way = model.decode(vqstack.interpolate(model, codes[0][:1], codes[0][1:], 1, 3), 1)
    assert all(torch.equal(read(f"way/000000-{step}.png"), way[step]) for step in range(3))
    both = model.decode(vqstack.splice(codes[0][:1], codes[0][1:], (0, 0, 2, 4)), 1)
    assert torch.equal(read("both/000000-spliced.png"), both[0])
    splice_command.main("model a.png b.png --out drawn --level 2 --box 0 0 1 1 --sample --label 7 --seed 3".split())
    drawn = model.vary(codes[1][1:], 2, torch.tensor([7]), seed=3).pixels
    assert torch.equal(read("drawn/000000-spliced.png"), drawn[0])
    for arguments, words in (
        ("model a.png --out x", ("1 images", "2")),
        ("model a.png b.png --out x --level 9", ("--level", "9")),
        ("model a.png b.png --out x --label 3", ("--label", "--sample")),
        ("model a.png b.png --out x --sample --level 2", ("class",)),
    ):
        refused(lambda arguments=arguments: interpolate_command.main(arguments.split()), *words)
        assert not Path("x").exists()
    before = files_of(Path("way"))
    refused(lambda: interpolate_command.main("model a.png b.png --out way".split()), "way")
    assert files_of(Path("way")) == before


def test_captions_stand_above_what_they_name_and_change_no_picture():
    """A line where the names are others than in the row above; below it the pictures as they were."""
    sheet = Image.effect_noise((3 * 41 - 1, 4 * 31 - 1), 90)
    names = ["cat", "dog", "an animal of a very long name"] * 2 + ["x", "y", "z"] * 2
    whole = captioned(sheet, names, 3)
    line = (whole.height - sheet.height) // 2
    assert line * 2 == whole.height - sheet.height and line > 0
    half = round(2 * sheet.height / 4)
    upper = whole.crop((0, line, sheet.width, line + half))
    lower = whole.crop((0, 2 * line + half, sheet.width, whole.height))
    assert upper.tobytes() == sheet.crop((0, 0, sheet.width, half)).tobytes()
    assert lower.tobytes() == sheet.crop((0, half, sheet.width, sheet.height)).tobytes()
    written = captioned(sheet, names, 3).crop((0, 0, sheet.width, line))
    assert min(written.tobytes()) < 100 and captioned(sheet, ["a"] * 12, 3).crop((0, 0, 40, line)) != written
