"""Streams of sounds, volumes, videos and series: the pieces that the same files give mapped, each file read once."""

import itertools
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from helpers import refused

from vqstack.images import (
    ImageSettings,
    load_splits,
    open_stream,
    sounds,
    split_names,
    survey,
    video,
    volumes,
    whole_splits,
)
from vqstack.images.pieces import CUTS
from vqstack.images.video import save_video

COUNTS = [9, 4, 3, 12, 8, 5, 4, 20, 7, 6, 11, 4]  # numbers of each input; pieces have 4
PIECES = sum(-(-count // 4) for count in COUNTS if count >= 4)

NAMED = {"image_column": "values"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VQSTACK_CACHE", str(tmp_path_factory.mktemp("cache")))


def inputs():
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, count).astype(np.int16) for count in COUNTS]


def write_sounds(folder):
    for number, values in enumerate(inputs()):
        inside = folder / "train" / ("even", "odd")[number % 2]
        inside.mkdir(parents=True, exist_ok=True)
        soundfile.write(inside / f"{number:02d}.wav", values, 8000, subtype="PCM_16")
    return {"source": "audiofolder", "files": {"train": str(folder / "train")}, "size": (4,), "rate": 8000}


def write_volumes(folder):
    for number, values in enumerate(inputs()):
        inside = folder / "train" / ("even", "odd")[number % 2]
        inside.mkdir(parents=True, exist_ok=True)
        np.save(inside / f"{number:02d}.npy", np.broadcast_to(values[:, None, None], (len(values), 4, 4)))
    return {"source": "volumefolder", "files": {"train": str(folder / "train")}, "size": (4, 4, 4)}


def write_rows(folder):
    """Sounds in Parquet, as ``datasets`` writes them."""
    given = write_sounds(folder)
    paths = sorted((folder / "train").rglob("*.wav"))  # class by class; train has rows of both groups
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    types = {"audio": datasets.Audio(), "label": datasets.ClassLabel(names=["even", "odd"])}
    table = pa.Table.from_pydict({"audio": rows, "label": [0] * 6 + [1] * 6}, datasets.Features(types).arrow_schema)
    pq.write_table(table, folder / "train.parquet", row_group_size=6)
    return given | {"source": "parquet", "files": {"train": str(folder / "train.parquet")}}


def write_series(folder):
    columns = {"values": [values.tolist() for values in inputs()], "label": ["even", "odd"] * 6}
    columns["vector"] = [[float(values[0]), 1.0] for values in inputs()]
    pq.write_table(pa.table(columns), folder / "train.parquet", row_group_size=3)
    return {
        "source": "parquet",
        "files": {"train": str(folder / "train.parquet")},
        "size": (4,),
        "image_column": "values",
    }


def write_videos(folder):
    for number, values in enumerate(inputs()):
        inside = folder / "train" / ("even", "odd")[number % 2]
        inside.mkdir(parents=True, exist_ok=True)
        with (inside / f"{number:02d}.mkv").open("wb") as file:
            clip = np.broadcast_to(values.astype(np.uint8)[None, :, None, None], (1, len(values), 4, 4))
            save_video(clip, file, 256, 10)
    return {"source": "videofolder", "files": {"train": str(folder / "train")}, "size": (4, 4, 4), "rate": 10}


KINDS = pytest.mark.parametrize("write", [write_sounds, write_rows, write_volumes, write_videos, write_series])


def made(given, **changes):
    chosen = {"seed": 1, "validation": 0.3, "test": 0.2, "streaming": True, "workers": 0, "shuffle_buffer": 7}
    return ImageSettings(**given | chosen | changes)


def mapped(settings):
    settings = settings.model_copy(update={"streaming": False})
    return load_splits(settings, split_names(settings))


def taken(settings, count, batch=2, rank=0, world=1, given=()):
    shape = (1, *settings.size)
    stream = open_stream(settings, shape, 2, batch, 0, rank, world, given)
    return list(itertools.islice(stream.batches(0, False), count))


def keys(pixels, labels):
    return sorted((one.tobytes(), int(label)) for one, label in zip(pixels.numpy(), labels, strict=True))


def spoil(folder, settings):
    """One file or row more that cannot be read."""
    if settings.series:
        columns = {"values": [[1.5, 2.5, 3.5, 4.5]], "label": ["odd"], "vector": [[0.0, 0.0]]}
        table = pa.table(columns | {"values": pa.array([[1, None, 3, 4]], pa.list_(pa.int64()))})
        pq.write_table(pa.concat_tables([pq.read_table(folder / "train.parquet"), table]), folder / "train.parquet")
    elif settings.sounds:
        table = pq.read_table(folder / "train.parquet")
        more = pa.Table.from_pylist([{"audio": {"bytes": b"nothing", "path": "07b.wav"}, "label": 1}], table.schema)
        pq.write_table(pa.concat_tables([table, more]), folder / "train.parquet")
    else:
        ending = {"audiofolder": "wav", "volumefolder": "npy", "videofolder": "mkv"}[settings.source]
        (folder / "train" / "odd" / f"07b.{ending}").write_bytes(b"nothing of the kind")


@KINDS
@pytest.mark.parametrize("on_error", ["refuse", "skip"])
def test_read_to_its_end_it_is_what_the_files_are(write, on_error, tmp_path):
    settings = made(write(tmp_path), on_error=on_error)
    if on_error == "skip":
        spoil(tmp_path, settings)
    splits = mapped(settings)
    found = whole_splits(settings, survey(settings))
    assert list(found) == list(splits) and sum(map(len, found.values())) == PIECES
    for name, split in splits.items():
        part = found[name].part(slice(0, len(split)))
        assert torch.equal(part.pixels, split.pixels) and torch.equal(part.labels, split.labels)
        assert torch.equal(part.index, split.index)
        counts = [{why: what["count"] for why, what in of.source["left_out"].items()} for of in (found[name], split)]
        assert counts[0] == counts[1] and (name != "train" or sum(counts[0].values()) == 1 + (on_error == "skip"))


@KINDS
@pytest.mark.parametrize("workers, world", [(0, 1), (2, 1), (0, 2)])
def test_every_piece_once_an_epoch_with_its_class(write, workers, world, tmp_path):
    settings = made(write(tmp_path), workers=workers)
    split = mapped(settings)["train"]
    first = list[tuple[bytes, int]]()
    for rank in range(world):
        for batch in taken(settings, 3 * len(split) // world, batch=1, rank=rank, world=world):
            first += keys(batch.pixels, batch.labels) if int(batch.epochs[0]) == 0 else []
    assert sorted(first) == keys(split.pixels, split.labels)


def test_short_inputs_are_told_and_floats_are_those_of_the_row(tmp_path):
    settings = made(write_series(tmp_path), validation=0.0, test=0.0, condition="vector")
    batches = taken(settings, PIECES, batch=1, given=(2,))
    problems = [problem for batch in batches for problem in batch.failed]
    assert problems and all("smaller than 4" in problem for problem in problems)
    heads = {tuple(one[:4].tolist()): float(one[0]) for one in inputs()}
    known = [(tuple(batch.pixels[0, 0].tolist()), batch.condition[0].tolist()) for batch in batches]
    assert sum(heads.get(piece) == given[0] for piece, given in known) == 11


@KINDS
def test_what_cannot_be_read_is_refused_by_name_or_left_out(write, tmp_path):
    settings = made(write(tmp_path), validation=0.0, test=0.0)
    spoil(tmp_path, settings)
    name = "[1, None, 3, 4]" if settings.series else "07b"
    refused(lambda: taken(settings, PIECES), name, "cannot be read", "on_error")
    skipping = settings.model_copy(update={"on_error": "skip"})
    batches = taken(skipping, PIECES, batch=1)
    assert any(name in problem for batch in batches for problem in batch.failed)
    kept = load_splits(skipping, ["train"])["train"]
    assert len(kept) == PIECES and name in json.dumps(kept.source["left_out"])


def counted(monkeypatch, of, name):
    calls, real = list[str](), getattr(of, name)
    monkeypatch.setattr(of, name, lambda path, *rest, **more: calls.append(str(path)) or real(path, *rest, **more))
    return calls


@pytest.mark.parametrize("streaming", [False, True])
def test_each_file_is_read_once(streaming, tmp_path, monkeypatch):
    """Also where files are larger than what is kept of the last two, and all splits come from one folder."""
    reads = counted(monkeypatch, volumes, "_read")
    settings = made(write_volumes(tmp_path), streaming=streaming, validation=0.0, test=0.0)
    load_splits(settings, ["train"])
    assert len(reads) == len(set(reads)) == len(COUNTS)
    if not streaming:
        load_splits(made(write_volumes(tmp_path / "again"), streaming=False))
        assert len(reads) == len(set(reads)) == 2 * len(COUNTS)
    heard = counted(monkeypatch, sounds._library(), "read")
    load_splits(made(write_sounds(tmp_path), streaming=streaming, validation=0.0, test=0.0), ["train"])
    assert len(heard) == len(set(heard)) == len(COUNTS) - 1  # of the short one the header tells it
    load_splits(made(write_rows(tmp_path / "rows"), streaming=streaming, validation=0.0, test=0.0), ["train"])
    assert len(heard) == 2 * len(COUNTS) - 1
    seen = counted(monkeypatch, video, "_frames")
    load_splits(made(write_videos(tmp_path / "clips"), streaming=streaming, validation=0.0, test=0.0), ["train"])
    assert len(seen) == len(set(seen)) == len(COUNTS)


def test_only_what_is_read_from_files_is_streamed(tmp_path):
    assert set(CUTS) == {"audiofolder", "volumefolder", "videofolder"}
    for source, more in (("digits", {}), ("array", {"files": {"train": "a.npy"}}), ("moving_mnist", {"rate": 10})):
        with pytest.raises(ValueError, match="streaming"):
            ImageSettings(source=source, streaming=True, test=0.1, validation=0.1, **more)


@pytest.mark.parametrize("held", [{"validation": 1, "test": 1}, {"validation": 0.001, "test": 0.0001}], ids=str)
def test_what_is_held_out_is_whole_inputs(held, tmp_path):
    """Trap: a count, or the one that is the least, ended inside an input whose pieces overlap."""
    splits = mapped(made(write_sounds(tmp_path), seed=0, streaming=False, **held))
    files = np.repeat(np.arange(len(COUNTS)), [-(-count // 4) if count >= 4 else 0 for count in COUNTS])
    order = [number for number in range(0, 12, 2)] + [number for number in range(1, 12, 2)]  # class by class
    files = np.concatenate([files[files == number] for number in order])
    held_by = {name: {int(files[place]) for place in split.index} for name, split in splits.items()}
    assert sum(map(len, splits.values())) == PIECES
    assert sum(map(len, held_by.values())) == len(set.union(*held_by.values())) == 11
