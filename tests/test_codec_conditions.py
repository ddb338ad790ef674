"""Archives of models that are given floats: exact with the same floats, refused with others."""

import numpy as np
import pytest
import torch
from helpers import refused
from PIL import Image
from test_codec import compress, everything, opened, pictures
from test_conditions import SHAPES, conditional

from vqstack.codec.blocks import BlockCodec
from vqstack.commands import compress as compressing
from vqstack.commands import decompress


def floats(kind, count):
    return torch.randn(count, *SHAPES[kind], generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("portable", [False, True])
def test_pictures_come_back_at_the_length_that_the_ledger_gives_them(kind, rows, portable, tmp_path):
    model, given = conditional(kind, classes=0), floats(kind, rows)
    codec = BlockCodec(model, portable, given)
    source = pictures(codec, 40)
    report = compress(codec, source, tmp_path, name="all")
    assert report.raw == 0
    back = everything(codec, tmp_path / "all.vqs")
    assert all(torch.equal(image.pixels, source.load(i)) and not image.level for i, image in enumerate(back))
    pixels = torch.stack([source.load(i) for i in range(40)])
    ledger = model.ledger(pixels, None, given.expand(40, *SHAPES[kind]))
    assert report.ledger.bits == pytest.approx(ledger.bits, rel=1e-4)
    assert sum(report.bits.values()) == pytest.approx(40 * ledger.bits, rel=0.05 if portable else 0.02)
    other = BlockCodec(model, condition=given.flip(-1))
    refused(lambda: opened(other, tmp_path / "all.vqs"), "the floats of --condition that it was made with")
    if rows > 1:
        some = list(everything(BlockCodec(model, condition=given), tmp_path / "all.vqs", levels=1))
        assert len(some) == 40 and all(image.level == 2 for image in some)
        refused(lambda: compress(BlockCodec(model, condition=given[:7]), source, tmp_path, name="few"), "7 rows")


def test_commands_take_the_floats_as_a_file(tmp_path):
    model = conditional()
    model.save_pretrained(tmp_path / "model")
    for number in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        image = np.array([[number % 2 * 255], [number // 2 * 255]], np.uint8)
        Image.fromarray(image).save(tmp_path / "in" / f"{number}.png")
    np.save(tmp_path / "each.npy", floats("vector", 3).numpy())
    np.save(tmp_path / "one.npy", floats("vector", 1)[0].numpy())
    np.save(tmp_path / "two.npy", floats("vector", 2).numpy())
    start = [str(tmp_path / "model"), str(tmp_path / "in"), "--out"]
    for name in ("each", "one"):
        said = ["--condition", str(tmp_path / f"{name}.npy")]
        compressing.main([*start, str(tmp_path / name), *said])
        back = [str(tmp_path / "model"), str(tmp_path / name), "--out"]
        decompress.main([*back, str(tmp_path / f"{name}-back"), *said])
        for number in range(3):
            pairs = [Image.open(tmp_path / f / f"{number}.png") for f in ("in", f"{name}-back")]
            assert np.array_equal(*map(np.asarray, pairs))
        refused(lambda back=back: decompress.main([*back, str(tmp_path / "none")]), "--condition: missing")
    singly = [*start, str(tmp_path / "single"), "--single", "--condition"]
    refused(lambda: compressing.main([*singly, str(tmp_path / "each.npy")]), "leave --single out")
    compressing.main([*singly, str(tmp_path / "one.npy")])
    refused(
        lambda: compressing.main([*start, str(tmp_path / "a")]), "--condition: missing, and this model is given text"
    )
    told = ["--condition", str(tmp_path / "two.npy")]
    refused(lambda: compressing.main([*start, str(tmp_path / "a"), *told]), "2 rows for 3 images")
    assert not (tmp_path / "a").exists() and not (tmp_path / "none").exists()
