"""Stored codes: what is read is what was written, and a refusal leaves everything as it was."""

import hashlib
import json
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import files_of, refused
from torture.boast import boast

from vqstack.codes import (
    ENCODE,
    CodeDataset,
    CodeDatasetWriter,
    Contents,
    MapCache,
    StoredCodes,
    fingerprint,
    smallest_dtype,
    told,
)
from vqstack.codes.columns import READER
from vqstack.codes.manifest import read_manifest
from vqstack.disk import digest
from vqstack.output import UNFINISHED, Output

SHAPES = [(4, 6), (2, 3), (5,)]
SIZES = [70000, 257, 256]


def random_images(count: int, labelled: bool = True) -> StoredCodes:
    codes = [torch.randint(0, size, (count, *shape)) for shape, size in zip(SHAPES, SIZES, strict=True)]
    for maps, size in zip(codes, SIZES, strict=True):
        if count:
            maps.view(-1)[0], maps.view(-1)[-1] = size - 1, 0
    return StoredCodes(torch.randperm(100)[:count], torch.randint(0, 10, (count,)) if labelled else None, codes)


def equal(one: StoredCodes, two: StoredCodes) -> bool:
    labels = (one.labels is None and two.labels is None) or torch.equal(one.labels, two.labels)
    return labels and all(map(torch.equal, [one.index, *one.codes], [two.index, *two.codes]))


def part(images: StoredCodes, start: int, stop: int) -> StoredCodes:
    labels = None if images.labels is None else images.labels[start:stop]
    return StoredCodes(images.index[start:stop], labels, [maps[start:stop] for maps in images.codes])


def writer_of(folder: Path, images: dict[str, StoredCodes], size: int = 4, **changes) -> CodeDatasetWriter:
    about = {"map_shapes": [list(shape) for shape in SHAPES], "vocabularies": SIZES, "fingerprint": "abc"}
    about |= {"source": {"name": "toy"}, "labelled": any(part.labels is not None for part in images.values())}
    about |= {name: changes.pop(name) for name in list(changes) if name in Contents.model_fields}
    counts = {split: len(stored.index) for split, stored in images.items()}
    return CodeDatasetWriter(folder, Contents(**about), counts, shard_size=size, **changes)


def fill(writer: CodeDatasetWriter, images: dict[str, StoredCodes], batch: int = 3) -> None:
    """Writes the shards that are missing, in batches, and finishes."""
    writer.claim()
    for shard in writer.shards:
        if not writer.complete(shard):
            stop = shard.start + shard.rows
            starts = range(shard.start, stop, batch) if shard.rows else [shard.start]
            writer.write(shard, (part(images[shard.split], i, min(i + batch, stop)) for i in starts))
    writer.finish({shard.file: writer.checksum(shard) for shard in writer.shards})


def write(folder: Path, labelled: bool = True, size: int = 100, **splits: int) -> dict[str, StoredCodes]:
    images = {split: random_images(n, labelled) for split, n in (splits or {"train": 7, "test": 3}).items()}
    fill(writer_of(folder, images, size), images)
    return images


def rewrite(path: Path, column: str, values: list) -> None:
    """Replaces a column of a parquet file, keeping its type, and puts its checksum into the manifest."""
    table = pq.read_table(path)
    place, before = table.column_names.index(column), digest(path)
    pq.write_table(
        table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type)), path
    )
    manifest = path.parents[1] / "manifest.json"
    manifest.write_text(manifest.read_text().replace(before, digest(path)))


@pytest.mark.parametrize(
    ("vocabulary", "name"),
    [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32"), (2**32, "uint32")],
)
def test_the_smallest_dtype_holds_the_largest_code(vocabulary, name):
    assert smallest_dtype(vocabulary) == np.dtype(name)
    assert np.iinfo(name).max >= vocabulary - 1
    with pytest.raises(ValueError):
        smallest_dtype(2**32 + 1)


def test_the_fingerprint_sees_names_dtypes_shapes_and_bytes_and_no_order():
    state = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.tensor(3),
        "c": torch.zeros(0),
        "d": torch.ones(2).bfloat16(),
    }
    same = {name: state[name].clone() for name in reversed(state)}
    assert fingerprint(same) == fingerprint(state)
    assert len(fingerprint(state)) == 64
    # The same values in another memory layout are the same weights.
    assert fingerprint(state | {"a": state["a"].t().contiguous().t()}) == fingerprint(state)
    others = [
        state | {"a": state["a"].view(3, 2)},
        state | {"a": state["a"].view(torch.int32)},
        state | {"a": -state["a"]},
        state | {"b": torch.tensor(4)},
        {name: tensor for name, tensor in state.items() if name != "c"},
        {name.replace("a", "e"): tensor for name, tensor in state.items()},
    ]
    assert len({fingerprint(other) for other in [state, *others]}) == len(others) + 1


