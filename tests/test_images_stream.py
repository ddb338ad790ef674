"""Streams: every image once an epoch whatever the workers, the same images held out, the right place again."""

import io
import itertools
import json
import logging
import multiprocessing
import subprocess
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate import Accelerator
from helpers import refused
from test_images import png, random_pixels, write_parquet

from vqstack import signals
from vqstack.config import RunConfig
from vqstack.images import AugmentSettings, ImageSettings, load_splits, open_stream
from vqstack.phases import Run
from vqstack.sources import StreamSource

PIXELS = random_pixels(90, 1, (4, 4))
LABELS = np.arange(90) % 3


@pytest.fixture
def settings(tmp_path):
    for part in range(3):
        rows = slice(30 * part, 30 * part + 30)
        write_parquet(tmp_path / f"{part}.parquet", PIXELS[rows], LABELS[rows])
    files = {"train": str(tmp_path / "*.parquet")}
    options = {"size": (4, 4), "validation": 0.1, "test": 0.2, "shuffle_buffer": 7, "workers": 0, "limit": 40}
    return ImageSettings(source="parquet", files=files, streaming=True, **options)


def opened(settings, batch=5, classes=3, rank=0, world=1, shape=(1, 4, 4)):
    return open_stream(settings, shape, classes, batch, 0, rank, world)


def taken(stream, count, skip=0):
    return list(itertools.islice(stream.batches(skip, False), count))


def keys(pixels):
    return [one.numpy().tobytes() for one in pixels]


