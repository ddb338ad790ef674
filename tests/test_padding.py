"""What lies beyond the end of a signal (data.padding): neither scored nor counted, whatever scores it."""

import itertools
import json
import math
import struct
import zlib
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from accelerate import Accelerator
from helpers import toy, trained, untrained

from vqstack.code_model import parent_of
from vqstack.codec import archive
from vqstack.codec.blocks import BlockCodec
from vqstack.codec.container import open_container
from vqstack.codec.layout import START
from vqstack.codec.pictures import Entry, NumberFile, Pictures, pictures_of_split, rest
from vqstack.commands import compress, decompress, reconstruct
from vqstack.config import RunConfig
from vqstack.errors import InputError
from vqstack.evaluation import leaks, random_orders
from vqstack.images import AugmentSettings, ImageSettings, augment, load_splits, uniforms
from vqstack.images.pieces import pieces
from vqstack.images.volumes import as_npy
from vqstack.likelihood import noise
from vqstack.model_settings import SamplingSettings
from vqstack.phases import Run
from vqstack.quality import draw_samples, likenesses
from vqstack.shapes import PADDING, filled

RATE = 8000
LENGTHS = (5, 64, 100, 130)


@pytest.mark.parametrize("sites", [(1,), (64,), (65,), (5, 9), (8, 8, 3)])
def test_pieces_lie_side_by_side_and_hold_every_site_once(sites):
    size = (64,) if len(sites) == 1 else (4,) * len(sites)
    held = np.zeros([count + each for count, each in zip(sites, size, strict=True)], int)
    for start in pieces(sites, size, padding=True):
        held[tuple(slice(first, first + each) for first, each in zip(start, size, strict=True))] += 1
    assert (held[tuple(map(slice, sites))] == 1).all() and held.max() == 1


def marked(pixels, *inside):
    """Padding after so many sites along each axis, image by image."""
    found = pixels.int()
    for image, ends in zip(found, inside, strict=True):
        for axis, end in enumerate(ends, start=1):
            image.narrow(axis, end, image.shape[axis] - end).fill_(PADDING)
    return found


REFINED = {"level": 1, "depth": 1, "dim": 8, "heads": 2, "groups": 3}
SHAPES = [
    ((1, 8), [(8,), (5,), (0,)]),
    ((2, 4, 4), [(4, 4), (3, 4), (0, 2)]),
    ((1, 4, 2, 4), [(4, 2, 4), (3, 1, 2), (0, 0, 0)]),
]


CASES = [
    *((0, values, False, refiner) for values in (2, 16, 300) for refiner in (None, "masked")),
    *((place, 300, False, "masked") for place in (1, 2)),
    *((place, 300, True, refiner) for place in range(3) for refiner in (None, "autoregressive")),
]


