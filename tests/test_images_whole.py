"""A stream read to its end: what the same files give without streaming, in any order, and as codes to the byte."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers import files_of, refused
from test_images import png, write_parquet
from test_images_stream import LABELS, PIXELS, imagefolder, webdataset

from vqstack.images import ImageSettings, load_splits, split_names, survey, whole_splits
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings

TOOL = Path(__file__).resolve().parents[1] / "tools" / "encode_dataset.py"


def parquet(folder):
    for part in range(3):
        rows = slice(30 * part, 30 * part + 30)
        write_parquet(folder / f"{part}.parquet", PIXELS[rows], LABELS[rows])
    return {"source": "parquet", "files": {"train": str(folder / "*.parquet")}}


def made(source, **changes):
    given = {"size": (4, 4), "validation": 0.1, "test": 0.2, "streaming": True} | changes
    return ImageSettings(**source, **given)


def mapped(settings):
    settings = settings.model_copy(update={"streaming": False})
    return load_splits(settings, split_names(settings))


def whole(settings):
    return whole_splits(settings, survey(settings))


def same(part, split, places):
    labels = None if split.labels is None else split.labels[places]
    assert torch.equal(part.pixels, split.pixels[places]) and torch.equal(part.index, split.index[places])
    assert (part.labels is None and labels is None) or torch.equal(part.labels, labels)


@pytest.mark.parametrize("changes", [{}, {"limit": 7}, {"resize": (6, 5)}, {"classes": 5}])
@pytest.mark.parametrize("write", [parquet, webdataset, imagefolder])
def test_the_same_images_as_without_streaming(tmp_path, monkeypatch, write, changes):
    monkeypatch.setattr("vqstack.images.whole.FETCH", 7)
    settings = made(write(tmp_path), **changes)
    splits = mapped(settings)
    found = whole(settings)
    assert list(found) == list(splits)
    for name, split in splits.items():
        assert len(found[name]) == len(split) > 0
        assert found[name].source == split.source and found[name].labelled == split.labelled
        same(found[name].part(slice(0, len(split))), split, slice(0, len(split)))
    if not changes:
        assert sum(map(len, found.values())) == len(PIXELS)


def test_parts_in_any_order(tmp_path):
    settings = made(parquet(tmp_path))
    split, found = mapped(settings)["train"], whole(settings)["train"]
    for start, stop in ((0, 5), (5, 9), (9, 10), (30, 40), (9, 10), (2, 3), (2, 3), (3, 31)):
        same(found.part(slice(start, stop)), split, slice(start, stop))


def broken(folder):
    """Twelve images of which the sixth is cut short."""
    files = [png(one) for one in PIXELS[:12]]
    files[5] = files[5][:40]
    rows = [{"bytes": one, "path": f"{n}.png"} for n, one in enumerate(files)]
    pq.write_table(pa.table({"image": rows}), folder / "b.parquet")
    return {"source": "parquet", "files": {"train": str(folder / "b.parquet")}}


def test_what_cannot_be_read(tmp_path):
    settings = made(broken(tmp_path), validation=0.0, test=0.0)
    refused(lambda: survey(settings), "5.png", "on_error")
    settings = settings.model_copy(update={"on_error": "skip"})
    split, found = mapped(settings)["train"], whole(settings)["train"]
    assert found.source == split.source and found.source["skipped"]["count"] == 1
    assert split.index.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    same(found.part(slice(0, 11)), split, slice(0, 11))


def test_labels_and_sources_that_do_not_fit(tmp_path):
    refused(lambda: survey(made(parquet(tmp_path), classes=2)), "label 2", "classes")
    settings = made(parquet(tmp_path))
    found = survey(settings)
    for path in tmp_path.glob("*.parquet"):
        write_parquet(path, PIXELS[:5], LABELS[:5])
    split = whole_splits(settings, found)["train"]
    refused(lambda: split.part(slice(0, len(split))), "fewer images")


def test_fingerprints_tell_images_apart(tmp_path):
    settings = made(parquet(tmp_path), validation=0.0, test=0.0)
    before = survey(settings)["train"].fingerprint
    assert survey(settings)["train"].fingerprint == before
    other = PIXELS[:30].copy()
    other[3, 0, 0, 0] ^= 1
    write_parquet(tmp_path / "0.parquet", other, LABELS[:30])
    assert survey(settings)["train"].fingerprint != before


def run_of(folder, settings):
    """A run with random weights, whose configuration names these images."""
    torch.manual_seed(0)
    level = {"width": 8, "encoder_blocks": 0, "decoder_blocks": 0, "quantizer": {"codebook_size": 8, "dim": 4}}
    stack = {"levels": [{**level, "map": (2, 2)}, {**level, "map": (1, 1)}]}
    prior = {"depth": 1, "dim": 8, "heads": 2}
    model = {"stack": stack, "prior": prior, "image_shape": (1, 4, 4), "values": 256, "classes": 3}
    HierarchicalModel(ModelSettings.model_validate(model)).save_pretrained(folder / "model")
    config = {"levels": stack["levels"], "data": settings.model_dump(mode="json")}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"levels": [{**level, "map": [2, 2]}]}))
    return folder


def test_a_stream_is_encoded_whole_and_to_the_same_bytes(tmp_path, programs, capsys):
    """The limit of a streamed run says what is scored; encoding takes every image once, with position and label."""
    tool = programs[TOOL]
    source = parquet(tmp_path)
    run = run_of(tmp_path / "run", made(source, limit=5))
    given = [str(run), "--cpu", "--shard-size", "20", "--batch-size", "8"]
    tool.main([*given, "--out", str(tmp_path / "streamed")])
    assert "limit" not in capsys.readouterr().out
    tool.main([*given, "--out", str(tmp_path / "mapped"), "--data.no-streaming"])
    assert files_of(tmp_path / "streamed") == files_of(tmp_path / "mapped")
    rows = [pq.read_table(path) for path in sorted((tmp_path / "streamed" / "data").glob("*.parquet"))]
    index = np.concatenate([table["index"].to_numpy() for table in rows])
    label = np.concatenate([table["label"].to_numpy() for table in rows])
    assert sorted(index) == list(range(90)) and (label == LABELS[index]).all()


def test_a_limit_is_said(tmp_path, programs, capsys):
    tool = programs[TOOL]
    run = run_of(tmp_path / "run", made(parquet(tmp_path)))
    tool.main([str(run), "--cpu", "--data.limit", "6", "--out", str(tmp_path / "codes")])
    printed = capsys.readouterr().out
    assert "train 6," in printed and "no more than 6 of each split" in printed and "data.limit" in printed
