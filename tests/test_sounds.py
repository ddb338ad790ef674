"""Sounds: what files of every kind become, that excerpts hold every number, and a run on class folders end to end."""

import io
import json
import struct
import tarfile
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from helpers import refused, toy, trained
from PIL import Image
from pydantic import ValidationError

from vqstack.codec.blocks import BlockCodec
from vqstack.codec.pictures import Entry, from_tiles, padding, to_tiles
from vqstack.commands import compress, decompress, generate, reconstruct
from vqstack.images import AugmentSettings, ImageSettings, grid, load_images, load_splits, saver, sounds
from vqstack.images.pieces import pieces
from vqstack.likelihood import walked_log_prob
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings
from vqstack.sources import PixelSource

RATE = 8000


def tone(count, pitch=200.0, loud=0.3):
    return loud * np.sin(2 * np.pi * pitch * np.arange(count) / RATE)


def write(path, numbers, rate=RATE, subtype="PCM_16"):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, numbers, rate, subtype=subtype)
    return path


def settings(folder, **changes):
    chosen = {"source": "audiofolder", "files": {"train": str(folder)}, "size": (64,), "rate": RATE, **changes}
    return ImageSettings(**{"validation": 0.0, "test": 0.0, **chosen})


@pytest.mark.parametrize("count", [64, 65, 100, 127, 128, 129, 1000])
def test_excerpts_hold_every_number_and_no_other(count):
    starts = [start for (start,) in pieces((count,), (64,))]
    held = np.zeros(count, int)
    for start in starts:
        held[start : start + 64] += 1
    assert held.min() >= 1 and starts[-1] + 64 == count and len(starts) == -(-count // 64)
    assert pieces((63,), (64,)) == []


@pytest.mark.parametrize("ending", ["wav", "flac", "aiff"])
def test_numbers_of_16_bits_come_back(ending, tmp_path):
    numbers = np.random.default_rng(0).integers(-(2**15), 2**15, 64).astype(np.int16)
    path = write(tmp_path / f"a.{ending}", numbers)
    read = sounds.read(str(path), 0, 64, RATE, 1, 2**16)
    assert np.array_equal(read[0], numbers.astype(int) + 2**15)
    sounds.save_sound(read, tmp_path / "b.wav", 2**16, RATE)
    again, rate = soundfile.read(tmp_path / "b.wav", dtype="int16")
    assert rate == RATE and np.array_equal(again, numbers)


@pytest.mark.parametrize("pitch", [500, 1000, 3000])
def test_a_sound_is_pictured_as_its_curve_above_its_spectrogram(pitch):
    sound = torch.from_numpy(np.rint(tone(1600, pitch) * 2**15)).int()[None, None] + 2**15
    seen = np.asarray(grid(sound, 1, 2**16).convert("RGB")).astype(int)
    both = np.asarray(grid(torch.cat([sound, sound]), 1, 2**16, heard=True)).astype(int)
    height = len(seen)
    assert both.shape == (2 * 2 * height + 1, seen.shape[1], 3) and (both[:height] == seen).all()
    spectrum = both[height : 2 * height].sum(-1).mean(1)
    loudest = height - 1 - spectrum.argmax()  # rows from 0 to half the rate
    assert abs(loudest / height * RATE / 2 - pitch) < RATE / 2 / height * 2
    assert (both[2 * height + 1 :] == both[: 2 * height]).all()


@pytest.mark.parametrize("kind", ["wav", "flac"])
@pytest.mark.parametrize("values", [2, 256, 1000, 2**16])
def test_every_value_comes_back_from_its_file(values, kind, tmp_path):
    every = np.arange(values)[None]
    ending, save = saver((1, values), values, RATE, asked=kind)
    path = tmp_path / f"a{ending}"
    with path.open("wb") as stream:
        save(torch.from_numpy(every), stream)
    assert soundfile.info(path).format == kind.upper() and soundfile.info(path).samplerate == RATE
    assert np.array_equal(sounds.read(str(path), 0, values, RATE, 1, values), every)


def test_mu_law_is_as_near_as_it_says_and_keeps_its_values(tmp_path):
    every = np.arange(-(2**15), 2**15).astype(np.int16)
    path = write(tmp_path / "a.wav", every)
    values = sounds.read(str(path), 0, 2**16, RATE, 1, 256, "mu-law")
    assert set(values[0].tolist()) == set(range(256)) and (np.diff(values[0]) >= 0).all()
    sounds.save_sound(values, tmp_path / "b.wav", 256, RATE, "mu-law")
    back = soundfile.read(tmp_path / "b.wav", dtype="int16")[0].astype(int)
    assert (np.abs(back - every) <= 0.0235 * (np.abs(every.astype(int)) + 128)).all()
    again = sounds.read(str(tmp_path / "b.wav"), 0, 2**16, RATE, 1, 256, "mu-law")
    assert np.array_equal(again, values)
    steps = np.diff(np.unique(back))
    assert (steps.min(), steps.max()) == (6, 1400)


@pytest.mark.parametrize(
    ("subtype", "step"), [("PCM_U8", 256), ("PCM_24", 1), ("PCM_32", 1), ("FLOAT", 1), ("DOUBLE", 1), ("ULAW", 1100)]
)
def test_other_widths_are_brought_to_16_bits(subtype, step, tmp_path):
    path = write(tmp_path / "a.wav", tone(200), subtype=subtype)
    found = sounds.read(str(path), 0, 200, RATE, 1, 2**16)[0] - 2**15
    assert np.abs(found - tone(200) * 2**15).max() <= step
    assert np.abs(found).max() > 9000


def test_floats_past_full_scale_are_cut_and_not_turned_over(tmp_path):
    path = write(tmp_path / "a.wav", np.array([0.0, 1.5, -3.0, 1.0]), subtype="FLOAT")
    assert sounds.read(str(path), 0, 4, RATE, 1, 2**16)[0].tolist() == [2**15, 2**16 - 1, 0, 2**16 - 1]


def test_channels_are_averaged_or_repeated(tmp_path):
    stereo = np.array([[1000, 3000], [-500, 500]], dtype=np.int16)
    path = str(write(tmp_path / "a.wav", stereo))
    assert (sounds.read(path, 0, 2, RATE, 1, 2**16)[0] - 2**15).tolist() == [2000, 0]
    assert (sounds.read(path, 0, 2, RATE, 2, 2**16) - 2**15).tolist() == stereo.T.tolist()
    with pytest.raises(ValueError, match="2 channels"):
        sounds.read(path, 0, 2, RATE, 3, 2**16)
    path = str(write(tmp_path / "b.wav", stereo[:, 0]))
    assert (sounds.read(path, 0, 2, RATE, 2, 2**16) - 2**15).tolist() == [[1000, -500], [1000, -500]]


@pytest.mark.parametrize("rate", [4000, 11025, 16000, 44100])
def test_other_rates_keep_pitch_and_length(rate, tmp_path):
    seconds = 0.25
    other = 0.3 * np.sin(2 * np.pi * 200 * np.arange(int(seconds * rate)) / rate)
    path = str(write(tmp_path / "a.wav", other, rate))
    count = sounds.length(path, RATE)
    assert abs(count - seconds * RATE) <= 1
    found = sounds.read(path, 0, count, RATE, 1, 2**16)[0] / 2**15 - 1
    assert np.abs(found - tone(count))[100:-100].max() < 0.002  # away from the ends


@pytest.fixture
def odd(tmp_path):
    """One good sound in each of two classes, and a file of the kind that a test adds."""
    for name, pitch in (("high", 800), ("low", 100)):
        write(tmp_path / "train" / name / "good.wav", tone(200, pitch))
    return tmp_path / "train"


def _cut(path):
    path.write_bytes(path.read_bytes()[:200])  # the header promises more


def _piped(path):
    """FLAC whose header says nothing of the length, as an encoder leaves it that writes into a pipe."""
    _flac(path, bytes(5))


def _promising(path):
    """FLAC whose header says 2^36 - 1 numbers."""
    _flac(path, b"\x0f" + bytes([255] * 4))


def _flac(path, count):
    soundfile.write(path, tone(200), RATE, format="FLAC", subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[21] = content[21] & 0xF0 | count[0]
    content[22:26] = count[1:]
    path.write_bytes(content)


BROKEN = {
    "length unknown": _piped,
    "length that cannot be": _promising,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no sound at all"),
    "an image": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "not finite": lambda path: write(path, np.array([0.0, np.nan] * 100), subtype="FLOAT"),
    "infinite": lambda path: write(path, np.array([0.0, np.inf] * 100), subtype="FLOAT"),
    "header alone": lambda path: path.write_bytes(b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt "),
}


@pytest.mark.parametrize("kind", BROKEN, ids=str)
def test_broken_files_are_refused_by_name_or_left_out(kind, odd):
    BROKEN[kind](odd / "low" / "bad.wav")
    refused(lambda: load_splits(settings(odd), ["train"]), "bad.wav", "cannot be read")
    split = load_splits(settings(odd, on_error="skip"), ["train"])["train"]
    assert len(split) == 8
    assert "bad.wav" in json.dumps([split.source["left_out"], split.source["skipped"]])


def test_a_file_cut_short_is_what_is_left_of_it(odd):
    path = write(odd / "low" / "cut.wav", tone(200))
    _cut(path)
    split = load_splits(settings(odd), ["train"])["train"]
    assert len(split) == 8 + 2  # (200 - 44) / 2 numbers: libsndfile goes by what is there


def test_what_is_short_or_no_sound_is_counted(odd):
    write(odd / "low" / "short.wav", tone(63))
    (odd / "low" / "notes.txt").write_text("words")
    split = load_splits(settings(odd), ["train"])["train"]
    left = split.source["left_out"]
    assert {reason: what["count"] for reason, what in left.items()} == {"no sound": 1, "smaller than 64": 1}


def test_every_excerpt_has_the_class_of_its_folder(odd):
    split = load_splits(settings(odd), ["train"])["train"]
    assert split.class_names == ["high", "low"] and split.labels.tolist() == [0] * 4 + [1] * 4
    assert split.pixels.shape == (8, 1, 64)
    wanted = np.rint(tone(200, 800) * 2**15).astype(int)[:64] + 2**15
    assert np.abs(split.pixels[0, 0].numpy() - wanted).max() <= 1


@pytest.mark.parametrize("changes", [{"companding": "mu-law"}, {"values": 200}], ids=str)
def test_few_values_are_kept_as_bytes_as_models_want_them(changes, odd):
    """Trap: they were kept in 32 bits, which a model of 256 values refuses."""
    pixels = load_splits(settings(odd, **changes), ["train"])["train"].pixels
    assert pixels.dtype == torch.uint8 and pixels.max() > 100


@pytest.mark.parametrize("streaming", [False, True])
def test_a_longer_piece_is_kept_and_any_window_of_it_trained_on(streaming, odd):
    config = settings(odd, size=(64,), resize=(90,), streaming=streaming, workers=0)
    split = load_splits(config, ["train"])["train"]
    assert split.stored.shape[1:] == (1, 90) and len(split) == 2 * 3  # 200 numbers each: three pieces that overlap
    assert torch.equal(split.pixels, split.stored[..., 13 : 13 + 64])  # scored is the centre
    draws = AugmentSettings(crop="random")
    source = PixelSource(split.stored, (64,), draws, seed=1)
    places = set()
    for epoch in range(60):
        (views,) = source.batch(torch.arange(6), torch.full((6,), epoch))
        fits = (split.stored.unfold(-1, 64, 1) == views[:, :, None]).all(-1)[:, 0]
        assert fits.any(1).all()
        places |= set(fits[0].nonzero().flatten().tolist())
    assert len(places) > 20
    whole = load_images([next((odd / "high").iterdir())], config)
    assert torch.equal(whole[0], sounds_of(odd / "high" / "good.wav")[..., :64])  # by hand: from its beginning


def sounds_of(path):
    return torch.from_numpy(sounds.read(str(path), 0, 200, RATE, 1, 2**16))


def test_bytes_of_sounds_without_a_rate_are_told_of(several, tmp_path):
    made = pa.table({"audio": pa.array([row["bytes"] for row in rows(several)])})
    pq.write_table(made, tmp_path / "a.parquet")
    told = {"rate": None, "values": 256}
    refused(lambda: load_splits(in_rows(tmp_path / "a.parquet", **told)), "if audio holds sounds, set rate")
    refused(lambda: load_splits(in_rows(tmp_path / "a.parquet", size=(8, 8), **told)), "a sound: give size one number")


def test_excerpts_of_a_file_lie_in_one_split(tmp_path):
    for number in range(12):
        write(tmp_path / "all" / f"{number}.wav", tone(400, 50 + 10 * number))
    splits = load_splits(settings(tmp_path / "all", validation=0.3, test=0.2))
    firsts = {name: {int(x) // 7 for x in split.index} for name, split in splits.items()}
    assert sum(map(len, splits.values())) == 12 * 7
    assert sum(map(len, firsts.values())) == 12 == len(set.union(*firsts.values()))


AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(path, rows, types=None, **columns):
    """Sounds in Parquet; with ``types`` as ``datasets`` writes them."""
    made = pa.table({"audio": pa.array(rows, AUDIO), **columns})
    schema = made.schema if types is None else datasets.Features({"audio": datasets.Audio(), **types}).arrow_schema
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made.cast(schema), path)
    return path


def rows(folder):
    """As a folder is read: class by class, file by file."""
    return [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(folder.rglob("*.*"))]


def in_rows(path, **changes):
    return settings(path, source="parquet", **changes)


@pytest.fixture
def several(tmp_path):
    """Files of two classes, of several kinds and rates, and one that is short."""
    for number, kind in enumerate(("wav", "flac", "wav", "flac")):
        for name, pitch in (("high", 800), ("low", 100)):
            rate = RATE if number < 2 else 11025
            write(tmp_path / "train" / name / f"{number}.{kind}", tone(150 + 60 * number, pitch + number), rate)
    write(tmp_path / "train" / "low" / "9.wav", tone(63))
    return tmp_path / "train"


@pytest.mark.parametrize("source", ["parquet", "parquet without types", "parquet of bytes", "webdataset", "hub"])
def test_sounds_in_rows_are_what_they_are_in_folders(source, several, tmp_path):
    wanted = load_splits(settings(several), ["train"])["train"]
    found, labels = rows(several), [0] * 4 + [1] * 5
    columns = {"label": pa.array(labels, pa.int64())}
    types = {"label": datasets.ClassLabel(names=["high", "low"])} if source in ("parquet", "hub") else None
    path = table(tmp_path / "packed" / "train.parquet", found, types, **columns)
    given = in_rows(path)
    if source == "parquet of bytes":
        pq.write_table(pa.table({"audio": pa.array([row["bytes"] for row in found], pa.binary()), **columns}), path)
    if source == "webdataset":
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for number, (row, label) in enumerate(zip(found, labels, strict=True)):
                ending = row["path"].split(".")[1]
                for name, content in ((ending, row["bytes"]), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{number}.{name}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        given = settings(tmp_path / "a.tar", source="webdataset")
    if source == "hub":
        given = settings(several, source="hub", name=str(tmp_path / "packed"), files={})
    split = load_splits(given, ["train"])["train"]
    assert torch.equal(split.pixels, wanted.pixels) and torch.equal(split.labels, wanted.labels)
    assert torch.equal(split.index, wanted.index) and split.num_classes == 2
    assert split.source["left_out"]["smaller than 64"]["count"] == 1
    if types:
        assert split.class_names == ["high", "low"]
    (first,) = load_images([several / "high" / "0.wav"], given)
    assert torch.equal(first, split.pixels[0])


def test_what_is_held_out_goes_by_the_bytes_of_rows(several, tmp_path):
    found = rows(several)[:-1]
    path = table(tmp_path / "train.parquet", found)
    shares = {"validation": 0.3, "test": 0.3, "seed": 5}
    digests = [blake2b(row["bytes"], digest_size=8, key=(5).to_bytes(8, "big")).digest() for row in found]
    lots = [(int.from_bytes(digest, "big") >> 11) / 2**53 for digest in digests]
    pieces_of = [len(load_splits(in_rows(table(tmp_path / "one.parquet", [row])), ["train"])["train"]) for row in found]
    owner = np.repeat(np.arange(len(found)), pieces_of)
    for name, (low, high) in {"test": (0, 0.3), "validation": (0.3, 0.6), "train": (0.6, 1)}.items():
        wanted = [place for place, file in enumerate(owner) if low <= lots[file] < high]
        assert wanted and load_splits(in_rows(path, **shares), [name])[name].index.tolist() == wanted


def _held(path, numbers, **how):
    return {"bytes": write(path, numbers, **how).read_bytes(), "path": "bad.wav"}


ODD_ROWS = {  # a row, and words of the refusal
    "nothing": (lambda path: None, "no sound in this row"),
    "neither": (lambda path: {"bytes": None, "path": None}, "no sound in this row"),
    "no bytes": (lambda path: {"bytes": b"", "path": "bad.wav"}, "no sound in this row"),
    "a path alone": (lambda path: {"bytes": None, "path": str(write(path, tone(64)))}, "does not hold it"),
    "text": (lambda path: {"bytes": b"no sound at all", "path": "bad.wav"}, "cannot be read"),
    "a header cut off": (lambda path: {"bytes": _held(path, tone(200))["bytes"][:30], "path": None}, "cannot be read"),
    "flac cut off": (lambda path: {"bytes": _held(path, tone(9000))["bytes"][:2000], "path": "bad.flac"}, ""),
    "not finite": (lambda path: _held(path, np.array([0.0, np.nan] * 50), subtype="FLOAT"), "not finite"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ODD_ROWS, ids=str)
def test_rows_without_a_sound_are_refused_by_number_or_left_out(kind, streaming, tmp_path):
    make, words = ODD_ROWS[kind]
    good = _held(tmp_path / "good.wav", tone(200))
    row = make(tmp_path / ("bad.flac" if kind.startswith("flac") else "bad.wav"))
    path = table(tmp_path / "train.parquet", [good, row, good])
    how = {"streaming": streaming, "workers": 0}
    refused(lambda: load_splits(in_rows(path, **how), ["train"]), f"{path}, row 1", words, "on_error")
    split = load_splits(in_rows(path, on_error="skip", **how), ["train"])["train"]
    assert len(split) == 8 and "row 1" in json.dumps(split.source["left_out"])


def test_columns_that_may_be_something_else_are_told_apart(tmp_path):
    row = _held(tmp_path / "good.wav", tone(64))
    vector = pa.array([[0.5] * 64])
    path = table(tmp_path / "a.parquet", [row], {"vector": datasets.Sequence(datasets.Value("float64"))}, vector=vector)
    assert len(load_splits(in_rows(path), ["train"])["train"]) == 1
    refused(lambda: load_splits(in_rows(path, rate=None), ["train"]), "audio: sounds", "set rate", "image_column")
    series = in_rows(path, rate=None, image_column="vector", range=(0, 1), values=3)
    assert set(load_splits(series, ["train"])["train"].pixels.flatten().tolist()) == {1}
    refused(lambda: load_splits(in_rows(path, rate=None, size=(8, 8)), ["train"]), "audio: sounds", "set rate")
    pq.write_table(pa.table({"vector": vector}), tmp_path / "b.parquet")
    refused(lambda: load_splits(in_rows(tmp_path / "b.parquet"), ["train"]), "vector: numbers", "leave rate out")
    picture = io.BytesIO()
    Image.new("L", (8, 8), 7).save(picture, "PNG")
    pictures = pa.array([{"bytes": picture.getvalue(), "path": None}], AUDIO)
    both = table(tmp_path / "c.parquet", [row], {"image": datasets.Image()}, image=pictures)
    assert len(load_splits(in_rows(both), ["train"])["train"]) == 1
    seen = load_splits(in_rows(both, rate=None, size=(8, 8)), ["train"])["train"]
    assert set(seen.pixels.flatten().tolist()) == {7}


@pytest.mark.skipif(find_spec("torchcodec") is not None, reason="datasets can copy such files into rows")
def test_a_data_set_of_files_is_refused_with_the_source_to_give(several):
    found = settings(several, source="hub", name=str(several), files={})
    refused(lambda: load_splits(found, ["train"]), "files of their own", "source audiofolder")


@pytest.mark.parametrize("source", ["hub", "webdataset"])
def test_one_axis_without_a_rate_is_nothing_that_these_have(source, tmp_path):
    with pytest.raises(ValidationError, match="rate"):
        settings(tmp_path, source=source, rate=None, **({"name": "a/b", "files": {}} if source == "hub" else {}))


@pytest.mark.parametrize(
    "changes",
    [
        {"size": None},
        {"rate": None},
        {"size": (8, 8)},
        {"companding": "a-law"},
        {"source": "imagefolder", "size": (8, 8), "values": 2**16},
        {"source": "imagefolder", "size": (8, 8), "channels": 2},
    ],
    ids=str,
)
def test_settings_that_do_not_fit_sounds_are_refused(changes, tmp_path):
    with pytest.raises(ValidationError):
        settings(tmp_path, **changes)


def test_a_run_from_folders_to_sounds(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(1)
    for split, count in (("train", 6), ("test", 2)):
        for name, pitch in (("high", 800), ("low", 100)):
            for number in range(count):
                numbers = tone(300, pitch * generator.uniform(0.9, 1.1), generator.uniform(0.05, 0.5))
                write(tmp_path / "data" / split / name / f"{number}.wav", numbers)
    data = {"source": "audiofolder", "files": {"train": str(tmp_path / "data")}, "size": (64,), "rate": RATE}
    window = {"radius": 4, "adaptive": True, "slope": 0}
    config = toy(data | {"validation": 0.2}, (4,), (1,), window=window)
    model = trained(config, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())[0].startswith("level-1")
    assert model.settings.geometry.rate == RATE and model.settings.class_names == ("high", "low")

    generate.main([str(tmp_path / "run"), "--num", "2", "--label", "low", "--out", str(tmp_path / "drawn")])
    numbers, rate = soundfile.read(tmp_path / "drawn" / "000001.wav", dtype="int16")
    drawn = model.sample(2, labels=model.label_probs.new_tensor([1, 1]).long())
    assert rate == RATE and np.array_equal(numbers.astype(int) + 2**15, drawn.pixels[1, 0].numpy())

    source = str(tmp_path / "data" / "test" / "low" / "0.wav")
    kept = ["--images", source, "--from-level", "1", "--out", str(tmp_path / "varied")]
    generate.main([str(tmp_path / "run"), *kept])
    excerpt = load_images([Path(source)], config.data)
    code = model.encode(excerpt)[0]
    assert model.vary(code, 1).pixels.shape == excerpt.shape

    files = [str(tmp_path / "data" / "test" / name) for name in ("high", "low")]
    for number, name in enumerate(("high", "low")):  # names that differ
        (tmp_path / "data" / "test" / name / "0.wav").rename(tmp_path / "data" / "test" / name / f"clip{number}.wav")
        (tmp_path / "data" / "test" / name / "1.wav").unlink()
    compress.main([str(tmp_path / "run"), *files, "--out", str(tmp_path / "small")])
    decompress.main([str(tmp_path / "run"), str(tmp_path / "small" / "images.vqs"), "--out", str(tmp_path / "back")])
    for name, clip in (("high", "clip0"), ("low", "clip1")):
        ours, rate = soundfile.read(tmp_path / "back" / f"{clip}.wav", dtype="int16")
        theirs, _ = soundfile.read(tmp_path / "data" / "test" / name / f"{clip}.wav", dtype="int16")
        assert rate == RATE and np.array_equal(ours, theirs)
    partial = ["--levels", "1", "--out", str(tmp_path / "guess")]
    decompress.main([str(tmp_path / "run"), str(tmp_path / "small" / "images.vqs"), *partial])
    assert {path.name for path in (tmp_path / "guess").glob("*.wav")} == {"clip0.level-2.wav", "clip1.level-2.wav"}

    run_of = str(tmp_path / "run")
    for changes, words in (
        ({"rate": 16000}, "16000"),
        ({"subtype": "PCM_24"}, "PCM_24"),
        ({"numbers": np.zeros((100, 2))}, "2 channels"),
        ({"numbers": np.zeros(0)}, "holds 0 numbers"),
    ):
        odd = write(tmp_path / "odd.wav", **{"numbers": tone(100), **changes})
        refused(lambda odd=odd: compress.main([run_of, str(odd), "--out", str(tmp_path / "no")]), "odd.wav", words)
    refused(lambda: compress.main([run_of, files[0], "--single", "--out", str(tmp_path / "no")]), "--single")


def test_a_model_of_mu_law_draws_what_it_knows_and_takes_no_files(tmp_path, monkeypatch):
    level = {"map": (4,), "width": 8, "quantizer": {"codebook_size": 4, "dim": 4}}
    settings = {"stack": {"levels": [level]}, "prior": {"depth": 1, "dim": 8, "heads": 2}, "image_shape": (1, 16)}
    geometry = {"size": (16,), "rate": RATE, "companding": "mu-law"}
    model = HierarchicalModel(ModelSettings.model_validate({**settings, "values": 256, "geometry": geometry})).eval()
    model.save_pretrained(tmp_path / "model")
    generate.main([str(tmp_path / "model"), "--num", "1", "--out", str(tmp_path / "drawn")])
    path = tmp_path / "drawn" / "000000.wav"
    again = sounds.read(str(path), 0, 16, RATE, 1, 256, "mu-law")
    assert np.array_equal(again, model.sample(1).pixels[0].numpy())
    refused(lambda: compress.main([str(tmp_path / "model"), str(path), "--out", str(tmp_path / "no")]), "mu-law")

    asked = [str(tmp_path / "model"), "--num", "1", "--out", str(tmp_path / "other"), "--format"]
    generate.main([*asked, "flac"])
    heard = [soundfile.read(where, dtype="int16")[0] for where in (path, tmp_path / "other" / "000000.flac")]
    assert np.array_equal(*heard)
    reconstruct.main([asked[0], str(path), "--out", str(tmp_path / "seen"), "--format", "npy"])
    assert np.array_equal(np.load(tmp_path / "seen" / "000000-image.npy"), again)
    monkeypatch.setattr(generate, "generate", None)
    monkeypatch.setattr(HierarchicalModel, "encode", None)
    refused(lambda: generate.main([*asked, "mp4"]), "format mp4", "wav, flac, npy")
    again = [asked[0], str(path), "--out", str(tmp_path / "no"), "--format", "png"]
    refused(lambda: reconstruct.main(again), "format png", "wav, flac, npy")


@torch.inference_mode()
def test_what_lies_beyond_the_end_of_a_sound_costs_nothing():
    """Two sounds that differ beyond their end alone are coded in the same bytes, those of the ledger."""
    torch.manual_seed(2)
    level = {"map": (4,), "width": 8, "quantizer": {"codebook_size": 4, "dim": 4}}
    level["decoder"] = {"family": "window", "radius": 3, "width": 8, "features": 4, "adaptive": True}
    settings = {"stack": {"levels": [level]}, "prior": {"depth": 1, "dim": 8, "heads": 2}, "values": 2**16}
    model = HierarchicalModel(ModelSettings.model_validate({**settings, "image_shape": (2, 16)})).eval()
    codec = BlockCodec(model)
    entry = Entry("a", 2, 27, "PCM")
    sound = torch.randint(2**15 - 2, 2**15 + 3, (2, 27), dtype=torch.int32)  # what a model that learned nothing expects
    tiles, known = to_tiles(sound, (2, 16), 2**15), padding([entry], (2, 16), 2**15)
    assert known[1].sum() == 2 * 5 and tiles[known[1]].eq(2**15).all() and from_tiles(tiles, entry).equal(sound)
    block = codec.encode(tiles, None, batch=32, seed=1, padding=known)
    whole = codec.encode(tiles, None, batch=32, seed=1)
    pairs = list(zip(block.sections, block.checks, strict=True))
    found = codec.decode(pairs, 2, batch=32, seed=1, padding=known)
    assert from_tiles(found[-1][-1], entry).equal(sound)
    spared = whole.ledger.row_bits("level-1") - block.ledger.row_bits("level-1")
    term = model.terms()[-1]
    values = model.values(tiles, model.encode(tiles), None)
    beyond = walked_log_prob(term.distribution(values, 2), tiles, known[1].flatten(1))
    assert spared == pytest.approx(float(-beyond.sum()) / 2 / np.log(2), rel=1e-4) and spared > 1
    assert block.bits["level-1"] == pytest.approx(2 * block.ledger.row_bits("level-1"), rel=0.01)
