"""The codec: what is decoded is what was coded, as long as the ledger says; damage is noticed at every byte."""

import binascii
import io
import json
import random
import struct
import tracemalloc
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from vqstack.codec import archive, layout, many, names
from vqstack.codec.archive import check_container, restore
from vqstack.codec.blocks import Block, BlockCodec, batch_of, given_label
from vqstack.codec.coder import Coder, Damaged, Decoder, Encoder, code
from vqstack.codec.container import open_container
from vqstack.codec.layout import blocks_of
from vqstack.codec.many import pack_archive
from vqstack.codec.pictures import (
    Entry,
    Pictures,
    from_tiles,
    pictures_of_files,
    read_picture,
    tile_count,
    to_tiles,
)
from vqstack.codec.portable import LEANS, RELATIVE, Rounding
from vqstack.codec.single import pack_single, single_header
from vqstack.errors import InputError, WriteError
from vqstack.images import save_png
from vqstack.images.formats import more_than_eight_bits
from vqstack.images.formats import opened as opened_image
from vqstack.ledger import BITS
from vqstack.likelihood import Bernoulli, Categorical, LogisticMixture, noise
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings


def build(shape, values, classes, prior="autoregressive", refiners=(), kind="vq", decoder=(), **stack):
    """A model with random weights, its predictions far from uniform."""
    level = {"width": 8, "encoder_blocks": 0, "decoder_blocks": 0, "decoder": dict(decoder)}
    sizes = (8, 4) if kind in ("lfq", "fsq") else (8, 5)
    levels = [
        {**level, "map": map_shape, "quantizer": {"kind": kind, "codebook_size": size, "dim": 4}}
        for map_shape, size in zip([(4, 4), (2, 2)], sizes, strict=True)
    ]
    settings = {
        "stack": {"levels": levels, **stack},
        "prior": {"family": prior, "depth": 1, "dim": 8, "heads": 2},
        "refiners": [{"depth": 1, "dim": 8, "heads": 2, "groups": 4, **refiner} for refiner in refiners],
        "image_shape": shape,
        "values": values,
        "classes": classes,
    }
    model = HierarchicalModel(ModelSettings.model_validate(settings)).eval()
    for part in model.parts:
        torch.nn.init.normal_(part.to_logits.weight, std=1.0 if part is model.prior else 0.05)
    if classes:
        model.count_labels(torch.arange(20).clamp(max=classes - 1))
    return model


@pytest.fixture(scope="module")
def grey():
    """8×8, 17 grey values, three classes."""
    torch.manual_seed(0)
    return BlockCodec(build((1, 8, 8), 17, 3))


@pytest.fixture(scope="module")
def colour():
    """6×7 in colour, padded to 8×8, without classes."""
    torch.manual_seed(1)
    return BlockCodec(build((3, 6, 7), 256, 0, pixels={"components": 2}, pad_to=(8, 8)))


@pytest.fixture(scope="module")
def refined():
    """Colours with a masked refiner of the pixels, an autoregressive one of z_1, a masked prior, and classes."""
    torch.manual_seed(2)
    refiners = [{"level": 1, "family": "masked"}, {"level": 2, "labels": True}]
    return BlockCodec(build((3, 8, 8), 256, 3, "masked", refiners, pixels={"components": 2}))