def test_one_writer_until_it_ends(tmp_path):
    images = {"train": random_images(7)}
    folder = tmp_path / "out"
    first = writer_of(folder, images)
    second = writer_of(folder, images)
    first.claim()
    before = files_of(folder)
    for attempt in (second.claim, lambda: writer_of(folder, images), lambda: Output(folder, "generate")):
        refused(attempt, "another process is writing", str(folder))
    assert files_of(folder) == before
    first._output.lock.release()  # as the end of its process does
    fill(first, images)
    refused(second.claim, "not empty")  # it looked at the folder while the first was at work
    assert CodeDataset(folder).splits == {"train": 7}


def test_what_lies_beside_the_shards_is_kept(tmp_path):
    writer = writer_of(tmp_path / "out", images := {"train": random_images(5)})
    writer.claim()
    (tmp_path / "out" / "data" / "notes.txt").write_text("x")
    (tmp_path / "out" / "data" / f"{writer.shards[0].file}.tmp").write_text("half a shard")
    writer._output.lock.release()
    fill(writer_of(tmp_path / "out", images), images)
    left = {path.name for path in (tmp_path / "out" / "data").iterdir()}
    assert left == {"notes.txt", *(shard.file for shard in writer.shards)}


def cache(folder, codes, vocabulary=256, print_="abc", split="train") -> MapCache:
    views, images, *shape = codes.shape
    sizes = {"views": views, "images": images, "map_shape": tuple(shape), "vocabulary": vocabulary}
    return MapCache(folder, split, **sizes, fingerprint=print_)


def store(maps: MapCache, codes: torch.Tensor) -> None:
    maps.begin()
    for view in range(codes.shape[0]):
        for start in range(0, codes.shape[1], 2):
            maps.write(view, start, codes[view, start : start + 2])
    maps.finish()


@pytest.mark.parametrize(("vocabulary", "name"), [(256, "uint8"), (512, "uint16")])
def test_cached_maps_come_back(tmp_path, vocabulary, name):
    codes = torch.randint(0, vocabulary, (2, 5, 2, 3))
    folder = tmp_path / "codes" / "level-1"
    maps = cache(folder, codes, vocabulary)
    assert maps.load() is None
    store(maps, codes)
    loaded = maps.load()
    assert isinstance(loaded, np.memmap)
    assert loaded.dtype == name
    assert np.array_equal(loaded, codes.numpy())
    assert (folder / "train.npy").stat().st_size == 128 + codes.numel() * np.dtype(name).itemsize
    assert sorted(path.name for path in folder.iterdir()) == ["train.json", "train.npy"]
    loaded[:] = 0  # private to the process
    assert np.array_equal(maps.load(), codes.numpy())
    for other in (
        cache(folder, codes, vocabulary, "def"),
        cache(folder, codes, vocabulary, split="test"),
        cache(folder, codes[:1], vocabulary),
        cache(folder, codes, vocabulary + 1),
    ):
        assert other.load() is None


def _write_part(maps, view, start, codes):
    maps.write(view, start, codes)


