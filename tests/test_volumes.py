"""Volumes and images of many channels: what files of every kind become, and a run from a folder to an archive."""

import gzip
import json
import struct
import zlib

import nibabel
import numpy as np
import pytest
import torch
from helpers import refused, toy, trained
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from pydantic import ValidationError

from vqstack.codec.container import open_container
from vqstack.commands import compress, decompress, generate
from vqstack.images import ImageSettings, load_images, load_splits, saver
from vqstack.images.pieces import pieces
from vqstack.images.volumes import from_values, lossless, save_volume, to_values, whole
from vqstack.model import HierarchicalModel

SHAPE = (5, 6, 7)


def numbers(shape=SHAPE, high=256, kind=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape).astype(kind)


def tiff(path, pages, description="", **options):
    """Writes pages as Pillow does."""
    first, *others = (page if isinstance(page, Image.Image) else Image.fromarray(page) for page in pages)
    tags = ImageFileDirectory_v2()
    if description:
        tags[270] = description
    first.save(path, save_all=True, append_images=others, tiffinfo=tags, **options)


def nifti(path, array, slope=None, order="<", kind=nibabel.Nifti1Image):
    header = kind.header_class(endianness=order)
    header.set_data_dtype(array.dtype)
    image = kind(array, np.diag([2.0, 2.0, 3.0, 1.0]), header)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    image.to_filename(path)


def settings(folder, **changes):
    chosen = {"source": "volumefolder", "files": {"train": str(folder)}, "size": (4, 4, 4), **changes}
    return ImageSettings(**{"validation": 0.0, "test": 0.0, **chosen})