def images(codec, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    stack = codec.model.stack
    return torch.randint(0, stack.values, (count, *stack.shape), generator=generator, dtype=torch.uint8)


def pictures(codec, count, height=None, width=None):
    channels, h, w = codec.model.stack.shape
    height, width = height or h, width or w
    generator = torch.Generator().manual_seed(count)
    size = (count, channels, height, width)
    pixels = torch.randint(0, codec.model.stack.values, size, generator=generator, dtype=torch.uint8)
    mode = "L" if channels == 1 else "RGB"
    return Pictures([Entry(f"p{i:03d}", height, width, mode) for i in range(count)], pixels.__getitem__)


def compress(codec, source, folder, **options):
    """The files of pictures, written into a folder."""
    return archive.compress(codec, source, lambda name, content: (folder / name).write_bytes(content), **options)


def opened(codec, path):
    file = open_container(path, codec.tile)
    check_container(codec, file)
    return file


def everything(codec, path, **options):
    file = opened(codec, path)
    return list(restore(codec, file, range(len(file.entries)), **options))


# --- the coder --------------------------------------------------------------------------------------------------------


def distributions():
    torch.manual_seed(0)
    mixture = torch.randn(3, 2 * (1 + 6 + 3), 4, 5)
    return {
        "codes": Categorical(torch.randn(3, 4, 5, 9) * 3),
        "bits": Bernoulli(torch.randn(3, 1, 4, 5)),
        "colours": LogisticMixture(mixture, 3, 256),
        "some greys": LogisticMixture(torch.randn(3, 2 * 3, 4, 5), 1, 19),
        "sharp": LogisticMixture(mixture * 4 - 2, 3, 256),
    }


@pytest.mark.parametrize("name", distributions())
def test_coding_gives_back_every_map_at_the_length_of_its_probability(name):
    distribution = distributions()[name]
    maps = distribution.sample(noise(0, range(3), 0, distribution.sites))
    encoder = Encoder()
    code(encoder, distribution, 2, maps[:2].flatten(1).long())  # the third only fills the batch
    encoder.mark("all")
    encoder.cut()
    (stream,) = encoder.sections()
    assert torch.equal(code(Decoder(stream), distribution, 2, None), maps[:2].flatten(1).long())
    bits = -distribution.log_prob(maps)[:2].double().sum().item() * BITS
    assert encoder.bits["all"] == pytest.approx(bits, rel=1e-3, abs=0.1)
    assert encoder.bits["all"] <= 8 * len(stream) < encoder.bits["all"] + 16


@pytest.mark.parametrize("kind", ["likely", "last", "any"])
def test_every_prefix_of_sections_decodes_what_it_holds(kind):
    generator = torch.Generator().manual_seed(5)
    for _ in range(100):
        encoder, tables, symbols = Encoder(), [], []
        for size in torch.randint(2, 40, (3,), generator=generator).tolist():
            sites = int(torch.randint(1, 12, (), generator=generator))
            table = (torch.randn(1, sites, size, generator=generator) * 4).double().softmax(-1)
            drawn = torch.randint(0, size, (1, sites), generator=generator)
            chosen = {"likely": table.argmax(-1), "last": torch.full_like(drawn, size - 1), "any": drawn}[kind]
            encoder.step(encoder.counts(table), chosen)
            encoder.cut()
            tables.append(table)
            symbols.append(chosen)
        sections = encoder.sections()
        for count in (1, 2, 3):
            for after in (b"", b"\xff" * 12):  # nothing that follows the last byte matters
                decoder = Decoder(b"".join(sections[:count]) + (after if count == 3 else b""))
                for table, chosen in zip(tables[:count], symbols, strict=False):
                    assert torch.equal(decoder.step(decoder.counts(table), None), chosen)


def test_bytes_that_nobody_wrote_end_in_damage_or_in_values():
    distribution = distributions()["some greys"]
    for seed in range(50):
        try:
            values = code(Decoder(random.Random(seed).randbytes(12)), distribution, 3, None)
        except Damaged:
            continue
        assert 0 <= values.min() and values.max() < 19


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grey", "colour", "refined"])
@pytest.mark.parametrize(("count", "batch"), [(1, 1), (5, 4)])
def test_a_block_comes_back_and_is_as_long_as_the_ledger(request, name, count, batch):
    codec = request.getfixturevalue(name)
    pixels = images(codec, count)
    block = codec.encode(pixels, None, batch=batch, seed=7)
    assert not block.raw
    stored = list(zip(block.sections, block.checks, strict=True))
    found = codec.decode(stored, count, batch=batch, seed=7)
    assert torch.equal(found[-1][0], pixels)
    codes = codec.model.encode(pixels)
    assert [torch.equal(found[i][-1], codes[1 - i]) for i in (0, 1)] == [True, True]
    ledger = codec.model.ledger(pixels, found[0][0] if codec.model.classes else None)
    for row in ledger.rows:
        assert block.ledger.rows[row].nats == pytest.approx(ledger.rows[row].nats, rel=1e-5)
        assert block.bits[row] == pytest.approx(ledger.rows[row].nats * BITS, rel=2e-3, abs=0.2)
    assert codec.decode(stored, count, batch=batch, seed=8) == []  # the chain of checks starts elsewhere


def test_the_label_is_the_cheapest_or_the_one_given(grey):
    pixels = images(grey, 4)
    codes = grey.model.encode(pixels)
    costs = []
    for label in range(3):
        rows = grey.model.code_lengths(pixels, codes, torch.full((4,), label))
        costs.append(rows["label"] + rows["prior"])
    block = grey.encode(pixels, None, batch=4, seed=0)
    labels = grey.decode([(block.sections[0], block.checks[0])], 4, batch=4, seed=0)[0][0]
    assert torch.equal(labels, torch.stack(costs).argmin(0))
    given = grey.encode(pixels, 2, batch=4, seed=0)
    assert grey.decode([(given.sections[0], given.checks[0])], 4, batch=4, seed=0)[0][0].tolist() == [2] * 4


def test_labels_that_do_not_fit_are_refused(grey, colour):
    for codec, label in ((grey, "3"), (grey, "-1"), (grey, "cat"), (colour, "0")):
        with pytest.raises(InputError, match="label"):
            given_label(codec.model, label)
    given_label(colour.model, None)


def changed(model, change):
    """From now on what the terms of the model say is changed before it is used."""
    terms = model.terms

    def with_change(term):
        plain = term.distribution

        def distribution(*given, **options):
            found = plain(*given, **options)
            change(term.row, found)
            return found

        term.distribution = distribution
        return term

    model.terms = lambda **options: [with_change(term) for term in terms(**options)]


@pytest.mark.parametrize("name", [None, "all"])
def test_what_does_not_come_back_is_stored_raw(tmp_path, name):
    torch.manual_seed(0)
    codec = BlockCodec(build((1, 8, 8), 17, 3))
    calls = iter(range(1000))

    def unsteady(row, distribution):
        """Another distribution at each call."""
        if row.startswith("level"):
            distribution.logits = distribution.logits + next(calls)
            distribution.logits[..., 0] -= next(calls) % 7

    codec.probe(1, 1), codec.probe(1, 32)
    changed(codec.model, unsteady)
    source = pictures(codec, 3)
    report = compress(codec, source, tmp_path, name=name)
    assert report.raw == (3 if name is None else 1)
    found = [image for path in sorted(tmp_path.iterdir()) for image in everything(codec, path)]
    assert [(image.level, image.damaged) for image in found] == [(0, False)] * 3
    for i, image in enumerate(found):
        assert torch.equal(image.pixels, source.load(i))


def test_a_header_that_says_something_else_is_noticed(grey, tmp_path, monkeypatch):
    """The check believes what the file says: a size that is not the picture's, coded as if it were, is an error."""
    source = pictures(grey, 2)
    wrong = Pictures([Entry("p000", 8, 5, "L"), source.entries[1]], source.load)
    for name in (None, "all"):
        with pytest.raises(WriteError, match="does not come back"):
            compress(grey, wrong, tmp_path, name=name)
    assert not list(tmp_path.iterdir())


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "all"])
@pytest.mark.parametrize(("model", "size"), [("grey", (None, None)), ("colour", (None, None)), ("grey", (19, 3))])
def test_files_come_back_exactly(request, tmp_path, name, model, size):
    codec = request.getfixturevalue(model)
    source = pictures(codec, 3, *size)
    report = compress(codec, source, tmp_path, name=name)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == (["all.vqs"] if name else ["p000.vqs", "p001.vqs", "p002.vqs"])
    found = [image for path in files for image in everything(codec, path)]
    assert [image.entry for image in found] == list(source.entries)
    for i, image in enumerate(found):
        assert torch.equal(image.pixels, source.load(i))
        assert (image.level, image.damaged) == (0, False)
    assert report.size == sum(file.stat().st_size for file in files)
    if name is None:  # the header and all that the coder adds
        assert report.size - sum(report.bits.values()) / 8 <= 48 * len(files)
    assert report.numbers == sum(source.load(i).numel() for i in range(3))