def test_processes_share_the_work(tmp_path):
    codes = torch.randint(0, 256, (2, 7, 3, 3))
    maps = cache(tmp_path, codes)
    maps.begin()
    parts = [(maps, view, start, codes[view, start : start + 3]) for view in (1, 0) for start in (3, 6, 0)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.starmap(_write_part, parts)
    maps.finish()
    assert np.array_equal(maps.load(), codes.numpy())


@pytest.mark.parametrize("killed_after", range(6))
def test_a_killed_run_never_leaves_maps_under_the_wrong_fingerprint(tmp_path, killed_after):
    old, new = torch.zeros(1, 4, 3, 3, dtype=torch.int64), torch.ones(1, 4, 3, 3, dtype=torch.int64)
    store(cache(tmp_path, old, print_="old"), old)
    maps = cache(tmp_path, new, print_="new")
    steps = [maps.begin, lambda: maps.write(0, 0, new[0, :2]), lambda: maps.write(0, 2, new[0, 2:]), maps.finish]
    for step in steps[:killed_after]:
        step()
    for print_, codes in (("old", old), ("new", new)):
        found = cache(tmp_path, codes, print_=print_).load()
        assert found is None or np.array_equal(found, codes.numpy())
    assert (maps.load() is not None) == (killed_after >= len(steps))


@pytest.mark.parametrize(
    "wrong",
    [
        (0, 0, (2, 3), -1),
        (0, 0, (2, 3), 256),
        (0, 4, (2, 3), 0),
        (2, 0, (2, 3), 0),
        (0, -1, (2, 3), 0),
        (0, 0, (3, 2), 0),
    ],
)
def test_maps_that_do_not_fit_are_refused(tmp_path, wrong):
    view, start, shape, value = wrong
    maps = cache(tmp_path, torch.zeros(2, 4, 2, 3))
    maps.begin()
    before = files_of(tmp_path)
    with pytest.raises(ValueError):
        maps.write(view, start, torch.full((1, *shape), value))
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(("labelled", "size"), [(True, 1), (False, 4), (True, 7), (False, 100)])
def test_the_data_set_comes_back(tmp_path, labelled, size):
    folder = tmp_path / "codes"
    images = write(folder, labelled, size, train=7, validation=1, test=0)
    data = CodeDataset(folder)
    assert data.splits == {"train": 7, "validation": 1, "test": 0}
    assert data.map_shapes == SHAPES
    assert data.vocabularies == SIZES
    assert data.source == {"name": "toy"}
    data.verify()
    for split, stored in images.items():
        found = data.read(split)
        assert [maps.dtype for maps in found.codes] == [torch.int64] * 3
        assert equal(found, stored)
    files = -(-7 // size)
    names = {f"train-{n:05d}-of-{files:05d}.parquet" for n in range(files)}
    names |= {f"{split}-00000-of-00001.parquet" for split in ("validation", "test")}
    assert {path.name for path in (folder / "data").iterdir()} == names
    assert [pq.read_metadata(folder / "data" / name).num_rows for name in sorted(names) if "train" in name][:-1] == [
        size
    ] * (files - 1)
    schema = pq.read_schema(folder / "data" / f"train-00000-of-{files:05d}.parquet")
    assert schema.names == ["index", *["label"] * labelled, "codes_1", "codes_2", "codes_3"]
    assert schema.field("codes_1").type == pa.list_(pa.list_(pa.uint32()))
    assert schema.field("codes_2").type == pa.list_(pa.list_(pa.uint16()))
    assert schema.field("codes_3").type == pa.list_(pa.uint8())
    assert not (folder / UNFINISHED).exists()
    refused(lambda: writer_of(folder, images, size), "not empty")


def test_checksums_are_those_of_the_files(tmp_path):
    write(tmp_path, size=3)
    listed = dict(reversed(line.split("  ")) for line in (tmp_path / "SHA256SUMS").read_text().splitlines())
    files = {name: data for name, data in files_of(tmp_path).items() if data is not None and name != "SHA256SUMS"}
    assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    splits = json.loads((tmp_path / "manifest.json").read_text())["splits"]
    assert {f"data/{s['file']}": s["sha256"] for shards in splits.values() for s in shards}.items() <= listed.items()
    path = tmp_path / "data" / "train-00001-of-00003.parquet"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    refused(CodeDataset(tmp_path).verify, path.name)
    refused(lambda: CodeDataset(tmp_path).read("train"), path.name)


def test_more_images_than_one_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr("vqstack.codes.columns.ROW_GROUP", 4)
    images = write(tmp_path, size=6, train=11)
    assert pq.ParquetFile(tmp_path / "data" / "train-00000-of-00002.parquet").num_row_groups == 2
    blocks = list(CodeDataset(tmp_path).blocks("train"))
    assert [len(block.index) for block in blocks] == [4, 2, 4, 1]
    bounds = [(0, 4), (4, 6), (6, 10), (10, 11)]
    assert all(equal(block, part(images["train"], *bound)) for block, bound in zip(blocks, bounds, strict=True))
    monkeypatch.setattr("vqstack.codes.columns.GROUP_SITES", 60)  # the largest map has 24
    write(tmp_path / "large", train=5)
    assert [len(block.index) for block in CodeDataset(tmp_path / "large").blocks("train")] == [2, 2, 1]


@pytest.mark.parametrize("secret", [False, True])
def test_datasets_reads_the_same(tmp_path, secret):
    import datasets

    folder = tmp_path / "codes"
    images = {"train": random_images(7), "test": random_images(3, not secret)}
    fill(writer_of(folder, images, 3), images)
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train", "test"]
    for split, stored in images.items():
        assert loaded[split]["index"][:] == stored.index.tolist()
        assert loaded[split]["label"][:] == ([None] * 3 if stored.labels is None else stored.labels.tolist())
        assert [loaded[split][f"codes_{n}"][:] for n in (1, 2, 3)] == [maps.tolist() for maps in stored.codes]
    assert loaded["train"].features["codes_2"].feature.feature.dtype == "uint16"
    assert (CodeDataset(folder).read("test").labels is None) == secret


@pytest.mark.parametrize(
    "killed_at", ["claimed", "inside a shard", "between shards", "before the card", "before the end"]
)
def test_killed_and_run_again_gives_the_same_bytes(tmp_path, monkeypatch, killed_at):
    images = {"train": random_images(7), "test": random_images(3)}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fill(writer_of(whole, images), images)
    killed = writer_of(parts, images)

    def stop(*arguments):
        raise KeyboardInterrupt

    def part_of_a_file(path, *arguments):
        path.write_bytes(b"PAR1 and no more")
        raise KeyboardInterrupt

    if killed_at == "claimed":
        monkeypatch.setattr(killed, "write", stop)
    elif killed_at == "inside a shard":
        monkeypatch.setattr("vqstack.codes.dataset.write_rows", part_of_a_file)
    elif killed_at == "between shards":
        complete = killed.complete
        monkeypatch.setattr(killed, "complete", lambda shard: stop() if shard.number else complete(shard))
    elif killed_at == "before the card":
        monkeypatch.setattr("vqstack.codes.dataset.card", stop)
    else:
        monkeypatch.setattr("vqstack.output.Output.finish", stop)
    with pytest.raises(KeyboardInterrupt):
        fill(killed, images)
    killed._output.lock.release()  # as the end of its process does
    monkeypatch.undo()
    refused(lambda: CodeDataset(parts), "unfinished", "again")
    done = {name: (parts / name).stat().st_mtime_ns for name in files_of(parts) if name.endswith(".parquet")}
    fill(writer_of(parts, images), images)
    assert files_of(parts) == files_of(whole)
    assert all((parts / name).stat().st_mtime_ns == time for name, time in done.items())  # none was written again


def test_a_shard_that_was_damaged_meanwhile_is_written_again(tmp_path, monkeypatch):
    images = {"train": random_images(9)}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fill(writer_of(whole, images), images)
    killed = writer_of(parts, images)
    monkeypatch.setattr(killed, "finish", lambda checksums: None)
    fill(killed, images)
    killed._output.lock.release()
    path = killed.shards[1].path(parts)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1  # in the codes: what the file says about itself stays true
    path.write_bytes(content)
    again = writer_of(parts, images)
    assert [again.complete(shard) for shard in again.shards] == [True, False, True]
    fill(again, images)
    assert files_of(parts) == files_of(whole)


def test_codes_of_a_model_that_was_moved_meanwhile_are_gone_on_with(tmp_path):
    images = {"train": random_images(7)}
    writer_of(tmp_path / "out", images, model="digits").claim()
    fill(writer_of(tmp_path / "out", images, model="moved"), images)
    assert read_manifest(tmp_path / "out").model == "moved"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fingerprint": "abd"}, "contents.fingerprint: abc → abd"),
        ({"source": {}}, "contents.source.name: toy → None"),
        ({"settings": {"batch_size": 3}}, "settings.batch_size: None → 3"),
        ({"size": 5}, "shard_size: 4 → 5"),
        ({"vocabularies": [70001, 257, 256]}, "contents.vocabularies: [70000, 257, 256] → [70001, 257, 256]"),
    ],
    ids=str,
)
def test_unfinished_output_of_something_else_is_refused(tmp_path, change, named):
    images = {"train": random_images(7)}
    folder = tmp_path / "out"
    writer_of(folder, images).claim()
    before = files_of(tmp_path)
    refused(lambda: writer_of(folder, images, **change), str(folder), "other settings", f"({named})")
    refused(lambda: Output(folder, "generate"), ENCODE)
    assert files_of(tmp_path) == before