@pytest.mark.parametrize(("place", "values", "window", "refiner"), CASES, ids=str)
def test_a_likelihood_is_that_of_what_is_inside(place, values, window, refiner, tmp_path):
    shape, inside = SHAPES[place]
    maps = [tuple(n // 2 for n in shape[1:])]
    refiners = [] if refiner is None else [{**REFINED, "family": refiner}]
    if refiner and window:
        refiners[0] |= {"wavefront": 2, "window": 1}
    model = untrained(tmp_path, shape, maps, refiners=refiners, values=values)
    if window:
        settings = model.settings.model_dump()
        settings["stack"]["levels"][0]["decoder"] |= {"family": "window", "radius": 1, "slope": 2, "width": 8}
        torch.manual_seed(1)
        model = type(model)(type(model.settings).model_validate(settings)).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn_like(weights) * 0.1)
    kind = torch.uint8 if values <= 256 else torch.int32
    pixels = torch.randint(0, values, (3, *shape)).to(kind)
    found = marked(pixels, *inside)
    rest = filled(found, values)
    assert rest.dtype == kind and torch.equal(rest[found >= 0], pixels[found >= 0])
    codes = model.encode(found)
    assert all(torch.equal(one, other) for one, other in zip(codes, model.encode(rest), strict=True))
    with torch.no_grad():
        lengths = model.code_lengths(found, codes)
        by_site = model.code_lengths_by_site(rest, codes)
        objective = model.stack.level(1)(found)
    wanted = by_site["level-1"].where(found >= 0, 0).flatten(1).sum(1)
    torch.testing.assert_close(lengths["level-1"], wanted, rtol=1e-4, atol=1e-4)
    assert lengths["level-1"][0] > lengths["level-1"][2]
    torch.testing.assert_close(lengths["prior"], by_site["prior"].flatten(1).sum(1), rtol=1e-4, atol=1e-4)
    if refiner is None:  # what training minimises is the same, in nats a site
        torch.testing.assert_close(objective.metrics["nats"], wanted.mean(), rtol=1e-4, atol=1e-4)
    elif refiner == "masked":  # of three times one image it scores each of three groups once, by weight 3
        same = [x[1:2].expand(3, *x.shape[1:]) for x in (found, codes[0])]
        with torch.no_grad():
            nats = model.refiner(1)(same[0], *parent_of(model.stack.level(1), same[1])[:3]).metrics["nats"]
        torch.testing.assert_close(nats, wanted[1], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sounds shorter and longer than an excerpt, and one without a number."""
    made = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    for split, number in itertools.product(("train", "test"), range(3)):
        for count in LENGTHS:
            path = made / split / f"{number}-{count}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, generator.integers(-9000, 9000, count).astype(np.int16), RATE)
    soundfile.write(made / "train" / "none.wav", np.zeros(0, np.int16), RATE)
    return made


def settings(folder, **changes):
    files = {name: str(folder / name) for name in ("train", "test")}
    sounds = {"source": "audiofolder", "files": files, "size": (64,), "rate": RATE, "validation": 0.4}
    return sounds | {"padding": True} | changes


@pytest.mark.parametrize("changes", [{}, {"companding": "mu-law"}], ids=str)
def test_every_number_of_a_folder_is_scored_once(changes, folder):
    split = load_splits(ImageSettings(**settings(folder, **changes)), ["test"])["test"]
    assert len(split) == 3 * (1 + 1 + 2 + 3) and split.padded
    left = load_splits(ImageSettings(**settings(folder, **changes)), ["train"])["train"].source["left_out"]
    assert {why: what["count"] for why, what in left.items()} == {"holds no number": 1}
    assert int((split.marked >= 0).sum()) == 3 * sum(LENGTHS)
    first = soundfile.read(folder / "test" / "0-100.wav", dtype="int16")[0].astype(int) + 2**15
    if not changes:
        assert np.array_equal(split.marked[:2].flatten()[:100], first)
    assert (split.pixels[split.marked < 0] == split.source["values"] // 2).all()  # silence
    streamed = load_splits(ImageSettings(**settings(folder, streaming=True, workers=0, **changes)), ["test"])["test"]
    assert sorted(map(str, streamed.marked.tolist())) == sorted(map(str, split.marked.tolist()))


def test_a_run_counts_what_is_there_and_its_archive_holds_that(folder, tmp_path):
    run = tmp_path / "run"
    config = toy(settings(folder), (16,), (4,))
    model = trained(config, run)
    split = load_splits(config.data, ["test"])["test"]
    told = json.loads((run / "ledger.json").read_text())["test"]
    dims = {row["row"]: row["dims"] for row in told["rows"]}
    assert dims["level-1"] == 3 * sum(LENGTHS) / len(split) and dims["prior"] == 4
    codes = model.encode(split.pixels)
    by_site = model.code_lengths_by_site(split.pixels, codes)["level-1"].where(split.marked >= 0, 0)
    row = next(row for row in told["rows"] if row["row"] == "level-1")
    assert abs(row["nats"] - by_site.double().flatten(1).sum(1).mean().item()) < 0.05
    assert abs(told["bits_per_dim"] - told["bits"] / dims["level-1"]) < 1e-9
    held = pictures_of_split(split, sound=True)
    assert sum(entry.width for entry in held.entries) == 3 * sum(LENGTHS)
    assert all(held.load(i).shape == (1, entry.width) for i, entry in enumerate(held.entries))
    compress.main([str(run), str(folder / "test"), "--report", str(tmp_path / "r"), "--out", str(tmp_path / "small")])
    found = json.loads((tmp_path / "r").read_text())
    assert found["numbers"] == 3 * sum(LENGTHS) and found["bits_per_dim"] == found["bytes"] * 8 / found["numbers"]
    decompress.main([str(run), str(tmp_path / "small"), "--out", str(tmp_path / "back")])
    for path in (folder / "test").iterdir():
        one, other = (soundfile.read(at / path.name, dtype="int16")[0] for at in (folder / "test", tmp_path / "back"))
        assert np.array_equal(one, other)
    short = str(folder / "test" / "0-5.wav")
    reconstruct.main([str(run), short, "--out", str(tmp_path / "kept")])
    assert soundfile.info(tmp_path / "kept" / "000000-image.wav").frames == 64


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Series in rows, and volumes of 16 bits."""
    made = tmp_path_factory.mktemp("others")
    generator = np.random.default_rng(1)
    rows = [generator.integers(0, 300, 10 + 7 * number).tolist() for number in range(9)]
    pq.write_table(pa.table({"values": rows}), made / "rows.parquet")
    for number in range(9):
        volume = generator.integers(0, 1000, (5, 4, 4 + number)).astype(np.uint16)
        (made / "volumes").mkdir(exist_ok=True)
        np.save(made / "volumes" / f"{number}.npy", volume)
    return made


def of(kind, folder, others):
    """Settings of data that are cut into pieces, and the map of a code map of theirs."""
    held = {"validation": 0.3, "test": 0.4, "padding": True}
    if kind == "series":
        rows = {"source": "parquet", "files": {"train": str(others / "rows.parquet")}, "size": (16,), "values": 300}
        return rows | held, (4,)
    if kind == "volumes":
        files = {"source": "volumefolder", "files": {"train": str(others / "volumes")}, "size": (4, 4, 4)}
        return files | held | {"values": 1000}, (2, 2, 2)
    return settings(folder, values=kind), (16,)


@pytest.mark.parametrize("kind", [1024, "series", "volumes"], ids=str)
def test_an_archive_of_a_split_holds_what_its_ledger_says(kind, folder, others, tmp_path):
    """The rows of the pieces that were scored, bits per number that is there, and all of it back."""
    data, sites = of(kind, folder, others)
    run = tmp_path / "run"
    config = toy(data, sites)
    trained(config, run)
    told = json.loads((run / "ledger.json").read_text())["test"]
    report = tmp_path / "report.json"
    compress.main([str(run), "--split", "test", "--report", str(report), "--out", str(tmp_path / "small")])
    found, split = json.loads(report.read_text()), load_splits(config.data, ["test"])["test"]
    assert found["pictures"] == told["images"] == len(split) and not found["raw_blocks"]
    for row in told["rows"]:
        assert found["rows"][row["row"]]["ledger_bits"] == pytest.approx(row["bits"] * told["images"], rel=1e-3)
        assert found["rows"][row["row"]]["coded_bits"] == pytest.approx(row["bits"] * told["images"], rel=0.01)
    assert found["numbers"] == int((split.marked >= 0).sum()) < split.marked.numel()
    assert found["bits_per_dim"] == pytest.approx(found["bytes"] * 8 / found["numbers"])
    assert found["ledger_bytes"] * 8 / found["numbers"] == pytest.approx(told["bits_per_dim"], rel=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_archive_of_padded_images_is_as_long_as_their_ledger(channels, tmp_path):
    """Grey and colour images of 8 bits cut into pieces, most of which end early: nothing beyond an end is coded."""
    generator, sides = np.random.default_rng(2), {"train": (5, 7, 10), "test": (4, 10, 19)}
    for split, lengths in sides.items():
        (tmp_path / split).mkdir()
        for rows, columns in itertools.product(lengths, repeat=2):
            pixels = generator.integers(0, 256, (channels, rows, columns)).astype(np.uint8)
            np.save(tmp_path / split / f"{rows}-{columns}.npy", pixels)
    data = {"source": "volumefolder", "files": {name: str(tmp_path / name) for name in sides}, "validation": 0.3}
    shape = {"size": (8, 8), "channels": channels, "values": 256, "padding": True}
    config = toy(data | shape, (2, 2), window={"family": "product"})
    run = tmp_path / "run"
    trained(config, run)
    (told, split) = json.loads((run / "ledger.json").read_text())["test"], load_splits(config.data, ["test"])["test"]
    assert told["images"] == len(split) and (split.marked < 0).float().mean() > 0.2
    given = [str(run), "--split", "test", "--report", str(tmp_path / "report.json"), "--out", str(tmp_path / "small")]
    with pytest.raises(InputError, match="pieces with padding come in archives"):
        compress.main([*given, "--single"])
    compress.main(given)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["numbers"] == int((split.marked >= 0).sum()) and not found["raw_blocks"]
    coded = sum(row["coded_bits"] for row in found["rows"].values())
    assert coded == pytest.approx(told["bits"] * len(split), rel=5e-3)
    assert 0 < found["bytes"] - coded / 8 < 1000  # names, shapes, checks
    decompress.main([str(run), str(tmp_path / "small"), "--out", str(tmp_path / "back")])
    for index, marked in zip(split.index.tolist(), split.marked, strict=True):
        piece = np.load(tmp_path / "back" / f"{index:06d}.npy")
        beyond = torch.nn.functional.pad(torch.from_numpy(piece), [0, 8 - piece.shape[2], 0, 8 - piece.shape[1]])
        assert torch.equal(beyond, marked.clamp(min=0).to(torch.uint8)) and piece.size == int((marked >= 0).sum())


def test_archives_from_before_the_rest_of_series_was_that_of_training_come_back(tmp_path, monkeypatch):
    """Beyond the end of series stood 0; so it is read where the header does not say otherwise."""
    codec = BlockCodec(untrained(tmp_path, (1, 16), [(4,)], values=300))
    values = torch.randint(0, 300, (1, 21), dtype=torch.int32)
    entry = Entry("a", 1, 21, "NUM", NumberFile((21,), as_npy((1, 21), 300, None)))

    def packed(**more):
        made = list[bytes]()
        pictures = Pictures([entry], lambda _: values)
        archive.compress(codec, pictures, lambda _, content: made.append(content), name="a", **more)
        return made[0]

    def images(content):
        return list(archive.restore(codec, open_container(tmp_path / "a.vqs", codec.tile, content), range(1)))

    now, at = packed(), START.size + 8
    monkeypatch.setattr(archive, "rest", lambda entry, values, middle=False: rest(entry, values, middle))
    before = packed(check=False)
    length, _ = struct.unpack_from("<II", before, START.size)
    header = json.loads(zlib.decompress(before[at : at + length]))
    assert images(before)[0].damaged and header.pop("middle") is True
    text = zlib.compress(json.dumps(header).encode())
    index = struct.pack("<II", len(text), zlib.crc32(text))
    before = before[: START.size] + index + text + before[at + length :]
    for content in (now, before):
        (image,) = images(content)
        assert not image.damaged and not image.level and image.pixels.equal(values)


def test_a_random_order_leaves_out_what_is_not_there(others, tmp_path):
    data, _ = of("series", None, others)
    split = load_splits(ImageSettings(**data), ["test"])["test"]
    model = untrained(tmp_path, (1, 16), [(4,)], refiners=[{**REFINED, "family": "masked"}], values=300)
    codes, nats = model.encode(split.pixels), list[torch.Tensor]()
    for pixels in (split.marked, split.pixels):
        torch.manual_seed(0)
        with torch.no_grad():
            nats.append(model.random_order_nats(pixels, codes)["level-1"])
    short = (split.marked < 0).flatten(1).any(1)
    torch.testing.assert_close(nats[0][~short], nats[1][~short])
    assert (nats[0] <= nats[1]).all() and nats[0][short].sum() < nats[1][short].sum()
    assert random_orders(model, split)["level-1"].nats == pytest.approx(nats[0].mean().item(), rel=1e-5)


@pytest.mark.parametrize(("sites", "inside"), [((7,), (4,)), ((5, 4), (5, 2)), ((3, 4, 2), (2, 4, 1))], ids=str)
def test_a_view_is_the_piece_mirrored_up_to_its_end_and_padding_around_it(sites, inside):
    """Every one of these is met, and nothing else; only a number that is there is one that is scored."""
    whole = torch.arange(2 * math.prod(inside), dtype=torch.int32).view(2, *inside) + 300
    room = [n for more, here in zip(sites[::-1], inside[::-1], strict=True) for n in (1, more - here + 1)]
    wanted = set[bytes]()
    names = ImageSettings(source="volumefolder", files={"train": "x"}, size=sites).axis_names
    for turned in itertools.product((False, True), repeat=len(sites)):
        mirrored = whole.flip([axis for axis, flip in enumerate(turned, start=1) if flip])
        around = torch.nn.functional.pad(mirrored, room, value=PADDING)
        for start in itertools.product(range(3), repeat=len(sites)):
            there = tuple(slice(first, first + count) for first, count in zip(start, sites, strict=True))
            wanted.add(around[(slice(None), *there)].contiguous().numpy().tobytes())
    around = torch.nn.functional.pad(whole, room, value=PADDING)
    piece = around[(slice(None), *(slice(1, 1 + count) for count in sites))]
    settings, count = AugmentSettings(shift=1, flip=True, flip_axes=names), 60 * len(wanted)
    draws = uniforms(0, torch.zeros(count, dtype=torch.int64), torch.arange(count))
    views = augment(piece.expand(count, *piece.shape), draws, settings, sites, beyond=PADDING)
    assert {view.numpy().tobytes() for view in views} == wanted


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("padding", [False, True])
def test_a_shift_lets_in_rest_or_padding(padding, streaming, folder, tmp_path):
    """Of sounds rest is silence, the middle value; 0 would be the loudest number."""
    held = {"padding": padding, "streaming": streaming, "size": (5,)} | ({"workers": 0} if streaming else {})
    config = toy(settings(folder, **held), (1,), augment={"shift": 4})
    with closing(Run(config, tmp_path / "run", Accelerator(cpu=True))) as run:
        pieces, beyond = run.splits["train"].stored, PADDING if padding else 2**15
        (views,) = run.data.maps("train", run.config.train_levels[0], 0).batch(torch.arange(8), torch.zeros(8).long())
    windows = torch.nn.functional.pad(pieces, (4, 4), value=beyond).unfold(2, 5, 1).flatten(0, 2)
    assert (views == beyond).any() and (views == windows).all(2).any(1).all()


def test_what_is_compared_with_pieces_ends_where_they_do(folder, tmp_path):
    """Samples, leaks and pictures of codes: beyond an end both sides have rest, and PSNR is of what is there."""
    split = load_splits(ImageSettings(**settings(folder, values=1024)), ["test"])["test"]
    model, count = untrained(tmp_path, (1, 64), [(16,)], values=1024), len(split)
    samples, _ = draw_samples(model, count + 3, 0, SamplingSettings(), 8, split)
    whole, _ = draw_samples(model, count + 3, 0, SamplingSettings(), 8)
    ends = torch.cat([split.marked, split.marked[:3]])
    assert torch.equal(samples, whole.where(ends >= 0, 512)) and not torch.equal(samples, whole)
    codes = model.encode(split.marked)[0]
    drawn = model.conditional(1, codes).sample(noise(0, range(count), 0, 64)).where(split.marked >= 0, 512)
    same = model.encode(drawn)[0] == codes
    leak = leaks(model, split.marked, None, batch_size=5)[1]
    assert (leak.sites, leak.maps) == (int(same.sum()), int(same.all(1).sum()))
    error = (model.decode(codes, 1) - split.pixels)[split.marked >= 0].double().square().mean()
    found = likenesses(model, split, batch_size=5).ways["level-1"]
    assert found.psnr == pytest.approx(10 * math.log10(1023**2 / error), rel=1e-5)


def test_what_is_not_cut_and_what_draws_whole_pictures_is_refused():
    with pytest.raises(ValueError, match="padding: source digits is not cut"):
        RunConfig(data={"source": "digits", "padding": True})
    videos = {"source": "videofolder", "files": {"train": "x"}, "rate": 1, "size": (2, 8, 8), "padding": True}
    with pytest.raises(ValueError, match="a renderer draws whole pictures"):
        RunConfig(data=videos, levels=[{"map": (1, 2, 2)}], renderer={})