def test_an_archive_is_read_block_by_block(grey, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "BLOCK", 4)
    source = pictures(grey, 10)
    compress(grey, source, tmp_path, name="all")
    path = tmp_path / "all.vqs"
    file = opened(grey, path)
    assert [(place.first, place.count) for place in file.places] == [(0, 4), (4, 4), (8, 2)]
    path.write_bytes(path.read_bytes()[: file.places[1].offset] + b"\0" * 60)  # only the first block is left
    for wanted in (range(1, 3), range(0, 4)):
        found = list(restore(grey, opened(grey, path), wanted))
        assert [image.entry.stem for image in found] == [f"p{i:03d}" for i in wanted]
        assert all(torch.equal(image.pixels, source.load(i)) for i, image in zip(wanted, found, strict=True))
    first, second = list(restore(grey, opened(grey, path), range(3, 5)))
    assert (first.level, first.damaged, second.pixels, second.damaged) == (0, False, None, True)


def test_blocks_cannot_take_each_others_place(grey, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "BLOCK", 1)
    same = pictures(grey, 1).load(0)  # two blocks of the same bytes, but for what their checks start from
    compress(grey, Pictures([Entry("a", 8, 8, "L"), Entry("b", 8, 8, "L")], lambda i: same), tmp_path, name="all")
    path = tmp_path / "all.vqs"
    whole, second = path.read_bytes(), opened(grey, path).places[1].offset
    half = len(whole) - second
    path.write_bytes(whole[: second - half] + whole[second:] + whole[second - half : second])
    assert [image.pixels for image in everything(grey, path)] == [None, None]


def test_large_pictures_are_blocks_of_their_own():
    entries = [Entry("a", 8, 8, "L"), Entry("b", 8 * 20, 8 * 20, "L"), Entry("c", 8, 8, "L"), Entry("d", 8, 16, "L")]
    assert blocks_of(entries, (8, 8)) == [range(0, 1), range(1, 2), range(2, 4)]
    assert blocks_of([Entry(str(i), 8, 8, "L") for i in range(513)], (8, 8)) == [
        range(0, 256),
        range(256, 512),
        range(512, 513),
    ]


def test_levels_show_what_the_model_makes_of_them(grey, tmp_path):
    source = pictures(grey, 3)
    compress(grey, source, tmp_path, name="all")
    pixels = torch.stack([source.load(i) for i in range(3)])
    codes = grey.model.encode(pixels)
    for levels, level in ((1, 2), (2, 1)):
        shown = everything(grey, tmp_path / "all.vqs", levels=levels)
        assert [(image.level, image.damaged) for image in shown] == [(level, False)] * 3
        found = torch.stack([image.pixels for image in shown])
        assert torch.equal(found, grey.model.decode(codes[level - 1], level))
        sampling = grey.model.settings.sampling
        drawn = everything(grey, tmp_path / "all.vqs", levels=levels, sampling=sampling, seed=4)
        expected = grey.model.vary(codes[level - 1], level, seed=4, sampling=sampling).pixels
        assert torch.equal(torch.stack([image.pixels for image in drawn]), expected)
    assert all(image.level == 0 for image in everything(grey, tmp_path / "all.vqs", levels=3))


