"""Images: every source gives the same pixels, splits are disjoint and stay, what is drawn depends on the generator."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from vqstack.errors import InputError
from vqstack.images import (
    AugmentSettings,
    ImageSettings,
    augment,
    grid,
    image_shape,
    load_images,
    load_splits,
    num_classes,
    save_png,
)


def random_pixels(count: int, channels: int = 1, size: tuple[int, int] = (5, 7), values: int = 256) -> np.ndarray:
    return np.random.default_rng(count).integers(0, values, (count, channels, *size), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """uint8 [c, h, w] as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0).copy()).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, pixels, labels=None, image="image", label="label") -> str:
    columns = {image: pa.array([{"bytes": png(one), "path": None} for one in pixels])}
    if labels is not None:
        columns[label] = pa.array(labels, pa.int64())
    pq.write_table(pa.table(columns), path)
    return str(path)


def array_settings(tmp_path, count: int = 40, **changes) -> ImageSettings:
    np.savez(tmp_path / "train.npz", images=random_pixels(count)[:, 0], labels=np.arange(count) % 4)
    return ImageSettings(source="array", files={"train": str(tmp_path / "train.npz")}, **changes)


def refused(call, *words: str) -> None:
    with pytest.raises(InputError) as refusal:
        call()
    message = str(refusal.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("channels", [1, 3])
def test_every_source_gives_the_same_pixels(tmp_path, channels):
    pixels, labels = random_pixels(6, channels), np.array([0, 0, 1, 1, 2, 2])
    last = pixels[:, 0] if channels == 1 else pixels.transpose(0, 2, 3, 1)
    np.savez(tmp_path / "a.npz", images=last, labels=labels)
    np.save(tmp_path / "a.npy", pixels)
    write_parquet(tmp_path / "a.parquet", pixels, labels)
    for number, (one, label) in enumerate(zip(pixels, labels, strict=True)):
        (tmp_path / "folder" / f"class{label}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / f"class{label}" / f"{number}.png").write_bytes(png(one))
    for source, name, known in [
        ("array", "a.npz", labels),
        ("array", "a.npy", None),
        ("parquet", "a.parquet", labels),
        ("imagefolder", "folder", labels),
    ]:
        settings = ImageSettings(source=source, files={"train": str(tmp_path / name)}, channels=channels)
        split = load_splits(settings.model_copy(update={"validation": 0, "test": 0}), ["train"])["train"]
        assert split.pixels.dtype == torch.uint8
        assert np.array_equal(split.pixels, pixels), name
        assert split.index.tolist() == list(range(6))
        assert (split.labels is None) if known is None else (split.labels.tolist() == known.tolist())
        assert num_classes(settings) == split.num_classes == (0 if known is None else 3)
        assert image_shape(settings) == (channels, 5, 7)


def test_a_flat_image_folder_has_no_classes(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for number, one in enumerate(random_pixels(3)):
            (tmp_path / split / f"{number}.png").write_bytes(png(one))
    files = {split: str(tmp_path / split) for split in ("train", "test")}
    loaded = load_splits(ImageSettings(source="imagefolder", files=files, validation=1))
    assert {name: (len(split), split.labels, split.num_classes) for name, split in loaded.items()} == {
        "train": (2, None, 0),
        "validation": (1, None, 0),
        "test": (3, None, 0),
    }


def test_the_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    digits = load_digits()
    settings = ImageSettings()
    assert (settings.values, image_shape(settings), num_classes(settings)) == (17, (1, 8, 8), 10)
    loaded = load_splits(settings)
    assert {name: len(split) for name, split in loaded.items()} == {"train": 1300, "validation": 200, "test": 297}
    for split in loaded.values():
        assert np.array_equal(split.pixels[:, 0], digits.images[split.index])
        assert np.array_equal(split.labels, digits.target[split.index])
    assert int(loaded["train"].pixels.max()) == 16


def test_splits_are_disjoint_cover_everything_and_stay(tmp_path):
    settings = array_settings(tmp_path, validation=0.2, test=7)
    loaded, again = load_splits(settings), load_splits(settings)
    assert [len(loaded[name]) for name in ("train", "validation", "test")] == [25, 8, 7]
    assert sorted(torch.cat([split.index for split in loaded.values()]).tolist()) == list(range(40))
    whole = torch.from_numpy(random_pixels(40))
    for name, split in loaded.items():
        assert torch.equal(split.index, again[name].index)
        assert torch.equal(split.index, split.index.sort().values)
        assert torch.equal(split.pixels, whole[split.index])
        assert torch.equal(split.labels, split.index % 4)
    assert torch.equal(load_splits(settings, ["test"])["test"].index, loaded["test"].index)
    # Another share for validation leaves the test images as they are; another seed does not.
    assert torch.equal(load_splits(array_settings(tmp_path, validation=9, test=7))["test"].index, loaded["test"].index)
    other = load_splits(array_settings(tmp_path, validation=0.2, test=7, seed=1))
    assert not torch.equal(other["test"].index, loaded["test"].index)


def test_a_limit_keeps_a_seeded_part_of_each_split(tmp_path):
    whole, ten, five = (load_splits(array_settings(tmp_path, limit=limit)) for limit in (None, 10, 5))
    for name in whole:
        assert len(ten[name]) == min(10, len(whole[name]))
        assert set(five[name].index.tolist()) <= set(ten[name].index.tolist()) <= set(whole[name].index.tolist())


def test_splits_that_are_stored_are_kept(tmp_path):
    for name, count in (("train", 20), ("test", 6)):
        write_parquet(tmp_path / f"{name}.parquet", random_pixels(count), np.arange(count) % 3)
    files = {name: str(tmp_path / f"{name}.parquet") for name in ("train", "test")}
    loaded = load_splits(ImageSettings(source="parquet", files=files, validation=0.25))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 15, "validation": 5, "test": 6}
    assert np.array_equal(loaded["test"].pixels, random_pixels(6))
    assert [loaded[name].source["held_out"] for name in ("train", "validation", "test")] == [False, True, False]


@pytest.mark.parametrize("values", [2, 16, 256])
def test_eight_bits_are_quantised_evenly(tmp_path, values):
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    path = write_parquet(tmp_path / "a.parquet", ramp)
    settings = ImageSettings(source="parquet", files={"train": path}, values=values, validation=0, test=0)
    pixels = load_splits(settings, ["train"])["train"].pixels
    assert pixels.flatten().bincount().tolist() == [256 // values] * values


def test_a_size_covers_and_crops_the_centre(tmp_path):
    image = np.zeros((1, 8, 16), dtype=np.uint8)
    image[:, :, 4:12] = 200
    (tmp_path / "a.png").write_bytes(png(image))
    pixels = load_images([tmp_path / "a.png"], ImageSettings(source="parquet", files={"train": "x"}, size=(8, 8)))
    assert pixels.shape == (1, 1, 8, 8)
    assert (pixels == 200).all()


@pytest.mark.parametrize(("values", "channels"), [(2, 1), (17, 1), (200, 3), (256, 1), (256, 3)])
def test_png_files_hold_every_value(tmp_path, values, channels):
    pixels = (
        torch.arange(values).repeat(channels * 2)[: channels * 2 * values].view(channels, 2, values).to(torch.uint8)
    )
    save_png(pixels, tmp_path / "a.png", values)
    with Image.open(tmp_path / "a.png") as image:
        stored = np.asarray(image)
    levels = [round(255 * value / (values - 1)) for value in range(values)]
    assert (stored[0] if channels == 1 else stored[0, :, 0]).tolist() == levels
    settings = ImageSettings(source="parquet", files={"train": "x"}, values=values, channels=channels)
    assert torch.equal(load_images([tmp_path / "a.png"] * 2, settings), torch.stack([pixels, pixels]))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_every_image(channels):
    pixels = torch.from_numpy(random_pixels(5, channels, (4, 6)))
    sheet = np.asarray(grid(pixels, 3, 256, scale=2))
    assert sheet.shape[:2] == (2 * (2 * 5 - 1), 2 * (3 * 7 - 1))
    small = sheet[::2, ::2].reshape(9, 20, channels).transpose(2, 0, 1)
    for number, one in enumerate(pixels):
        top, left = number // 3 * 5, number % 3 * 7
        assert np.array_equal(small[:, top : top + 4, left : left + 6], one)
    assert grid(pixels[:1], 3, 256).size == (6, 4)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_settings_nothing_is_changed():
    pixels = torch.from_numpy(random_pixels(9, 3))
    assert not AugmentSettings().active
    assert AugmentSettings(shift=1).active and AugmentSettings(flip=True).active
    assert torch.equal(augment(pixels, seeded(0)), pixels)


def test_augmentation_depends_on_the_generator_alone():
    pixels = torch.from_numpy(random_pixels(64))
    first = augment(pixels, seeded(0), 2, True)
    torch.rand(3)
    assert torch.equal(augment(pixels, seeded(0), 2, True), first)
    assert not torch.equal(augment(pixels, seeded(1), 2, True), first)
    assert first.dtype == torch.uint8 and first.shape == pixels.shape
    # Whatever the settings, as much is drawn: what comes after does not move.
    left, right = seeded(0), seeded(0)
    augment(pixels, left), augment(pixels, right, 3, True)
    assert torch.equal(left.get_state(), right.get_state())


@pytest.mark.parametrize("flip", [False, True])
def test_a_shifted_image_is_the_image_somewhere_else(flip):
    """Each result is one of all shifted and mirrored images, computed by padding and cropping, and each occurs."""
    one = torch.from_numpy(random_pixels(1, 3, (6, 8)))[0]
    padded = torch.nn.functional.pad(one, (2, 2, 2, 2))
    options = {}
    for mirror in (False, True)[: 1 + flip]:
        source = torch.nn.functional.pad(one.flip(2), (2, 2, 2, 2)) if mirror else padded
        for row in range(5):
            for column in range(5):
                options[source[:, row : row + 6, column : column + 8].numpy().tobytes()] = mirror
    assert len(options) == 25 * (1 + flip)
    results = [moved.numpy().tobytes() for moved in augment(one.expand(1000, -1, -1, -1), seeded(0), 2, flip)]
    assert set(results) == set(options)
    assert not flip or 420 < sum(options[result] for result in results) < 580


def test_content_that_has_room_is_kept():
    pixels = torch.zeros(50, 1, 8, 8, dtype=torch.uint8)
    pixels[:, :, 2:6, 2:6] = torch.from_numpy(random_pixels(50, 1, (4, 4)))
    moved = augment(pixels, seeded(0), 2, True)
    assert torch.equal(moved.flatten(1).sort().values, pixels.flatten(1).sort().values)


@pytest.mark.parametrize(
    "changes",
    [
        {"values": 256},
        {"channels": 3},
        {"size": (4, 4)},
        {"source": "hub"},
        {"source": "parquet"},
        {"source": "array", "files": {"train": "x"}, "validation": 1.5},
        {"source": "array", "files": {"valid": "x"}},
        {"misspelt": 1},
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes):
    with pytest.raises(ValidationError):
        ImageSettings(**changes)


def test_settings_survive_being_written_down():
    for settings in (ImageSettings(), ImageSettings(source="array", files={"train": "x"}, size=(4, 6), validation=3)):
        assert ImageSettings(**settings.model_dump(mode="json")) == settings


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path):
    def parquet(name, *arguments, **columns):
        return {"source": "parquet", "files": {"train": write_parquet(tmp_path / name, *arguments, **columns)}}

    def load(**arguments):
        return lambda: load_splits(ImageSettings(**{"validation": 0, "test": 0} | arguments), ["train"])

    pixels = random_pixels(4)
    refused(load(source="parquet", files={"train": str(tmp_path / "none.parquet")}), "none.parquet")
    refused(load(**parquet("a.parquet", pixels), image_column="img"), "img", "image_column")
    refused(load(**parquet("b.parquet", pixels, [0, 1, 2, 3], label="kind"), label_column="sort"), "sort", "kind")
    refused(load(**parquet("c.parquet", pixels, [0, 1, -2, 3])), "-2")
    np.save(tmp_path / "d.npy", pixels[:0])
    refused(load(source="array", files={"train": str(tmp_path / "d.npy")}), "d.npy", "no images")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    refused(load(source="parquet", files={"train": str(tmp_path / "broken.parquet")}), "broken.parquet")
    sizes = pa.table({"image": [{"bytes": png(random_pixels(1, 1, (s, s))[0]), "path": None} for s in (4, 5)]})
    pq.write_table(sizes, tmp_path / "sizes.parquet")
    refused(load(source="parquet", files={"train": str(tmp_path / "sizes.parquet")}), "image 1", "size")
    torn = pa.table({"image": [{"bytes": png(pixels[0])[:60], "path": None}]})
    pq.write_table(torn, tmp_path / "torn.parquet")
    refused(load(source="parquet", files={"train": str(tmp_path / "torn.parquet")}), "image 0")
    for name, content in (("f.npy", pixels.astype(np.float32)), ("g.npy", pixels[0, 0])):
        np.save(tmp_path / name, content)
        refused(load(source="array", files={"train": str(tmp_path / name)}), name)
    np.save(tmp_path / "h.npy", pixels)
    refused(load(source="array", files={"train": str(tmp_path / "h.npy")}, values=16), "values")
    np.savez(tmp_path / "i.npz", images=pixels, labels=[0, 1])
    refused(load(source="array", files={"train": str(tmp_path / "i.npz")}), "i.npz")
    np.savez(tmp_path / "j.npz", other=pixels)
    refused(load(source="array", files={"train": str(tmp_path / "j.npz")}), "other")


def test_splits_that_are_not_there_are_refused(tmp_path):
    refused(lambda: load_splits(array_settings(tmp_path, test=0)), "test")
    refused(lambda: load_splits(array_settings(tmp_path, validation=30, test=10)), "train")


def test_an_empty_first_split_has_no_shape(tmp_path):
    np.save(tmp_path / "a.npy", random_pixels(0))
    refused(lambda: image_shape(ImageSettings(source="array", files={"train": str(tmp_path / "a.npy")})), "a.npy")


def test_files_given_by_hand_are_refused_by_name(tmp_path):
    settings = ImageSettings()
    refused(lambda: load_images([], settings), "no image files")
    refused(lambda: load_images([tmp_path / "none.png"], settings), "none.png")
    (tmp_path / "text.png").write_text("no image")
    refused(lambda: load_images([tmp_path / "text.png"], settings), "text.png")


def test_sixteen_bits_transparency_and_rotation(tmp_path):
    settings = ImageSettings(source="parquet", files={"train": "x"})
    wide = np.array([[0, 257, 65535]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert load_images([tmp_path / "wide.png"], settings).flatten().tolist() == [0, 1, 255]
    Image.fromarray(np.array([[[255, 255], [255, 0]]], dtype=np.uint8)).save(tmp_path / "clear.png")
    assert load_images([tmp_path / "clear.png"], settings).flatten().tolist() == [255, 0]
    turned = Image.fromarray(np.array([[10, 20, 30]], dtype=np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    assert load_images([tmp_path / "turned.png"], settings).shape == (1, 1, 3, 1)
