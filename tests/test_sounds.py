"""Sounds: what files of every kind become, that excerpts hold every number, and a run on class folders end to end."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers import refused, toy, trained
from pydantic import ValidationError

from vqstack.codec.blocks import BlockCodec
from vqstack.codec.pictures import Entry, from_tiles, padding, to_tiles
from vqstack.commands import compress, decompress, generate, reconstruct
from vqstack.images import ImageSettings, load_images, load_splits, saver, sounds
from vqstack.images.pieces import pieces
from vqstack.likelihood import walked_log_prob
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings

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


BROKEN = {
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


def test_excerpts_of_a_file_lie_in_one_split(tmp_path):
    for number in range(12):
        write(tmp_path / "all" / f"{number}.wav", tone(400, 50 + 10 * number))
    splits = load_splits(settings(tmp_path / "all", validation=0.3, test=0.2))
    firsts = {name: {int(x) // 7 for x in split.index} for name, split in splits.items()}
    assert sum(map(len, splits.values())) == 12 * 7
    assert sum(map(len, firsts.values())) == 12 == len(set.union(*firsts.values()))


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
    tiles, known = to_tiles(sound, (2, 16), "PCM"), padding([entry], (2, 16))
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