def outcome(codec, path, truth):
    """How far a file comes; fails where it shows anything that is neither right nor named."""
    try:
        found = everything(codec, path)
    except InputError as error:
        assert "\n" not in str(error)
        return "refused"
    worst = "exact"
    for image in found:
        if image.pixels is None:
            assert image.damaged
            worst = "nothing"
        elif image.level:
            assert image.damaged
            assert torch.equal(image.pixels, truth[image.entry.stem][image.level])
            worst = "partial" if worst == "exact" else worst
        else:
            assert torch.equal(image.pixels, truth[image.entry.stem][0])
    return worst


def shown(codec, source, rename=None):
    """What each picture may show at each level; 0: itself."""
    truth = {}
    for i, entry in enumerate(source.entries):
        codes = codec.model.encode(source.load(i)[None])
        levels = {n + 1: codec.model.decode(z, n + 1)[0] for n, z in enumerate(codes)}
        truth[rename or entry.stem] = {0: source.load(i), **levels}
    return truth


def test_a_file_cut_short_anywhere_gives_the_levels_above(grey, tmp_path):
    source = pictures(grey, 1)
    compress(grey, source, tmp_path, name=None)
    whole = (tmp_path / "p000.vqs").read_bytes()
    path = tmp_path / "cut.vqs"
    order, reached = ["refused", "nothing", "partial", "exact"], []
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        reached.append(order.index(outcome(grey, path, shown(grey, source, "cut"))))
    assert reached == sorted(reached)
    assert reached[-1] == 3 and 3 not in reached[:-1]
    assert {0, 1, 2} <= set(reached)


def mutate(content, generator):
    """One damage: bits flipped, bytes changed, a part cut out, doubled or swapped, the end lost or grown."""
    data, kind = bytearray(content), generator.randrange(6)
    at = generator.randrange(len(data)) if generator.random() < 0.6 else generator.randrange(min(40, len(data)))
    if kind == 0:
        data[at] ^= 1 << generator.randrange(8)
    elif kind == 1:
        data[at] = generator.choice([0, 1, 127, 128, 255, generator.randrange(256)])
    elif kind == 2:
        del data[at : at + generator.randrange(1, 9)]
    elif kind == 3:
        data[at:at] = data[at : at + generator.randrange(1, 9)]
    elif kind == 4:
        data = data[:at]
    else:
        data += generator.randbytes(generator.randrange(1, 9))
    return bytes(data)


@pytest.mark.parametrize("name", [None, "all"])
def test_damaged_files_are_refused_or_named(grey, tmp_path, name):
    source = pictures(grey, 2)
    compress(grey, source, tmp_path, name=name)
    path = tmp_path / f"{name or 'p000'}.vqs"
    whole, truth, generator = path.read_bytes(), shown(grey, source), random.Random(3)
    counts = dict.fromkeys(["refused", "nothing", "partial", "exact"], 0)
    for _ in range(150):
        content = mutate(whole, generator)
        path.write_bytes(content)
        found = outcome(grey, path, truth)
        assert found != "exact" or content == whole
        counts[found] += 1
    assert counts["refused"] and counts["partial"]


def test_another_model_and_another_machine_are_refused(grey, tmp_path, monkeypatch):
    source = pictures(grey, 1)
    compress(grey, source, tmp_path, name=None)
    compress(grey, source, tmp_path, name="all")
    torch.manual_seed(5)
    other = BlockCodec(build((1, 8, 8), 17, 3))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError, match=f"is for model {grey.fingerprint[:8]}, this is"):
            opened(other, path)
        elsewhere = BlockCodec(grey.model)
        monkeypatch.setattr(elsewhere, "probe", lambda threads, batch: "0" * 64)
        said = check_container(elsewhere, open_container(path, grey.tile))
        assert "computes otherwise (there torch" in said and "1 threads" in said
        assert (torch.backends.cpu.get_cpu_capability() in said.split("; here")[0]) == (path.name == "all.vqs")
        assert check_container(grey, open_container(path, grey.tile)) is None


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("name", [None, "all"])
def test_where_lower_levels_come_out_otherwise_the_upper_ones_are_seen(tmp_path, name, level):
    """Another machine: from some level down it computes other probabilities, and only its checks tell it."""
    torch.manual_seed(0)
    codec = BlockCodec(build((1, 8, 8), 17, 3))
    source = pictures(codec, 3)
    compress(codec, source, tmp_path, name=name)
    truth = shown(codec, source)

    def otherwise(row, distribution):
        if row == f"level-{level}":
            distribution.logits = distribution.logits * 1.01

    changed(codec.model, otherwise)
    found = [
        image
        for path in sorted(tmp_path.iterdir())
        for image in list(restore(codec, open_container(path, codec.tile), range(3)))
    ]
    assert [(image.level, image.damaged) for image in found] == [(level, True)] * 3
    assert all(torch.equal(image.pixels, truth[image.entry.stem][level]) for image in found)


def test_the_probe_depends_on_weights_and_shape(grey):
    assert grey.probe(1, 2) == BlockCodec(grey.model).probe(1, 2) != grey.probe(1, 3)
    torch.manual_seed(0)
    other = build((1, 8, 8), 17, 3)
    with torch.no_grad():
        next(other.stack.levels[0].decoder.parameters()).flatten()[0] += 1e-3
    assert BlockCodec(other).probe(1, 2) != grey.probe(1, 2)