def test_too_many_files_are_refused(tmp_path):
    images = {"train": random_images(1)}
    images["train"].index.resize_(0)
    about = Contents(map_shapes=[[2]], vocabularies=[4], fingerprint="", source={}, labelled=False)
    refused(lambda: CodeDatasetWriter(tmp_path / "out", about, {"train": 10**9}, shard_size=10**4), "larger shard size")
    assert not list(tmp_path.iterdir())


def test_a_shard_must_be_what_was_announced(tmp_path):
    images = {"train": random_images(7, labelled=False)}
    writer = writer_of(tmp_path, images)
    writer.claim()
    for wrong in (random_images(3, labelled=False), random_images(4)):
        with pytest.raises(ValueError):
            writer.write(writer.shards[0], [wrong])
    assert not writer.complete(writer.shards[0])


def test_format_1_is_read(tmp_path):
    images = write(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format_version": 1, "splits": {"train": 7, "test": 3}}
    del manifest["labelled"]
    path.write_text(json.dumps(manifest))
    data = CodeDataset(tmp_path)
    data.verify()
    assert data.splits == {"train": 7, "test": 3}
    assert all(equal(data.read(split), stored) for split, stored in images.items())


@pytest.mark.parametrize("version", [True, 1.0])
def test_what_only_equals_format_1_is_refused(tmp_path, version):
    write(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format_version": version, "splits": {"train": 7, "test": 3}}
    path.write_text(json.dumps(manifest))
    refused(lambda: CodeDataset(tmp_path), "manifest.json", f"format_version {version} was never written")


def test_the_card_quotes_what_is_foreign(tmp_path):
    images = {"train": random_images(2)}
    source = {"name": "x\n```\n# <script>alert(1)</script> & more"}
    fill(writer_of(tmp_path, images, source=source), images)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    (line,) = (line for line in card.splitlines() if "script" in line)  # nor is it a line of its own
    before, name, between, value, after = line.split("`")  # two spans of code, in which nothing is markup
    assert (before, name, between, after) == ("- ", "name", ": ", "")
    assert value == json.dumps(source["name"]).replace("`", "'")


def test_the_card_tells_which_model_decodes_and_which_images_were_encoded(tmp_path):
    """The line for loading is a name on the hub or is left to be filled in; its numbers are those of the manifest."""
    counts = {"train": 1300, "test": 1}
    splits = {"train": {"origin": "photos", "skipped": {"count": 2}}, "test": {"origin": "photos", "held_out": True}}
    source = {
        "seed": 5,
        "values": 17,
        "shape": [1, 8, 8],
        "num_classes": 2,
        "class_names": ["a", "b"],
        "splits": splits,
    }
    assert told(source | {"origin": "photos"}, counts) == [
        "- train: 1,300 images of `photos`; 2 left out (`cannot be read`)",
        "- test: 1 image of `photos`, held out of its train split with seed 5",
        "- Inputs: 8×8, 1 channel of 17 values",
        "- Classes: 2 (`a`, `b`)",
    ]
    images = {"train": random_images(2)}
    for name, loads in (("owner/digits@v2", "owner/digits@v2"), ("digits", "MODEL"), ("", "MODEL")):
        folder = tmp_path / loads / str(len(name))
        fill(writer_of(folder, images, model=name), images)
        card = (folder / "README.md").read_text(encoding="utf-8")
        (loaded,) = re.findall(r'vqstack\.load\("(.*)"\)', card)
        assert loaded == loads and (name in card)
        assert [line for line in card.splitlines() if line.startswith("| `codes_")] == [
            f"| `codes_{n}` | {'×'.join(map(str, shape))} | 0 … {size - 1} |"
            for n, (shape, size) in enumerate(zip(SHAPES, SIZES, strict=True), 1)
        ]


def file(split: str, rows: int) -> dict:
    return {"file": f"{split}-00000-of-00001.parquet", "rows": rows, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format_version": 3}, "newer vqstack"),
        ({"format_version": None}, "never written"),
        ({"format_version": "2"}, "never written"),
        ({"format_version": 2.0}, "never written"),
        ({"format_version": 0}, "never written"),
        ({"format_version": 1}, "splits"),
        ({"vocabularies": [4]}, "vocabularies"),
        ({"vocabularies": [2**40, 2, 2]}, "vocabularies"),
        ({"map_shapes": []}, "map_shapes"),
        ({"map_shapes": [[2**20, 2**20], [2], [2]]}, "sites"),
        ({"splits": {"../../train": [file("../../train", 7)]}}, "splits"),
        ({"splits": {"train": []}}, "splits"),
        ({"splits": {"train": [file("train", 8)]}}, "8"),
        ({"splits": {"train": [file("train", -1)]}}, "rows"),
        ({"splits": {"train": [file("train", 7) | {"file": "/etc/passwd"}]}}, "/etc/passwd"),
        ({"splits": {"train": [file("train", 7) | {"sha256": "none"}]}}, "sha256"),
        ({"splits": {"train": [file("train", 7)], "other": [file("other", 3)]}}, "other"),
        ({"splits": 3}, "splits"),
        ({"source": 3}, "source"),
    ],
    ids=str,
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, change, word):
    write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    before = files_of(tmp_path)
    refused(lambda: CodeDataset(tmp_path), str(tmp_path), word)
    assert files_of(tmp_path) == before


def test_a_manifest_that_lost_a_split_is_refused(tmp_path):
    write(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["splits"]["test"]
    path.write_text(json.dumps(manifest))
    refused(lambda: CodeDataset(tmp_path), "test-00000-of-00001.parquet")
    (tmp_path / "data" / "test-00000-of-00001.parquet").unlink()
    assert list(CodeDataset(tmp_path).splits) == ["train"]


def test_folders_and_files_that_are_none_are_refused(tmp_path):
    refused(lambda: CodeDataset(tmp_path / "nothing"), "nothing")
    write(tmp_path)
    data = CodeDataset(tmp_path)
    refused(lambda: data.read("validation"), "validation", "train, test")
    (tmp_path / "data" / "test-00000-of-00001.parquet").write_bytes(b"not parquet")
    refused(lambda: CodeDataset(tmp_path), "test-00000-of-00001.parquet")
    for text in ("{", "[" * 100_000, "3", "null", '{"format_version": 1, "splits": {"a": {}}}', "\x00", ""):
        (tmp_path / "manifest.json").write_text(text)
        refused(lambda: CodeDataset(tmp_path), "manifest.json")
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe\x00")
    refused(lambda: CodeDataset(tmp_path), "manifest.json")
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").mkdir()
    refused(lambda: CodeDataset(tmp_path), str(tmp_path))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("codes_2", [[257, 0, 0], [0, 0, 0]]),
        ("codes_2", [[0, 0, 0]]),
        ("codes_2", [[0, 0, 0], [0, 0]]),
        ("codes_2", [[0, 0, 0], [0, 0, None]]),
        ("codes_2", None),
        ("codes_3", [0, 0, 0, 0]),
        ("index", None),
        ("label", -1),
        ("label", 10**9),
    ],
)
def test_a_column_that_does_not_fit_is_refused_by_name(tmp_path, column, value):
    write(tmp_path)
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    values = pq.read_table(path)[column].to_pylist()
    rewrite(path, column, [*values[:3], value, *values[4:]])
    refused(lambda: CodeDataset(tmp_path).read("train"), path.name, column)


