"""Images: every source gives the same pixels, splits are disjoint and stay, views depend on seed, epoch and image."""

import io
import zipfile
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import refused
from PIL import Image
from pydantic import ValidationError

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
    uniforms,
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


def held_out(settings) -> dict[str, set[bytes]]:
    """The images of each split, by their bytes."""
    return {name: {one.numpy().tobytes() for one in split.pixels} for name, split in load_splits(settings).items()}


@pytest.mark.parametrize("share", [0.2, 9])
def test_an_image_stays_in_its_split_whatever_order_the_files_come_in(tmp_path, share):
    pixels = random_pixels(60, 1, (4, 4))
    orders = [np.arange(60), np.random.default_rng(1).permutation(60)]
    found = []
    for number, order in enumerate(orders):
        for part in range(3):
            write_parquet(tmp_path / f"{number}-{part}.parquet", pixels[order[20 * part : 20 * part + 20]])
        files = {"train": str(tmp_path / f"{number}-*.parquet")}
        found.append(held_out(ImageSettings(source="parquet", files=files, validation=share, test=0.1)))
    assert found[0] == found[1]
    assert sum(map(len, found[0].values())) == 60
    # In a folder an image is known by its path: the parts stay where the folder is moved and one is drawn anew.
    for number in range(60):
        (tmp_path / "a" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / str(number % 3) / f"{number}.png").write_bytes(png(pixels[number]))
    before = held_out(ImageSettings(source="imagefolder", files={"train": str(tmp_path / "a")}, validation=share))
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b" / "0" / "0.png").write_bytes(png(255 - pixels[0]))
    after = held_out(ImageSettings(source="imagefolder", files={"train": str(tmp_path / "b")}, validation=share))
    assert [after[name] - before[name] for name in after if pixels[0].tobytes() in before[name]] == [
        {(255 - pixels[0]).tobytes()}
    ]
    assert sum(len(after[name] ^ before[name]) for name in after) == 2


def test_an_added_file_moves_no_image(tmp_path):
    """Where parts are shares."""
    write_parquet(tmp_path / "1.parquet", random_pixels(80, 1, (4, 4)))
    settings = ImageSettings(source="parquet", files={"train": str(tmp_path / "*.parquet")}, validation=0.2, test=0.1)
    before = held_out(settings)
    write_parquet(tmp_path / "2.parquet", random_pixels(70, 1, (4, 4)))
    after = held_out(settings)
    assert all(before[name] < after[name] for name in before)


def test_splits_of_a_hub_data_set_by_name(tmp_path):
    """A folder stands for the hub, which is read by the same call."""
    for name, count in (("train", 12), ("validation", 5), ("test", 4)):
        write_parquet(tmp_path / f"{name}.parquet", random_pixels(count), np.arange(count) % 3)

    def counts(**changes):
        loaded = load_splits(ImageSettings(source="hub", name=str(tmp_path), validation=2, **changes))
        return {name: len(split) for name, split in loaded.items()}

    assert counts() == {"train": 12, "validation": 5, "test": 4}
    assert counts(splits={"train": "train", "test": "validation"}) == {"train": 10, "validation": 2, "test": 5}
    refused(lambda: counts(splits={"train": "training"}), "training", "train, ", "splits")


def test_splits_that_are_stored_are_kept(tmp_path):
    for name, count in (("train", 20), ("test", 6)):
        write_parquet(tmp_path / f"{name}.parquet", random_pixels(count), np.arange(count) % 3)
    files = {name: str(tmp_path / f"{name}.parquet") for name in ("train", "test")}
    loaded = load_splits(ImageSettings(source="parquet", files=files, validation=0.25))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 15, "validation": 5, "test": 6}
    assert np.array_equal(loaded["test"].pixels, random_pixels(6))
    assert [loaded[name].source["held_out"] for name in ("train", "validation", "test")] == [False, True, False]


@pytest.mark.parametrize("values", [2, 16, 200, 256])
def test_eight_bits_become_the_nearest_value(tmp_path, values):
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    path = write_parquet(tmp_path / "a.parquet", ramp)
    settings = ImageSettings(source="parquet", files={"train": path}, values=values, validation=0, test=0)
    pixels = load_splits(settings, ["train"])["train"].pixels.flatten().tolist()
    greys = [255 * value / (values - 1) for value in range(values)]
    assert pixels == [min(range(values), key=lambda value, p=p: (abs(greys[value] - p), -value)) for p in range(256)]