# --- portable files ---------------------------------------------------------------------------------------------------

WINDOW = {"family": "window", "radius": 2, "width": 8, "features": 4}
PORTABLE = {
    "grey": lambda: build((1, 8, 8), 17, 3),
    "colour": lambda: build((3, 6, 7), 256, 0, pixels={"components": 2}, pad_to=(8, 8)),
    "window": lambda: build((1, 8, 8), 256, 0, decoder=WINDOW),
    "refined": lambda: build((3, 8, 8), 256, 3, "masked", [{"level": 1, "family": "masked"}, {"level": 2}]),
    "codebook": lambda: build((1, 8, 8), 2, 0, refiners=[{"level": 2, "codebook": True, "window": 1}]),
    **{kind: lambda kind=kind: build((1, 8, 8), 17, 0, kind=kind) for kind in ("cosine", "fsq", "lfq", "simvq")},
}


@pytest.mark.parametrize("kind", PORTABLE)
def test_portable_files_are_read_where_the_numbers_are_others(tmp_path, monkeypatch, kind):
    """There, all probabilities lie off: of ordinary files by what float32 leaves open, of portable ones by less."""
    torch.manual_seed(3)
    model = PORTABLE[kind]()
    source = pictures(BlockCodec(model), 4)
    for name, portable in (("ordinary", False), ("portable", True)):
        assert compress(BlockCodec(model, portable), source, tmp_path, name=name).raw == 0
    compress(BlockCodec(model, True), source, tmp_path, name=None)
    counts, generator = Coder.counts, torch.Generator().manual_seed(0)

    def off(self, probs, blur=1.0):
        size = 1e-7 if self.rounding is None else RELATIVE / 2
        return counts(self, probs * (1 + size * (2 * torch.rand(probs.shape, generator=generator) - 1)), blur)

    monkeypatch.setattr(Coder, "counts", off)
    found = {path.stem: list(elsewhere(model, path)) for path in tmp_path.iterdir()}
    assert any(image.damaged for image in found.pop("ordinary"))
    images = [image for file in found.values() for image in file]
    assert len(images) == 8 and not any(image.damaged for image in images)
    truth = {entry.stem: source.load(i) for i, entry in enumerate(source.entries)}
    assert all(torch.equal(image.pixels, truth[image.entry.stem]) for image in images)


def elsewhere(model, path):
    codec = BlockCodec(model)
    file = open_container(path, codec.tile)
    assert (check_container(codec, file) is None) == (path.stem != "ordinary")
    return restore(codec, file, range(len(file.entries)))


@pytest.mark.parametrize("kind", PORTABLE)
def test_portable_blocks_need_neither_batch_shape_nor_threads(kind):
    torch.manual_seed(4)
    codec = BlockCodec(PORTABLE[kind](), True)
    pixels = images(codec, 5)
    block = codec.encode(pixels, None, batch=5, seed=0)
    stored = list(zip(block.sections, block.checks, strict=True))
    try:
        for threads, batch in ((1, 8), (2, 5), (3, 32)):  # the last images fill a batch up
            torch.set_num_threads(threads)
            assert torch.equal(codec.decode(stored, 5, batch=batch, seed=0)[-1][0], pixels)
    finally:
        torch.set_num_threads(1)
    assert {p.dtype for p in codec.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("edges", [0, 3, LEANS])
def test_a_block_with_a_probability_at_an_edge_is_coded_again(monkeypatch, edges):
    torch.manual_seed(4)
    codec = BlockCodec(PORTABLE["grey"](), True)
    pixels, made = images(codec, 2), []

    def rounding(lean):
        made.append(Rounding(lean))
        made[-1].unsure = lean < edges
        return made[-1]

    monkeypatch.setattr("vqstack.codec.blocks.Rounding", rounding)
    block = codec.encode(pixels, None, batch=2, seed=0)
    assert (block.raw, len(made)) == (edges == LEANS, min(edges + 1, LEANS))
    if not block.raw:
        stored = list(zip(block.sections, block.checks, strict=True))
        assert torch.equal(codec.decode(stored, 2, batch=2, seed=0)[-1][0], pixels)


def test_a_probability_at_an_edge_is_noticed_and_another_rounding_taken():
    edge = (21 / 64) / Rounding(0)._factor
    table = torch.tensor([[[edge, 1 - edge]]], dtype=torch.float64)
    unsure = []
    for lean in range(LEANS):
        rounding, here, there = Rounding(lean), Rounding(lean), Rounding(lean)
        rounding(table, 1.0, 2**24)
        unsure.append(rounding.unsure)
        off = table * torch.tensor([1 + RELATIVE / 2, 1 - RELATIVE / 2], dtype=torch.float64)
        if not rounding.unsure:
            assert torch.equal(here(table, 1.0, 2**24), there(off, 1.0, 2**24))
    assert unsure[0] and not all(unsure)
    uniform = Rounding(0)
    uniform(torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.25] * 4, [0.5, 0.25, 0.125, 0.125]]]).double(), 1.0, 2**24)
    assert not uniform.unsure  # the tables of certainty, and of simple fractions


# Files that say what cannot be, their own checks right.