def test_more_values_than_the_manifest_says_are_refused_before_they_are_read(tmp_path, monkeypatch):
    write(tmp_path, labelled=False)
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    row = pa.array([[[0] * 1000] * 1000] * 7, table.schema.field("codes_1").type)  # a few bytes when compressed
    pq.write_table(table.set_column(table.column_names.index("codes_1"), "codes_1", row), path)
    assert path.stat().st_size < 10**6
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", None)
    refused(lambda: CodeDataset(tmp_path), path.name, "codes_1", "7000000 values")


def reseal(path: Path, content: bytes) -> None:
    """Another content for a file, whose checksum is put into the manifest."""
    manifest, before = path.parents[1] / "manifest.json", digest(path)
    path.write_bytes(content)
    manifest.write_text(manifest.read_text().replace(before, digest(path)))


def test_a_footer_that_ends_the_process_is_refused(tmp_path):
    write(tmp_path)
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    codec = b"\x05index\x15"  # column index: then its codec, snappy, becomes one nobody knows
    reseal(path, path.read_bytes().replace(codec + b"\x02", codec + b"\x7e"))
    refused(lambda: CodeDataset(tmp_path), str(path), "ended with code -6")


@pytest.mark.parametrize("claim", [{"size": 2**30}, {"count": 2**28}, {"size": -1}, {"count": -1}, {"stored": 2**30}])
def test_a_page_that_claims_more_than_it_holds_is_refused(tmp_path, claim):
    write(tmp_path, train=60)
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    boast(path, 0, **claim)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(re.sub(r'"sha256": "\w+"', '"sha256": null', manifest.read_text()))
    refused(lambda: CodeDataset(tmp_path).read("train"), str(path), "cannot be read")