def mapped(settings):
    return load_splits(ImageSettings(**settings.model_dump() | {"streaming": False, "limit": None}))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_image_once_an_epoch(settings, workers, world):
    """Four processes share three files; batches do not divide the epoch; no process waits for another."""
    settings = settings.model_copy(update={"workers": workers})
    wanted = sorted(keys(mapped(settings)["train"].pixels))
    epochs = [[], []]
    label = dict(zip((one.tobytes() for one in PIXELS), LABELS.tolist(), strict=True))
    for rank in range(world):
        for batch in taken(opened(settings, rank=rank, world=world), 60 // world):
            assert batch.pixels.shape == (5, 1, 4, 4)
            for key, epoch, number in zip(keys(batch.pixels), batch.epochs, batch.labels, strict=True):
                assert label[key] == number
                if epoch < 2:
                    epochs[epoch].append(key)
    assert sorted(epochs[0]) == sorted(epochs[1]) == wanted
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_where_a_stream_begins_changes_no_random_numbers(settings, workers):
    """Trap: torch's loader draws a seed when it begins, in another step after a resume than in a run that went on."""
    stream = opened(settings.model_copy(update={"workers": workers}))
    before = torch.get_rng_state()
    taken(stream, 1, skip=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_epoch_of_a_worker_is_its_own(settings):
    """Trap: its number lies in memory that workers share, so one that is ahead would change what another reads."""
    stream = opened(settings)
    assert list(itertools.islice(stream.of_worker(), 30))[-1].epochs[-1] >= 2
    assert stream.rows.epoch == 0


def test_a_stream_holds_out_the_same_images(settings):
    whole = mapped(settings)
    kept = load_splits(settings)
    for name in ("validation", "test"):
        assert sorted(keys(kept[name].pixels)) == sorted(keys(whole[name].pixels))
    assert len(kept["train"]) == 40 < len(whole["train"])
    assert set(keys(kept["train"].pixels)) < set(keys(whole["train"].pixels))
    assert kept["train"].num_classes == 3


def webdataset(folder):
    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(30 * shard, 30 * shard + 30):
                for name, data in (
                    (f"{number:03d}.png", png(PIXELS[number])),
                    (f"{number:03d}.cls", b"%d" % LABELS[number]),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return {"source": "webdataset", "files": {"train": str(folder / "*.tar")}}


def imagefolder(folder):
    for number, one in enumerate(PIXELS):
        (folder / "images" / f"c{LABELS[number]}").mkdir(parents=True, exist_ok=True)
        (folder / "images" / f"c{LABELS[number]}" / f"{number:03d}.png").write_bytes(png(one))
    return {"source": "imagefolder", "files": {"train": str(folder / "images")}}


@pytest.mark.parametrize("write", [webdataset, imagefolder])
def test_other_sources_mapped_and_streamed(tmp_path, write):
    changes = {"size": (4, 4), "validation": 0.1, "test": 0.2, "workers": 0, "streaming": True}
    settings = ImageSettings(**write(tmp_path), **changes)
    whole = mapped(settings)
    label = dict(zip((one.tobytes() for one in PIXELS), LABELS.tolist(), strict=True))
    assert sorted(key for split in whole.values() for key in keys(split.pixels)) == sorted(label)
    for split in whole.values():
        assert [label[key] for key in keys(split.pixels)] == split.labels.tolist()
    batches = taken(opened(settings, batch=1), len(whole["train"]))
    assert sorted(keys(torch.cat([batch.pixels for batch in batches]))) == sorted(keys(whole["train"].pixels))
    assert all(label[keys(batch.pixels)[0]] == int(batch.labels) for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_at_the_right_place(settings, workers):
    settings = settings.model_copy(update={"workers": workers, "shuffle_buffer": 1})
    whole = taken(opened(settings), 30)
    for skip in (1, 4, 17):
        for ours, theirs in zip(taken(opened(settings), 6, skip), whole[skip:], strict=False):
            assert all(torch.equal(a, b) for a, b in zip(ours[:4], theirs[:4], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_with_images_left_out_goes_on_at_the_right_place(settings, tmp_path, workers):
    images = [png(one)[: 40 if i in (3, 30) else None] for i, one in enumerate(PIXELS[:60])]
    rows = pa.table({"image": [{"bytes": one, "path": f"{i}.png"} for i, one in enumerate(images)]})
    pq.write_table(rows, tmp_path / "broken", row_group_size=15)
    changes = {"files": {"train": str(tmp_path / "broken")}, "validation": 0.0, "test": 0.0, "on_error": "skip"}
    broken = ImageSettings(**settings.model_dump() | changes | {"workers": workers})
    whole = taken(opened(broken, classes=0), 20)
    for skip in (1, 8, 15):
        for ours, theirs in zip(taken(opened(broken, classes=0), 5, skip), whole[skip:], strict=False):
            assert torch.equal(ours.pixels, theirs.pixels)


def test_workers_leave_signals_to_the_parent(settings):
    """A signal to the whole group reaches them too; that of the parent, which torch sends at the end, ends them."""
    before = set(multiprocessing.active_children())
    batches = opened(settings.model_copy(update={"workers": 1})).batches(0, False)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    for number in signals.SIGNALS:
        subprocess.run(["kill", f"-{number.value}", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
    batches.close()


def source(settings, augmentation=None, batch=4):
    stream, crop = opened(settings, batch), augmentation or AugmentSettings()
    return StreamSource(stream, 1, (4, 4), crop, 1.0, 0, torch.device("cpu"), ["label"])


def test_a_source_asked_for_another_place_goes_there(settings):
    settings = settings.model_copy(update={"shuffle_buffer": 1})
    one, two = source(settings), source(settings)
    steps = [one.batch(torch.arange(4 * step, 4 * step + 4), torch.zeros(4, dtype=torch.int64)) for step in range(5)]
    for step in (3, 4, 1):
        again = two.batch(torch.arange(4 * step, 4 * step + 4), torch.zeros(4, dtype=torch.int64))
        assert all(torch.equal(a, b) for a, b in zip(again, steps[step], strict=True))


def test_views_of_a_stream_depend_on_image_and_epoch(settings):
    """The same image in the same epoch is turned the same way, whatever batch it comes in."""
    settings, flip = settings.model_copy(update={"shuffle_buffer": 1}), AugmentSettings(flip=True)
    found = []
    for batch in (3, 4):
        made = source(settings, flip, batch)
        steps = range(120 // batch)
        found.append(torch.cat([made.batch(torch.arange(batch * s, batch * s + batch), None)[0] for s in steps]))
    assert torch.equal(*found)
    plain = torch.cat([b.pixels for b in taken(opened(settings, 4), 30)])
    turned = (found[0] != plain).flatten(1).any(1)
    assert torch.equal(found[0], torch.where(turned[:, None, None, None], plain.flip(3), plain))
    assert 30 < turned.sum() < 90


def test_what_a_stream_cannot_read(settings, tmp_path, caplog):
    broken = [png(one) for one in PIXELS[:12]]
    broken[5] = broken[5][:40]

    pq.write_table(
        pa.table({"image": [{"bytes": one, "path": f"{n}.png"} for n, one in enumerate(broken)]}), tmp_path / "b"
    )
    changes = {"files": {"train": str(tmp_path / "b")}, "validation": 0.0, "test": 0.0}
    settings = ImageSettings(**settings.model_dump() | changes)
    refused(lambda: taken(opened(settings, classes=0), 9), "5.png", "on_error")
    settings = settings.model_copy(update={"on_error": "skip"})
    made = source(settings, batch=11)
    made.stream.classes = 0
    with caplog.at_level(logging.WARNING):
        pixels = torch.cat([made.batch(torch.arange(11 * s, 11 * s + 11), None)[0] for s in range(2)])
    assert sorted(keys(pixels)) == sorted([one.tobytes() for n, one in enumerate(PIXELS[:12]) if n != 5] * 2)
    assert made.left_out >= 2 and "5.png" in caplog.text


def test_a_broken_image_met_while_training_is_named_with_its_shard(tmp_path):
    images = [{"bytes": png(one)[: 60 if i == 23 else None], "path": None} for i, one in enumerate(PIXELS[:30])]
    pq.write_table(pa.table({"image": pa.array(images)}), tmp_path / "x.parquet")
    files = {"train": str(tmp_path / "x.parquet")}
    broken = ImageSettings(source="parquet", files=files, size=(4, 4), streaming=True, validation=0.0, test=0.0)
    refused(lambda: taken(opened(broken), 9), f"{files['train']}, row 23: ", "on_error")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_path_in_a_shard_is_not_followed(tmp_path, streaming):
    (tmp_path / "secret.png").write_bytes(png(PIXELS[0]))
    images = [{"bytes": png(one), "path": None} for one in PIXELS[:30]]
    images[7] = {"bytes": None, "path": str(tmp_path / "secret.png")}
    pq.write_table(pa.table({"image": pa.array(images)}), tmp_path / "x.parquet")
    held = {"validation": 0.0, "test": 0.0} if streaming else {"validation": 0, "test": 0}
    files = {"train": str(tmp_path / "x.parquet")}
    settings = ImageSettings(source="parquet", files=files, size=(4, 4), streaming=streaming, **held)
    refused(
        lambda: taken(opened(settings), 30) if streaming else load_splits(settings)["train"].pixels,
        "the row names a file and does not hold it",
    )


def test_labels_beyond_the_classes_are_refused(settings):
    refused(lambda: taken(opened(settings, classes=2), 20), "label 2", "classes")


@pytest.mark.parametrize(
    "changes", [{"validation": 10}, {"source": "digits"}, {"source": "array", "files": {"train": "a.npy"}}]
)
def test_settings_that_streams_do_not_take(settings, changes):
    with pytest.raises(ValueError, match="stream"):
        ImageSettings(**{"source": "parquet", "files": {"train": "a"}, "streaming": True} | changes)


RECIPE = """
levels:
  - {map: [2, 2], width: 8, encoder_blocks: 0, decoder_blocks: 0, quantizer: {codebook_size: 8, dim: 4}}
  - {map: [1, 1], width: 8, encoder_blocks: 0, decoder_blocks: 0, quantizer: {codebook_size: 4, dim: 4}}
refiners: [{level: 1, depth: 1, dim: 8, heads: 2}]
pixels: {components: 1}
train_levels: [{steps: 4, batch_size: 8, warmup: 2, evaluate_every: 2}]
train_refiners: [{steps: 4, batch_size: 8, warmup: 2, evaluate_every: 2}]
prior: {depth: 1, dim: 8, heads: 2}
train_prior: {steps: 4, batch_size: 8, warmup: 2, evaluate_every: 2}
augment: {flip: true}
sample_grid: 2
"""


def test_stored_views_of_a_stream_are_refused(settings):
    with pytest.raises(ValueError, match="augment.views"):
        RunConfig(data=settings, augment=AugmentSettings(flip=True, views=2))


def test_every_phase_trains_from_a_stream(settings, tmp_path):
    config = RunConfig.model_validate(yaml.safe_load(RECIPE) | {"data": settings.model_dump()})
    run = Run(config, tmp_path / "run", Accelerator(cpu=True))
    for phase in run.phases.values():
        run.train(phase)
    run.release()
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert {name: len(split) for name, split in run.splits.items()}["train"] == 40
    assert [row["row"] for row in ledger["test"]["rows"]] == ["label", "prior", "level-2", "level-1"]
    assert not list((tmp_path / "run" / "codes").glob("*/train*")), "the codes of a stream are not stored"


def test_channels_last_trains_the_same(settings, tmp_path):
    """Another order in memory, the same artefact up to rounding."""
    found = []
    for channels_last in (False, True):
        changes = {"data": settings.model_dump(), "channels_last": channels_last, "refiners": []}
        config = RunConfig.model_validate(yaml.safe_load(RECIPE) | changes)
        run = Run(config, tmp_path / f"run-{channels_last}", Accelerator(cpu=True))
        for name in ("level-1", "level-2"):
            run.train(run.phases[name])
        wide = [p for p in run.model.stack.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
        assert wide and all(p.is_contiguous(memory_format=torch.channels_last) == channels_last for p in wide)
        found.append(run.model.stack.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-3, atol=1e-4, msg=name)