def crafted(codec, path, entry, sections, raw=False):
    batch = batch_of(tile_count(entry, codec.tile))
    where = layout.environment(1, batch, codec.probe(1, batch))
    header = single_header(entry, raw, len(sections), codec.fingerprint, where)
    nothing = codec.model.ledger(images(codec, 1), torch.zeros(1, dtype=torch.int64))
    path.write_bytes(pack_single(header, Block(sections, [0] * len(sections), raw, {}, nothing)))


@pytest.mark.parametrize(
    ("height", "width"), [(0, 8), (2**17, 2**17), (2**40, 1), (8 * 8000, 8)], ids=["empty", "vast", "long", "tiles"]
)
@pytest.mark.parametrize("raw", [False, True])
def test_sizes_that_a_file_cannot_hold(grey, tmp_path, height, width, raw):
    path = tmp_path / "a.vqs"
    crafted(grey, path, Entry("a", height, width, "L"), [b"12345678"] if raw else [b"1234"] * 3, raw)
    truth = {"a": {}}
    assert outcome(grey, path, truth) in ("refused", "nothing")


def test_a_length_that_the_file_has_not_is_no_reason_to_ask_for_memory(grey, tmp_path):
    path = tmp_path / "a.vqs"
    crafted(grey, path, Entry("a", 8, 8, "L"), [b"1234"] * 3)
    whole = path.read_bytes()
    assert whole[19:22] == b"\4\4\4"
    header = whole[:19] + b"\xff\xff\xff\xff\xff\x0f" + whole[20:22]
    path.write_bytes(header + struct.pack("<H", binascii.crc_hqx(header, 0)) + whole[24:])
    assert outcome(grey, path, {"a": {}}) == "nothing"


def test_bytes_that_are_claimed_and_not_there_are_no_reason_to_decode(grey, tmp_path, monkeypatch):
    path = tmp_path / "a.vqs"
    crafted(grey, path, Entry("a", 8 * 200, 8 * 200, "L"), [b"1234", b"1234", bytes(50_000)])
    monkeypatch.setattr(grey, "decode", lambda *given, **options: pytest.fail("decodes 40,000 tiles"))
    path.write_bytes(path.read_bytes()[:64])
    assert outcome(grey, path, {"a": {}}) == "nothing"


def test_every_flipped_bit_of_a_header_is_called_damage(grey, tmp_path):
    compress(grey, pictures(grey, 1), tmp_path, name=None)
    path = tmp_path / "p000.vqs"
    whole = path.read_bytes()
    place = open_container(path, grey.tile).places[0]
    for bit in range(8 * 5, 8 * place.offset):  # the first five bytes are magic, version and flags
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(InputError, match="header is damaged"):
            open_container(path, grey.tile)


def test_an_archive_lists_no_more_pictures_than_it_can_hold(grey, tmp_path, monkeypatch):
    compress(grey, pictures(grey, 2), tmp_path, name="all")
    path = tmp_path / "all.vqs"
    content = path.read_bytes()
    length, _ = struct.unpack_from("<II", content, 5)
    header = json.loads(zlib.decompress(content[13 : 13 + length]))
    many = 2**12
    header |= {"names": [["0" * 9, 256 * many]], "shapes": [[8, 8, "L", 256 * many]]}
    header["blocks"] = [[256, True, [0]]] * many
    packed = zlib.compress(json.dumps(header).encode(), 9)
    path.write_bytes(content[:5] + struct.pack("<II", len(packed), zlib.crc32(packed)) + packed)
    with pytest.raises(InputError, match="more pictures than"):
        open_container(path, grey.tile)


def test_more_levels_than_the_header_of_a_single_file_can_count(grey):
    where = layout.environment(1, 1, "0" * 64)
    assert single_header(Entry("a", 8, 8, "L"), False, 31, grey.fingerprint, where)
    with pytest.raises(InputError, match="more than 30 levels"):
        single_header(Entry("a", 8, 8, "L"), False, 32, grey.fingerprint, where)


@pytest.mark.parametrize(
    "stem",
    [
        "../a",
        "a/../b",
        "a//b",
        "/a",
        "a/",
        ".a/b",
        "",
        ".",
        "..",
        "a\0",
        "a\\b",
        "a.level-1",
        "a/b.level-1",
        "ä" * 150,
        "a\udcff",
    ],
)
def test_names_cannot_leave_the_folder(grey, tmp_path, stem):
    seed = layout.block_seed(0, [Entry("a", 8, 8, "L")])
    block = grey.encode(images(grey, 1), None, batch=32, seed=seed)
    where = layout.environment(1, 32, grey.probe(1, 32))
    path = tmp_path / "a.vqs"
    path.write_bytes(pack_archive([Entry("a", 8, 8, "L")], [(1, block)], grey.fingerprint, where))
    assert outcome(grey, path, {"a": {0: images(grey, 1)[0]}}) == "exact"
    path.write_bytes(pack_archive([Entry("b", 8, 8, "L")], [(1, block)], grey.fingerprint, where))
    assert outcome(grey, path, {"b": {}}) == "nothing"  # a picture cannot take another's name
    path.write_bytes(pack_archive([Entry(stem, 8, 8, "L")], [(1, block)], grey.fingerprint, where))
    with pytest.raises(InputError, match="name"):
        open_container(path, grey.tile)