@pytest.mark.parametrize("sites", [(4, 4, 4), (5, 4, 9), (7, 8, 11)], ids=str)
def test_blocks_hold_every_number_and_no_other(sites):
    held = np.zeros(sites, int)
    for start in pieces(sites, (4, 4, 4)):
        block = held[tuple(slice(first, first + 4) for first in start)]
        assert block.shape == (4, 4, 4)
        block += 1
    assert held.min() >= 1 and len(pieces(sites, (4, 4, 4))) == np.prod([-(-side // 4) for side in sites])
    assert pieces((9, 3, 9), (4, 4, 4)) == []


@pytest.mark.parametrize(("values", "limits"), [(256, None), (4096, (-1024, 3071)), (65536, (-32768, 32767))], ids=str)
def test_numbers_that_are_only_moved_come_back(values, limits):
    low = 0 if limits is None else limits[0]
    every = np.arange(low, low + values).astype(np.int32)
    assert np.array_equal(to_values(every, values, limits), every - low)
    assert np.array_equal(from_values(to_values(every, values, limits), values, limits), every)


def test_a_range_scales_rounds_and_cuts():
    found = to_values(np.array([-2.0, -1.0, -0.5, 0.0, 0.26, 1.0, 7.0], np.float32), 5, (-1.0, 1.0))
    assert found.tolist() == [0, 0, 1, 2, 3, 4, 4]
    back = from_values(found, 5, (-1.0, 1.0))
    assert back.dtype == np.float32 and back.tolist() == [-1, -1, -0.5, 0, 0.5, 1, 1]


WIDE = numbers(high=4000, kind=np.uint16)
COLOUR = numbers((4, 5, 6, 3))
STACKS = {  # what is written -> what is asked for, and the numbers that come out
    "npy, 8 bits": (lambda p: np.save(p / "a.npy", numbers()), {}, numbers()[None]),
    "npy, columns first": (lambda p: np.save(p / "a.npy", np.asfortranarray(numbers())), {}, numbers()[None]),
    "npy, true and false": (lambda p: np.save(p / "a.npy", numbers() > 99), {"values": 2}, numbers()[None] > 99),
    "npy, 16 bits big-endian": (lambda p: np.save(p / "a.npy", WIDE.astype(">u2")), {"values": 4000}, WIDE[None]),
    "npy, whole numbers of 64 bits": (
        lambda p: np.save(p / "a.npy", WIDE.astype(np.int64)),
        {"values": 4000},
        WIDE[None],
    ),
    "npy, signed": (
        lambda p: np.save(p / "a.npy", WIDE.astype(np.int16) - 2000),
        {"values": 4000, "range": (-2000, 1999)},
        WIDE[None],
    ),
    "npy, floats with a range": (
        lambda p: np.save(p / "a.npy", WIDE / 4000),
        {"values": 4001, "range": (0, 1)},
        WIDE[None],
    ),
    "npy, channels first": (
        lambda p: np.save(p / "a.npy", COLOUR.transpose(3, 0, 1, 2)),
        {"channels": 3},
        COLOUR.transpose(3, 0, 1, 2),
    ),
    "npy, channels last": (lambda p: np.save(p / "a.npy", COLOUR), {"channels": 3}, COLOUR.transpose(3, 0, 1, 2)),
    "npy, an axis of one channel": (lambda p: np.save(p / "a.npy", numbers()[..., None]), {}, numbers()[None]),
    "TIFF, 8 bits": (lambda p: tiff(p / "a.tif", numbers()), {}, numbers()[None]),
    "TIFF, 16 bits": (lambda p: tiff(p / "a.tiff", WIDE), {"values": 4000}, WIDE[None]),
    "TIFF, 16 bits big-endian": (
        lambda p: tiff(p / "a.tif", [big_endian(page) for page in WIDE]),
        {"values": 4000},
        WIDE[None],
    ),
    "TIFF, compressed": (lambda p: tiff(p / "a.tif", WIDE, compression="tiff_lzw"), {"values": 4000}, WIDE[None]),
    "TIFF, pages in colour": (lambda p: tiff(p / "a.tif", COLOUR), {"channels": 3}, COLOUR.transpose(3, 0, 1, 2)),
    "TIFF, floats with a range": (
        lambda p: tiff(p / "a.tif", (WIDE / 4000).astype(np.float32)),
        {"values": 4001, "range": (0, 1)},
        WIDE[None],
    ),
    "TIFF, channels of ImageJ": (
        lambda p: tiff(
            p / "a.tif", COLOUR.transpose(0, 3, 1, 2).reshape(-1, 5, 6), "ImageJ=1.5\nimages=12\nchannels=3\nslices=4\n"
        ),
        {"channels": 3},
        COLOUR.transpose(3, 0, 1, 2),
    ),
    "TIFF, one page for each channel": (
        lambda p: tiff(p / "a.tif", WIDE),
        {"size": (4, 4), "channels": 5, "values": 4000},
        WIDE,
    ),
    "TIFF, one page": (lambda p: tiff(p / "a.tif", WIDE[:1]), {"size": (4, 4), "values": 4000}, WIDE[:1]),
    "NIfTI": (lambda p: nifti(p / "a.nii", numbers()), {}, numbers()[None]),
    "NIfTI, 16 bits, zipped": (lambda p: nifti(p / "a.nii.gz", WIDE), {"values": 4000}, WIDE[None]),
    "NIfTI, big-endian": (lambda p: nifti(p / "a.nii", WIDE, order=">"), {"values": 4000}, WIDE[None]),
    "NIfTI, version 2": (
        lambda p: nifti(p / "a.nii", WIDE, kind=nibabel.Nifti2Image),
        {"values": 4000},
        WIDE[None],
    ),
    "NIfTI, channels": (lambda p: nifti(p / "a.nii", COLOUR), {"channels": 3}, COLOUR.transpose(3, 0, 1, 2)),
    "NIfTI, scaled by its header, with a range": (
        lambda p: nifti(p / "a.nii", WIDE.astype(np.int16), slope=0.5),
        {"values": 4000, "range": (0, 1999.5)},
        WIDE[None],
    ),
}


def big_endian(page):
    return Image.frombytes("I;16B", page.shape[::-1], page.astype(">u2").tobytes())


@pytest.mark.parametrize("kind", STACKS, ids=str)
def test_what_becomes_of_files(kind, tmp_path):
    write, asked, wanted = STACKS[kind]
    write(tmp_path)
    chosen = settings(tmp_path, **asked)
    (path,) = tmp_path.iterdir()
    found = whole(str(path), len(chosen.size), chosen.channels, chosen.values, chosen.range)
    assert np.array_equal(found, wanted)
    split = load_splits(chosen, ["train"])["train"]
    for block, start in zip(split.pixels.numpy(), pieces(wanted.shape[1:], chosen.size), strict=True):
        inside = tuple(slice(first, first + 4) for first in start)
        assert np.array_equal(block, wanted[(slice(None), *inside)])


def _cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def _then(write, change):
    def both(path):
        write(path)
        change(path)

    return both


def _archive(path):
    with path.open("wb") as file:
        np.savez(file, numbers())


def _signed_bytes(path):
    """Pillow takes them for unsigned."""
    tags = ImageFileDirectory_v2()
    tags[339] = 2
    Image.fromarray(numbers()[0]).save(path, tiffinfo=tags)
    with Image.open(path) as found:
        assert found.tag_v2[339] == (2,) and found.mode == "L"


def _white(path):
    """A page whose tag of colours says that 0 is white; Pillow writes none by itself."""
    Image.fromarray(numbers()[0]).save(path)
    content = path.read_bytes()
    entry = bytes.fromhex("060103000100000001000000")  # tag 262, one number of 16 bits: 1
    assert content.count(entry) == 1
    path.write_bytes(content.replace(entry, entry[:8] + bytes(4)))


BROKEN = {  # file name, what writes it, words of the refusal
    "npy, zero bytes": ("a.npy", lambda p: p.write_bytes(b""), "cannot be read"),
    "npy, text": ("a.npy", lambda p: p.write_text("no numbers"), "cannot be read"),
    "npy, cut off": ("a.npy", _then(lambda p: np.save(p, numbers()), _cut), "cannot be read"),
    "npy, bytes after the end": (
        "a.npy",
        _then(lambda p: np.save(p, numbers()), lambda p: p.write_bytes(p.read_bytes() + b"more")),
        "belong to the array",
    ),
    "npy, floats": ("a.npy", lambda p: np.save(p, numbers() / 2), "data.range"),
    "npy, not finite": ("a.npy", lambda p: np.save(p, np.where(numbers() > 9, 0.5, np.nan)), "not finite"),
    "npy, negative": ("a.npy", lambda p: np.save(p, numbers().astype(np.int16) - 9), "data.range"),
    "npy, more than the values": ("a.npy", lambda p: np.save(p, WIDE), "data.range"),
    "npy, complex": ("a.npy", lambda p: np.save(p, numbers() * 1j), "complex"),
    "npy, objects": ("a.npy", lambda p: np.save(p, np.array([{}], object), allow_pickle=True), "cannot be read"),
    "npy, records": ("a.npy", lambda p: np.save(p, np.zeros(SHAPE, "u1,u1")), "type"),
    "npy, two axes": ("a.npy", lambda p: np.save(p, numbers()[0]), "3 axes"),
    "npy, five axes": ("a.npy", lambda p: np.save(p, numbers()[None, None]), "3 axes"),
    "npy, channels at both ends": ("a.npy", lambda p: np.save(p, numbers((1, 6, 7, 1))), "cannot be told"),
    "npy, other channels": ("a.npy", lambda p: np.save(p, COLOUR), "cannot be told"),
    "npz called npy": ("a.npy", _archive, "several arrays"),
    "TIFF, pages of two sizes": ("a.tif", lambda p: tiff(p, [numbers()[0], numbers()[0, :4]]), "several sizes"),
    "TIFF, pages of two depths": ("a.tif", lambda p: tiff(p, [numbers()[0], WIDE[0]]), "several sizes or kinds"),
    "TIFF, cut off": ("a.tif", _then(lambda p: tiff(p, numbers((5, 60, 70))), _cut), "cannot be read"),
    "TIFF, palette": ("a.tif", lambda p: tiff(p, [Image.new("P", (6, 6))]), "mode P"),
    "TIFF, colour and alpha": ("a.tif", lambda p: tiff(p, [Image.new("RGBA", (6, 6))]), "mode RGBA"),
    "TIFF, signed bytes": ("a.tif", _signed_bytes, "mode L"),
    "TIFF, 0 is white": ("a.tif", _white, "white"),
    "TIFF, channels of OME": (
        "a.tif",
        lambda p: tiff(p, numbers()[:4], '<OME><Image><Pixels SizeC="2" SizeT="1" SizeZ="2"/></Image></OME>'),
        "several axes",
    ),
    "TIFF, channels of tifffile": (
        "a.tif",
        lambda p: tiff(p, numbers()[:4], '{"shape": [2, 2, 5, 6]}'),
        "several axes",
    ),
    "TIFF, ImageJ stack with one page": ("a.tif", lambda p: tiff(p, numbers()[:1], "ImageJ=1\nimages=5\n"), "1 pages"),
    "TIFF, slices and frames": (
        "a.tif",
        lambda p: tiff(p, numbers()[:4], "ImageJ=1\nimages=4\nslices=2\nframes=2\n"),
        "slices and frames",
    ),
    "PNG called TIFF": ("a.tif", lambda p: Image.fromarray(numbers()[0]).save(p, format="PNG"), "PNG"),
    "NIfTI, cut off": ("a.nii", _then(lambda p: nifti(p, numbers()), _cut), "header and numbers"),
    "NIfTI, zip cut off": ("a.nii.gz", _then(lambda p: nifti(p, numbers()), _cut), "cannot be read"),
    "NIfTI, header alone": (
        "a.nii",
        _then(lambda p: nifti(p, numbers()), lambda p: p.write_bytes(p.read_bytes()[:352])),
        "header",
    ),
    "NIfTI, scaled by its header": ("a.nii", lambda p: nifti(p, numbers().astype(np.int16), slope=0.5), "data.range"),
    "NIfTI, colour": ("a.nii", lambda p: nifti(p, np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])), "type"),
    "NIfTI, text": ("a.nii", lambda p: p.write_text("no header at all"), "cannot be read"),
}


@pytest.mark.parametrize("kind", BROKEN, ids=str)
def test_what_cannot_be_read_is_refused_by_name_or_left_out(kind, tmp_path):
    name, write, words = BROKEN[kind]
    write(tmp_path / name)
    refused(lambda: load_splits(settings(tmp_path), ["train"]), name, words)
    np.save(tmp_path / "good.npy", numbers())
    split = load_splits(settings(tmp_path, on_error="skip"), ["train"])["train"]
    assert len(split) == 8 and name in json.dumps(split.source["left_out"])


def test_what_is_small_or_no_volume_is_counted_and_classes_are_folders(tmp_path):
    for name, seed in (("bone", 1), ("skin", 2)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", numbers(seed=seed))
    np.save(tmp_path / "bone" / "small.npy", numbers((3, 6, 7)))
    (tmp_path / "skin" / "notes.txt").write_text("words")
    split = load_splits(settings(tmp_path), ["train"])["train"]
    left = {reason: what["count"] for reason, what in split.source["left_out"].items()}
    assert left == {"no volume": 1, "smaller than 4x4x4": 1}
    assert split.class_names == ["bone", "skin"] and split.labels.tolist() == [0] * 8 + [1] * 8


def test_blocks_of_a_file_lie_in_one_split(tmp_path):
    for seed in range(12):
        np.save(tmp_path / f"{seed}.npy", numbers(seed=seed))
    splits = load_splits(settings(tmp_path, validation=0.3, test=0.2))
    files = {name: {int(number) // 8 for number in split.index} for name, split in splits.items()}
    assert sum(map(len, splits.values())) == 12 * 8
    assert sum(map(len, files.values())) == 12 == len(set.union(*files.values()))


@pytest.mark.parametrize("changes", [{"size": None}, {"range": (1, 1)}, {"resize": (8, 8)}], ids=str)
def test_settings_that_do_not_fit_are_refused(changes, tmp_path):
    with pytest.raises(ValidationError):
        settings(tmp_path, **changes)


EXACT = [kind for kind in STACKS if "range" not in STACKS[kind][1] and "true" not in kind] + ["npy, signed"]


@pytest.mark.parametrize("kind", EXACT, ids=str)
def test_a_file_comes_back_from_its_values_and_its_container(kind, tmp_path):
    write, asked, wanted = STACKS[kind]
    write(tmp_path)
    (path,) = tmp_path.iterdir()
    chosen = settings(tmp_path, **asked)
    found, about = lossless(str(path), len(chosen.size), chosen.channels, chosen.values, chosen.range)
    assert np.array_equal(found, wanted)
    again = tmp_path / f"again{about.ending}"
    with again.open("wb") as stream:
        save_volume(found, about, chosen.values, chosen.range, stream)
    if about.ending in (".npy", ".nii"):
        assert again.read_bytes() == path.read_bytes()
    elif about.ending == ".nii.gz":
        assert gzip.decompress(again.read_bytes()) == gzip.decompress(path.read_bytes())
    else:
        with Image.open(path) as one, Image.open(again) as other:
            assert one.n_frames == other.n_frames and one.tag_v2.get(270) == other.tag_v2.get(270)
            for number in range(one.n_frames):
                one.seek(number), other.seek(number)
                assert np.array_equal(np.array(one), np.array(other)) and len(one.mode) <= len(other.mode) + 1


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (2, 3, 4, 5), (4, 6, 5), (1, 6, 5)], ids=str)
@pytest.mark.parametrize(("values", "limits"), [(200, None), (4096, None), (500, (100, 599))])
def test_values_come_back_from_a_stack_of_pages(shape, values, limits, tmp_path):
    if shape[0] == 1 and len(shape) == 3 and values <= 256:
        values = 1000  # grey images of 8 bits are PNG
    found = np.random.default_rng(0).integers(0, values, shape)
    ending, save = saver(shape, values, limits=limits, asked="tiff")
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / f"a{ending}").open("wb") as stream:
        save(torch.from_numpy(found), stream)
    chosen = settings(tmp_path / "out", size=shape[1:], channels=shape[0], values=values, range=limits)
    assert np.array_equal(load_splits(chosen, ["train"])["train"].pixels[0].numpy(), found)


def test_numbers_that_no_page_holds_are_no_stack():
    refused(lambda: saver((1, 3, 4, 5), 100, limits=(0, 1), asked="tiff"), "format tiff", "stored as npy")
    refused(lambda: saver((1, 3, 4, 5), 100, limits=(-50, 49), asked="tiff"), "format tiff")
    refused(lambda: saver((1, 30), 100, asked="tiff"), "format tiff")


def test_floats_and_scaled_numbers_are_not_archived(tmp_path):
    np.save(tmp_path / "a.npy", numbers() / 256)
    with pytest.raises(ValueError, match="between"):
        lossless(str(tmp_path / "a.npy"), 3, 1, 100, (0, 1))
    nifti(tmp_path / "b.nii", WIDE.astype(np.int16), slope=0.5)
    with pytest.raises(ValueError, match="scales"):
        lossless(str(tmp_path / "b.nii"), 3, 1, 4000, (0, 1999.5))


def test_a_run_from_a_folder_to_volumes_and_archives(tmp_path):
    (tmp_path / "data").mkdir()
    for seed in range(6):
        np.save(tmp_path / "data" / f"{seed}.npy", numbers((2, 6, 9, 8), 1000, np.int16, seed) - 500)
    config = volumes(tmp_path / "data", size=(4, 4, 4), channels=2, values=1000, range=(-500, 499))
    trained(config, tmp_path / "run")
    run = str(tmp_path / "run")
    generate.main([run, "--num", "2", "--out", str(tmp_path / "drawn")])
    model = HierarchicalModel.from_pretrained(tmp_path / "run" / "model")
    stored = np.load(tmp_path / "drawn" / "000001.npy")
    assert stored.dtype == np.int16 and np.array_equal(stored + 500, model.sample(2).pixels[1].numpy())
    again = load_images([tmp_path / "drawn" / "000001.npy"], config.data)
    assert again[0].equal(model.sample(2).pixels[1])

    files = tmp_path / "files"
    files.mkdir()
    np.save(files / "first.npy", numbers((2, 5, 9, 3), 1000, ">i2") - 500)
    np.save(files / "last.npy", np.asfortranarray(numbers((6, 5, 4, 2), 1000, np.int32) - 500))
    nifti(files / "scan.nii", numbers((4, 4, 5, 2), 1000, np.int16, 3) - 500)
    nifti(files / "other.nii.gz", numbers((4, 7, 5, 2), 1000, np.int16, 4) - 500, order=">")
    compress.main([run, str(files), "--out", str(tmp_path / "small")])
    decompress.main([run, str(tmp_path / "small"), "--out", str(tmp_path / "back")])
    assert {path.name for path in files.iterdir()} == {path.name for path in (tmp_path / "back").iterdir()}
    for path in files.iterdir():
        content = [(folder / path.name).read_bytes() for folder in (files, tmp_path / "back")]
        if path.name.endswith(".gz"):
            content = [gzip.decompress(each) for each in content]
        assert content[0] == content[1], path.name

    compress.main([run, "--split", "test", "--out", str(tmp_path / "split")])
    decompress.main([run, str(tmp_path / "split"), "--out", str(tmp_path / "of-split")])
    test = load_splits(config.data, ["test"])["test"]
    for position, block in zip(test.index.tolist(), test.pixels.numpy(), strict=True):
        assert np.array_equal(np.load(tmp_path / "of-split" / f"{position:06d}.npy") + 500, block)

    partial = ["--levels", "1", "--out", str(tmp_path / "guess")]
    decompress.main([run, str(tmp_path / "small"), *partial])
    assert np.load(tmp_path / "guess" / "first.level-2.npy").shape == (2, 5, 9, 3)
    for name, array, words in (
        ("floats.npy", numbers((2, 5, 5, 5)) / 2, "between"),
        ("wide.npy", numbers((2, 5, 5, 5), 5000, np.int16), "between"),
        ("flat.npy", numbers((2, 5, 5)), "channels"),
    ):
        np.save(tmp_path / name, array)
        wrong = [run, str(tmp_path / name), "--out", str(tmp_path / "no")]
        refused(lambda wrong=wrong: compress.main(wrong), name, words)
    refused(lambda: compress.main([run, str(files), "--single", "--out", str(tmp_path / "no")]), "--single")


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["files"][0].__setitem__(1, 2**32),
        lambda header: header["files"][0][0].__setitem__("sites", [4, 5]),
        lambda header: header["files"][0][0].__setitem__("sites", [5, 4]),
        lambda header: header["files"][0][0].__setitem__("ending", ".sh"),
        lambda header: header["files"][0][0].__setitem__("dtype", "|O8"),
        lambda header: header["files"][0][0].__setitem__("head", "?"),
        lambda header: header["files"][0][0].__setitem__("channels", 4),
        lambda header: header["files"][0][0].update({"ending": ".tif", "dtype": "<f4"}),
        lambda header: header["files"][0][0].update({"ending": ".tif", "head": "gA=="}),
        lambda header: header["shapes"].__setitem__(0, [2, 20, "NUM", 1]),
        lambda header: header.pop("files"),
        lambda header: header["shapes"][0].__setitem__(2, "RGB"),
    ],
)
def test_archives_of_volumes_that_contradict_themselves_are_refused(change, tmp_path):
    def packed(header, body):
        text = zlib.compress(json.dumps(header).encode())
        return b"vqs\x01\x01" + struct.pack("<II", len(text), zlib.crc32(text)) + text + body

    hashed = {"model": "0" * 64, "probe": "0" * 64, "torch": "", "constriction": "", "threads": 1, "batch": 32}
    file = {"sites": [2, 2, 5], "ending": ".npy", "dtype": "|u1", "channels": None, "order": "C", "head": ""}
    header = {**hashed, "names": [["a", 1]], "shapes": [[1, 20, "NUM", 1]], "blocks": [[1, True, [3]]]}
    header |= {"files": [[file, 1]]}
    path = tmp_path / "a.vqs"
    path.write_bytes(packed(header, bytes(7)))
    (entry,) = open_container(path, (2, 2, 2)).entries
    assert entry.file.sites == (2, 2, 5) and entry.file.container.dtype == "|u1"
    change(header)
    path.write_bytes(packed(header, bytes(7)))
    refused(lambda: open_container(path, (2, 2, 2)), "a.vqs", "not a whole file")


def test_stacks_of_tiff_come_back_from_an_archive(tmp_path):
    (tmp_path / "data").mkdir()
    for seed in range(6):
        tiff(tmp_path / "data" / f"{seed}.tif", numbers((5, 8, 9), 4000, np.uint16, seed), description="cells")
    trained(volumes(tmp_path / "data", size=(4, 4), channels=5, values=4000), tmp_path / "run")
    run = str(tmp_path / "run")
    compress.main([run, str(tmp_path / "data"), "--portable", "--out", str(tmp_path / "small")])
    decompress.main([run, str(tmp_path / "small"), "--out", str(tmp_path / "back")])
    for seed in range(6):
        with Image.open(tmp_path / "back" / f"{seed}.tif") as found:
            assert found.tag_v2[270] == "cells" and found.n_frames == 5
            pages = []
            for number in range(5):
                found.seek(number)
                pages.append(np.array(found))
        assert np.array_equal(pages, numbers((5, 8, 9), 4000, np.uint16, seed))


def volumes(folder, **data):
    data |= {"source": "volumefolder", "files": {"train": str(folder)}, "validation": 0.2, "test": 0.2}
    return toy(data, *((sites,) * len(data["size"]) for sites in (2, 1)))