def test_what_is_read_has_a_limit_of_memory(tmp_path, monkeypatch):
    """A stranger's 8 maps of 2^20 zeros are some kilobytes in a file."""
    about = Contents(map_shapes=[[2**20]], vocabularies=[4], fingerprint="", source={}, labelled=False)
    stored = StoredCodes(torch.arange(8), None, [torch.zeros(8, 2**20, dtype=torch.int64)])
    fill(CodeDatasetWriter(tmp_path, about, {"train": 8}), {"train": stored})
    assert sum(len(block.index) for block in CodeDataset(tmp_path).blocks("train")) == 8
    program = tmp_path / "reader.py"
    program.write_text(READER.read_text("utf-8").replace("OVERHEAD = 64", "OVERHEAD = 0"), "utf-8")
    monkeypatch.setattr("vqstack.codes.columns.READER", program)
    refused(lambda: CodeDataset(tmp_path).read("train"), "train-00000-of-00001.parquet", "cannot be read")
    monkeypatch.setattr("vqstack.codes.columns.READER", tmp_path / "no program")
    with pytest.raises(RuntimeError, match="no program"):  # a fault of the installation is not one of the file
        CodeDataset(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"data_page_size": 64, "write_batch_size": 8, "dictionary_pagesize_limit": 256},
        {"compression": "zstd", "data_page_version": "2.0"},
        {"use_dictionary": False, "column_encoding": {"index": "DELTA_BINARY_PACKED"}, "write_statistics": False},
    ],
)
def test_files_that_other_tools_wrote_are_read(tmp_path, options):
    images = write(tmp_path, train=60)["train"]
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    before = digest(path)
    pq.write_table(pq.read_table(path), path, row_group_size=25, **options)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(before, digest(path)))
    assert equal(CodeDataset(tmp_path).read("train"), images)