def test_a_smaller_image_is_a_mean_of_the_larger_one(tmp_path):
    """Without a filter before sampling, a fine pattern of black and white would stay black and white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    small = load_images([tmp_path / "board.png"], ImageSettings(source="parquet", files={"train": "x"}, size=(8, 8)))
    assert (small.float() - 127.5).abs().max() < 8


def test_images_given_by_hand_are_seen_as_those_of_the_data_set(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (24, 32), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    files = {"train": str(tmp_path)}
    settings = ImageSettings(source="imagefolder", files=files, size=(4, 5), resize=(12, 16), validation=0, test=0)
    found = load_images([tmp_path / "photo.png"], settings)
    assert torch.equal(found, load_splits(settings, ["train"])["train"].pixels)
    save_png(found[0], tmp_path / "small.png", 256)
    assert torch.equal(load_images([tmp_path / "small.png"], settings), found)


def test_what_is_kept_has_room_for_crops(tmp_path):
    image = np.arange(12 * 16, dtype=np.uint8).reshape(1, 1, 12, 16)
    settings = ImageSettings(source="array", files={"train": str(tmp_path / "a.npy")}, size=(4, 5), resize=(12, 16))
    np.save(tmp_path / "a.npy", image)
    split = load_splits(settings.model_copy(update={"validation": 0, "test": 0}), ["train"])["train"]
    assert torch.equal(split.stored[0], torch.from_numpy(image[0]))
    assert torch.equal(split.pixels[0], torch.from_numpy(image[0, :, 4:8, 5:10]))
    assert image_shape(settings) == tuple(split.source["shape"]) == (1, 4, 5)


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
    # The same file in a data set is the same image.
    folder = settings.model_copy(update={"source": "imagefolder", "files": {"train": str(tmp_path)}})
    assert torch.equal(
        load_splits(folder.model_copy(update={"validation": 0, "test": 0}), ["train"])["train"].pixels[0], pixels
    )


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


def view(pixels, settings, seed=0, epoch=0, size=None, share=1.0, images=None):
    images = torch.arange(len(pixels)) if images is None else images
    draws = uniforms(seed, torch.full_like(images, epoch), images)
    return augment(pixels, draws, settings, size or tuple(pixels.shape[2:]), share)


def test_draws_are_uniform_and_unlike_each_other():
    draws = uniforms(3, torch.arange(2).repeat_interleave(20_000), torch.arange(20_000).repeat(2))
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.stack([np.histogram(column, 20, (0, 1))[0] for column in draws.T])
    assert (abs(counts - 2000) < 6 * 2000**0.5).all()
    both = np.concatenate([draws[:20_000], draws[20_000:]], axis=1)  # another epoch, another number
    apart = np.corrcoef(both.T) - np.eye(both.shape[1])
    assert abs(apart).max() < 6 / 20_000**0.5
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 6 / 40_000**0.5  # the next image too


def test_without_settings_nothing_is_changed():
    pixels = torch.from_numpy(random_pixels(9, 3))
    assert not AugmentSettings().active
    for settings in (AugmentSettings(shift=1), AugmentSettings(flip=True), AugmentSettings(crop="random")):
        assert settings.active
        assert torch.equal(view(pixels, settings, share=0.0), pixels)
    assert torch.equal(view(pixels, AugmentSettings()), pixels)
    assert torch.equal(view(pixels, AugmentSettings(), size=(3, 4)), pixels[:, :, 1:4, 1:5])


def test_a_view_is_a_function_of_seed_epoch_and_image():
    pixels, settings = (
        torch.from_numpy(random_pixels(64, 3, (9, 11))),
        AugmentSettings(shift=2, flip=True, crop="random"),
    )
    whole = view(pixels, settings, size=(5, 6))
    assert whole.dtype == torch.uint8 and whole.shape == (64, 3, 5, 6)
    for images in (torch.tensor([3, 60, 3]), torch.arange(64).flip(0)):  # whatever the batch and its order
        assert torch.equal(view(pixels[images], settings, size=(5, 6), images=images), whole[images])
    assert not torch.equal(view(pixels, settings, size=(5, 6), seed=1), whole)
    epochs = [view(pixels, settings, size=(5, 6), epoch=epoch) for epoch in range(3)]
    assert torch.equal(epochs[0], whole)
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert (epochs[one] != epochs[two]).flatten(1).any(1).float().mean() > 0.8


@pytest.mark.parametrize(
    ("shape", "size", "axes"),
    [
        ((9,), (6,), ("time",)),
        ((4, 3, 5), (3, 3, 4), ("depth", "height", "width")),
        ((4, 3, 5), (3, 3, 4), ("time", "width")),
        ((4, 5), (3, 4), ("height",)),
    ],
)
def test_signals_of_any_axes_are_cropped_and_mirrored_along_those_that_are_named(shape, size, axes):
    """Every window along every axis, mirrored or not along each that is named: each occurs, and as often."""
    one = torch.from_numpy(np.random.default_rng(0).permutation(int(np.prod(shape))).reshape(1, *shape)).int()
    names = {1: ("time",), 2: ("height", "width"), 3: (axes[0] if len(axes) > 1 else "depth", "height", "width")}
    options = [one]
    for axis, name in enumerate(names[len(shape)], start=1):
        options = [
            window.movedim(-1, axis) for x in options for window in x.unfold(axis, size[axis - 1], 1).unbind(axis)
        ]
        options += [x.flip(axis) for x in options] if name in axes else []
    wanted = {x.contiguous().numpy().tobytes() for x in options}
    assert len(wanted) == len(options)
    settings = AugmentSettings(flip=True, flip_axes=axes, crop="random")
    count = 150 * len(options)
    seen = Counter(v.numpy().tobytes() for v in view(one.expand(count, *one.shape), settings, size=size))
    assert set(seen) == wanted
    assert sum((n - 150) ** 2 / 150 for n in seen.values()) < len(options) + 6 * len(options) ** 0.5


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("crop", "shift"), [("center", 2), ("random", 0), ("random", 1)])
def test_a_view_is_the_image_somewhere_else(flip, crop, shift):
    """Each is one of all shifted, cropped and mirrored images, found by padding and cropping; each occurs as often."""
    one = torch.from_numpy(random_pixels(1, 3, (6, 8)))[0]
    height, width = (4, 5) if crop == "random" else (6, 8)
    padded = torch.nn.functional.pad(one, (shift,) * 4)
    windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    options = {w.numpy().tobytes(): False for w in windows} | (
        {w.flip(2).numpy().tobytes(): True for w in windows} if flip else {}
    )
    assert len(options) == len(windows) * (1 + flip)
    settings = AugmentSettings(shift=shift, flip=flip, crop=crop)
    results = [v.numpy().tobytes() for v in view(one.expand(3000, -1, -1, -1), settings, size=(height, width))]
    assert set(results) == set(options)
    assert not flip or 1350 < sum(options[result] for result in results) < 1650
    if not shift or crop == "center":
        counts = np.unique(results, return_counts=True)[1]
        assert ((counts - 3000 / len(options)) ** 2 / (3000 / len(options))).sum() < len(options) + 6 * len(
            options
        ) ** 0.5


def test_a_share_of_the_images_is_changed():
    pixels = torch.from_numpy(random_pixels(2000, 1, (4, 9)))
    for share in (0.2, 0.7):
        changed = (view(pixels, AugmentSettings(flip=True), share=share) != pixels).flatten(1).any(1).float().mean()
        assert abs(changed - share / 2) < 0.05


@pytest.mark.parametrize(
    "changes",
    [
        {"values": 256},
        {"channels": 3},
        {"size": (4, 4)},
        {"source": "hub"},
        {"source": "parquet"},
        {"source": "array", "files": {"train": "x"}, "resize": (8, 8)},
        {"source": "array", "files": {"train": "x"}, "size": (8, 8), "resize": (9, 7)},
        {"source": "array", "files": {"train": "x"}, "validation": 1.5},
        {"source": "array", "files": {"valid": "x"}},
        {"misspelt": 1},
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes):
    with pytest.raises(ValidationError):
        ImageSettings(**changes)


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


def test_only_the_arrays_that_are_used_are_read(tmp_path):
    """The others cannot be read at all here."""
    path = tmp_path / "a.npz"
    pixels = random_pixels(6)[:, 0]
    np.savez(path, labels=np.arange(6), images=pixels, x=np.full(1000, 77, np.uint8), features=np.full(1000, 77.0))
    content = path.read_bytes()
    path.write_bytes(content.replace(bytes([77] * 1000), bytes([78] * 1000)).replace(np.full(1000, 77.0), bytes(8000)))
    with np.load(path) as archive:
        for name in ("x", "features"):
            with pytest.raises(zipfile.BadZipFile):
                archive[name]
    settings = ImageSettings(source="array", files={"train": str(path)}, validation=0, test=0)
    split = load_splits(settings, ["train"])["train"]
    assert np.array_equal(split.pixels[:, 0], pixels)
    assert split.labels.tolist() == list(range(6))


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