def test_names_are_stored_as_runs():
    stems = ["a", "x08", "x09", "x10", "x12", "99", "100", "b1", "b2"]
    runs = names.shorten(stems)
    assert runs == [("a", 1), ("x08", 3), ("x12", 1), ("99", 1), ("100", 1), ("b1", 2)]
    entries = names.Entries(runs, [(8, 8, "L", 4), (8, 9, "RGB", 5)])
    assert [entry.stem for entry in entries[:]] == stems == [entries[i].stem for i in range(len(entries))]
    assert [(entry.width, entry.mode) for entry in entries[3:5]] == [(8, "L"), (9, "RGB")]


@pytest.mark.parametrize(
    ("runs", "twin"),
    [
        ([("a", 1), ("b", 1)], None),
        ([("a", 1), ("b", 1), ("a", 1)], "a"),
        ([("x08", 3), ("x12", 1), ("x11", 1)], None),
        ([("x08", 3), ("x10", 1)], "x10"),
        ([("x10", 1), ("x08", 3)], "x10"),
        ([("x010", 1), ("x08", 3)], None),
        ([("y", 1), ("000", 10**9), ("500", 2)], "500"),
    ],
)
def test_names_that_two_runs_hold_are_found_without_listing_them(runs, twin):
    assert names.twice(runs) == twin


def bomb(codec, path, **changes):
    """An archive of two pictures whose header says something else, its checksum right."""
    compress(codec, pictures(codec, 2), path.parent, name=path.stem, check=False)
    content = path.read_bytes()
    length, _ = struct.unpack_from("<II", content, 5)
    text = zlib.decompress(content[13 : 13 + length])
    text = json.dumps({**json.loads(text), **{k: v for k, v in changes.items() if k not in ("after", "more")}}).encode()
    packed = zlib.compress(text + changes.get("more", b""), 9) + changes.get("after", b"")
    head = content[:5] + struct.pack("<II", len(packed), zlib.crc32(packed))
    path.write_bytes(head + packed + content[13 + length :])
    return path


def test_the_header_of_a_small_file_asks_for_little_memory(grey, tmp_path, monkeypatch):
    path = tmp_path / "all.vqs"
    open_container(bomb(grey, path), grey.tile)  # the same header, packed anew
    cases = [
        {"after": b"more"},  # bytes after the end of the stream
        {"more": b" " * 2**23},  # a text longer than a file of this size can have
        {"names": [["a1", 1]] * 2**18},  # more elements than it can have
        {"blocks": [[1, True, [0]]] * 2**17},
        {"shapes": [[8, 8, "L", 1]] * 2**17},
        {"blocks": [[257, True, [1]]], "names": [["p000", 257]], "shapes": [[8, 8, "L", 257]]},
    ]
    paths = [bomb(grey, tmp_path / f"{number}.vqs", **case) for number, case in enumerate(cases[:-1])]
    monkeypatch.setattr(many._Header, "model_validate_json", lambda text: pytest.fail("makes objects of it"))
    for path in paths:
        with pytest.raises(InputError, match="header is damaged"):
            open_container(path, grey.tile)
    monkeypatch.undo()
    with pytest.raises(InputError, match="contradicts itself"):
        open_container(bomb(grey, path, **cases[-1]), grey.tile)


def test_pictures_that_a_header_lists_are_made_when_they_are_asked_for(grey, tmp_path):
    """A hundred thousand names in a file of some hundred bytes cost no more than their runs."""
    count = 2**16
    blocks = [[256, True, [0]]] * (count // 256)
    path = bomb(grey, tmp_path / "all.vqs", names=[["0" * 9, count]], shapes=[[8, 8, "L", count]], blocks=blocks)
    path.write_bytes(path.read_bytes()[:-40])
    tracemalloc.start()
    file = open_container(path, grey.tile)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert (len(file.entries), file.entries[-1].stem) == (count, f"{count - 1:09d}")


def test_a_raw_block_of_large_pictures_is_no_block(grey, tmp_path):
    """An encoder gives a picture larger than a block one of its own."""
    shapes = [[2**13, 2**13, "L", 2]]
    path = bomb(grey, tmp_path / "all.vqs", shapes=shapes, blocks=[[2, True, [10**6]]])
    assert outcome(grey, path, {"p000": {}, "p001": {}}) == "nothing"


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 8), (1, 1), (9, 23), (16, 8)])
def test_tiles_make_the_picture_again(height, width):
    pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    tiles = to_tiles(pixels, (8, 8))
    assert torch.equal(from_tiles(tiles, Entry("a", height, width, "RGB")), pixels)
    assert torch.equal(tiles[0, :, 0, 0], pixels[:, 0, 0])
    assert torch.equal(tiles[-1, :, -1, -1], pixels[:, -1, -1])


def saved(image, path):
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_come_back_pixel_by_pixel(tmp_path, mode, channels):
    values = np.random.default_rng(0).integers(0, 256, (5, 6), dtype=np.uint8)
    path = saved(Image.fromarray(values).convert(mode), tmp_path / "in.png")
    mode_out, pixels = read_picture(path, channels, 256)
    assert pixels.shape == (channels, 5, 6)
    save_png(from_tiles(to_tiles(pixels, (4, 4)), Entry("out", 5, 6, mode_out)), tmp_path / "out.png", 256)
    with Image.open(path) as before, Image.open(tmp_path / "out.png") as after:
        assert np.array_equal(np.asarray(before.convert("RGB")), np.asarray(after.convert("RGB")))