def test_a_group_of_rows_is_no_larger_than_ours(tmp_path, monkeypatch):
    """A stranger's group of a billion equal rows is some bytes in a file, and gigabytes when it is read at once."""
    write(tmp_path, train=7)
    monkeypatch.setattr("vqstack.codes.columns.ROW_GROUP", 6)
    refused(lambda: CodeDataset(tmp_path), "a group of 7 rows", "6 or fewer")
    monkeypatch.setattr("vqstack.codes.columns.GROUP_SITES", 60)  # the largest map has 24
    refused(lambda: CodeDataset(tmp_path), "a group of 7 rows", "2 or fewer")


def test_columns_that_are_missing_or_of_another_type_are_refused(tmp_path):
    write(tmp_path)
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["codes_2"]), path)
    refused(lambda: CodeDataset(tmp_path), path.name, "codes_2")
    place = table.column_names.index("codes_2")
    pq.write_table(table.set_column(place, "codes_2", pa.array([0.5] * 7)), path)
    refused(lambda: CodeDataset(tmp_path), path.name, "codes_2", "double")


def test_codes_of_another_model_are_refused(tmp_path):
    write(tmp_path)
    data = CodeDataset(tmp_path)
    data.check("abc", SHAPES, SIZES)
    for arguments, word in [
        (("abd", SHAPES, SIZES), "abd"),
        (("abc", [(4, 4), *SHAPES[1:]], SIZES), "[4, 4]"),
        (("abc", SHAPES, [8, *SIZES[1:]]), "vocabularies"),
        (("abc", SHAPES[:2], SIZES[:2]), "maps"),
    ]:
        refused(lambda arguments=arguments: data.check(*arguments), word, "encode the data set")