def deep_files(rgb):
    """Files of 16 bits a number that pillow opens as RGB or RGBA."""

    def png(kind, channels):
        def chunk(name, data):
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        head, rows = struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0), (b"\0" + b"\xff\x01" * 4 * channels) * 4
        body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + body

    found = {"rgb.png": png(2, 3), "rgba.png": png(6, 4), "la.png": png(4, 2)}
    found["wide.ppm"] = b"P6 4 4 1000\n" + bytes(4 * 4 * 3 * 2)
    found["plain.ppm"] = b"P3 1 1 1000\n0 1 1000\n"
    ifd = [(256, 4), (257, 4), (258, 0), (259, 1), (262, 2), (273, 122), (277, 3), (278, 4), (279, 96)]
    entries = b"".join(
        struct.pack("<HHI", tag, 3, 3 if tag == 258 else 1) + struct.pack("<I", 218 if tag == 258 else value)
        for tag, value in ifd
    )
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(ifd)) + entries + bytes(4)
    found["wide.tiff"] = tiff + bytes(218 - len(tiff)) + struct.pack("<3H", 16, 16, 16)
    return found


def test_pictures_that_would_lose_something_are_refused(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    rgba = np.dstack([rgb, np.full((4, 4), 7, np.uint8)])
    wide = Image.fromarray(rgb[..., 0].astype(np.uint16) * 256)
    cases = [
        (Image.fromarray(rgb), 1, 256, "is in colour"),
        (Image.fromarray(rgba), 3, 256, "transparent"),
        (wide, 1, 256, "more than 8 bits"),
        (Image.fromarray(rgb[..., 0]), 1, 17, "grey values between"),
    ]
    for number, (image, channels, values, message) in enumerate(cases):
        with pytest.raises(InputError, match=message):
            read_picture(saved(image, tmp_path / f"{number}.png"), channels, values)
    for name, content in deep_files(rgb).items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="more than 8 bits"):
            read_picture(tmp_path / name, 3, 256)
    flat = saved(Image.fromarray(rgb), tmp_path / "flat.avif").read_bytes()
    read_picture(tmp_path / "flat.avif", 3, 256)
    place = flat.index(b"av1C") + 6  # the byte whose second bit says that there are more than 8 bits
    with opened_image(io.BytesIO(flat)) as image:  # the library that reads it would refuse such a mixture
        image.fp = io.BytesIO(flat[:place] + bytes([flat[place] | 0x40]) + flat[place + 1 :])
        assert more_than_eight_bits(image)
    with pytest.raises(InputError, match="none of PNG"):
        read_picture(saved(Image.fromarray(rgb), tmp_path / "icon.ico"), 3, 256)
    image = Image.fromarray(rgb)
    image.save(tmp_path / "film.gif", save_all=True, append_images=[Image.fromarray(255 - rgb)])
    with pytest.raises(InputError, match="several pictures"):
        read_picture(tmp_path / "film.gif", 3, 256)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.png: cannot be read"):
        read_picture(tmp_path / "broken.png", 3, 256)
    (tmp_path / "a").mkdir()
    twins = [saved(image, tmp_path / "twin.png"), saved(image, tmp_path / "a" / "twin.png")]
    with pytest.raises(InputError, match=r"would both come back as twin"):
        pictures_of_files({path: path.stem for path in twins}, partial(read_picture, channels=3, values=256))


def test_grey_values_of_a_smaller_scale_are_read_as_they_are_written(tmp_path):
    pixels = torch.arange(17, dtype=torch.uint8).view(1, 1, 17)
    save_png(pixels, tmp_path / "a.png", 17)
    mode, found = read_picture(tmp_path / "a.png", 1, 17)
    assert mode == "L"
    assert torch.equal(found, pixels)


def test_the_report_adds_up(grey, tmp_path):
    report = compress(grey, pictures(grey, 4), tmp_path, name="all")
    found = report.to_json()
    assert found["bytes"] == (tmp_path / "all.vqs").stat().st_size
    assert found["ledger_bytes"] == pytest.approx(sum(row["ledger_bits"] for row in found["rows"].values()) / 8)
    assert found["bits_per_dim"] == pytest.approx(found["bytes"] * 8 / 256)
    assert str(report).splitlines()[0].split() == ["row", "ledger", "bytes", "coded", "bytes", "difference"]
    assert isinstance(report, archive.Report)


def test_the_label_that_is_chosen_makes_the_file_shortest():
    """Of all labels, over all rows: a refiner that knows classes has its say, too."""
    torch.manual_seed(0)
    model = build((1, 8, 8), 17, 3, refiners=[{"level": 1}])
    pixels = torch.randint(0, 17, (40, 1, 8, 8), dtype=torch.uint8)
    with torch.inference_mode():
        codes = model.encode(pixels)
        totals = [-model.joint_log_prob(pixels, codes, torch.full((40,), label)) for label in range(3)]
        chosen = BlockCodec(model)._choose(pixels, codes, None)
    assert torch.equal(chosen, torch.stack(totals).argmin(0))
    assert len(chosen.unique()) > 1
