"""Image data sets -> uint8 tensors: read, decoded and split once; everything after works on tensors.

Grey values. A data set of V values per channel keeps ``0 … V-1`` in memory. How a file's numbers become values:

- scikit-learn's digits hold 0 … 16: V is 17.
- 8-bit images of a *data set* (hub, parquet, imagefolder) are quantised, ``floor(p V / 256)``: unchanged for V = 256,
  ``p >= 128`` for V = 2.
- arrays hold the values themselves, and one that is V or more is refused.
- single image files given by hand (:func:`load_images`) are read as :func:`save_png` writes them: value v is stored as
  ``round(255 v / (V-1))``.

Colours. Sixteen-bit grey is scaled to eight, transparent parts are laid on black, EXIF rotation is applied.
"""

import glob
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.random import PCG64, Generator
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor
from tqdm import tqdm

from vqstack.errors import InputError
from vqstack.shapes import Labels, Pixels

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}
LABEL_NAMES = ("label", "labels", "fine_label", "class", "class_label", "target", "digit", "y")
DECODE_BATCH = 512


class ImageSettings(BaseModel):
    """Where the images come from, their geometry, and which of them are held out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["digits", "hub", "parquet", "imagefolder", "array"] = Field(
        "digits", description="kind of source; digits are the 1,797 images of 8x8 pixels inside scikit-learn"
    )
    name: str | None = Field(None, description="hub: data set as OWNER/NAME or OWNER/NAME:CONFIGURATION")
    files: dict[Split, str] = Field(
        default_factory=dict,
        description="split -> file or glob (parquet), folder (imagefolder), .npy or .npz file (array)",
    )
    image_column: str | None = Field(None, description="column of the images; empty: the only one of an image type")
    label_column: str | None = Field(None, description="column of the labels; empty: the only one of a class type")
    size: tuple[int, int] | None = Field(
        None, description="height and width in pixels: resized until it covers them, centre crop; empty: native size"
    )
    channels: Literal[1, 3] = Field(1, description="colour channels, count: 1 grey, 3 RGB")
    values: int = Field(256, ge=2, le=256, description="values per channel, count V; pixels are 0 … V-1 (digits: 17)")
    validation: int | float = Field(
        0.1, ge=0, description="held out of train where there is no validation split: share below 1, or image count"
    )
    test: int | float = Field(
        0.1, ge=0, description="held out of train where there is no test split: share below 1, or image count"
    )
    limit: int | None = Field(None, ge=1, description="use at most this many images of each split, count, seeded choice")
    seed: int = Field(0, ge=0, description="seed of the held-out splits and of the choice under limit, no unit")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_digits(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("source", "digits") == "digits":
            return {"values": 17, "validation": 200, "test": 297} | data
        return data

    @field_validator("validation", "test")
    @classmethod
    def _share_or_count(cls, value: int | float) -> int | float:
        if isinstance(value, float) and value >= 1:
            raise ValueError(f"{value} is no share below 1; write a count without a decimal point")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "ImageSettings":
        if self.size is not None and min(self.size) < 1:
            raise ValueError("size needs a height and a width of at least one pixel")
        if self.source == "digits" and (self.values, self.channels) != (17, 1):
            raise ValueError("the digits have 17 grey values: set values to 17 and channels to 1")
        if self.source == "digits" and self.size not in (None, (8, 8)):
            raise ValueError("the digits are 8x8 images: leave size empty")
        if self.source == "hub" and not self.name:
            raise ValueError("source hub needs name, for example ylecun/mnist")
        if self.source in ("parquet", "imagefolder", "array") and not self.files:
            raise ValueError(f"source {self.source} needs files: a path for each of train, validation, test")
        return self


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """One split in memory.

    Attributes:
        pixels: uint8 [n, c, h, w].
        labels: class numbers, or None where the source has none.
        index: position of each image in the source split as stored (a held-out image's is its position in train).
        name: train, validation or test.
        source: where the images came from, as JSON for a manifest.
    """

    pixels: Pixels
    labels: Labels | None
    index: Int64[Tensor, "b"]
    name: str
    source: dict[str, Any]

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def num_classes(self) -> int:
        """Number of label values; 0 without labels. See :func:`num_classes`."""
        return int(self.source["num_classes"])

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, their numbers where the source names none; empty without labels."""
        return list(self.source.get("class_names") or map(str, range(self.num_classes)))


@dataclass(frozen=True, eq=False)
class _Stored:
    """A split as the source has it; ``read`` decodes the images at the given positions to uint8 [n, c, h, w]."""

    count: int
    read: Callable[[NDArray[np.int64]], NDArray[np.uint8]]
    labels: NDArray[np.int64] | None
    class_names: list[str] | None
    origin: str


def load_splits(settings: ImageSettings, names: Iterable[str] = SPLITS) -> dict[str, ImageSplit]:
    """Reads and decodes the named splits, each image once.

    A missing validation or test split is held out of train by a permutation under ``settings.seed``; inside a split the
    images keep the order of the source. Raises InputError for whatever is missing, broken or of the wrong type.
    """
    stored = _open(settings)
    parts = _partition({name: split.count for name, split in stored.items()}, settings)
    classes = _count_classes(stored)
    loaded = {}
    for name in names:
        if name not in parts:
            raise InputError(f"{_describe(settings)}: no {name} split; name a file for it or hold out a part of train")
        origin, positions = parts[name]
        split = stored[origin]
        pixels = split.read(positions)
        labels = None if split.labels is None else torch.from_numpy(split.labels[positions])
        source = {
            "source": settings.source,
            "origin": split.origin,
            "split": origin,
            "held_out": name != origin,
            "seed": settings.seed,
            "images": len(positions),
            "shape": list(pixels.shape[1:]),
            "values": settings.values,
            "num_classes": classes,
            "class_names": split.class_names,
        }
        loaded[name] = ImageSplit(torch.from_numpy(pixels), labels, torch.from_numpy(positions), name, source)
    return loaded


def image_shape(settings: ImageSettings) -> tuple[int, int, int]:
    """(channels, height, width) of the images, without loading any where ``size`` is set, else from the first one."""
    size = _known_size(settings)
    if size is None:
        stored = _open(settings)
        first = stored.get("train") or next(iter(stored.values()))
        _, _, *size = first.read(np.zeros(1, dtype=np.int64)).shape
    return settings.channels, size[0], size[1]


def num_classes(settings: ImageSettings) -> int:
    """Number of label values without decoding an image: as the source declares them, else largest label of train + 1."""
    return _count_classes(_open(settings))


def load_images(paths: list[Path], settings: ImageSettings) -> Pixels:
    """Image files given by hand -> uint8 [n, c, h, w], with the geometry of ``settings``.

    A file's number p becomes the value ``round(p (V-1) / 255)``, the inverse of :func:`save_png`. Raises InputError
    naming the file that cannot be read or has another size.
    """
    if not paths:
        raise InputError("no image files given")
    fixed = settings.model_copy(update={"values": 256})  # the values are mapped below, not quantised
    images = (_decode(str(path), str(path), fixed) for path in paths)
    pixels = _collect(images, list(map(str, paths)), _known_size(settings), "reading images")
    return torch.from_numpy(((pixels.astype(np.int64) * (settings.values - 1) * 2 + 255) // 510).astype(np.uint8))


def save_png(pixels: UInt8[Tensor, "c h w"], path: Path, values: int) -> None:
    """Stores one image as PNG, lossless: value v as ``round(255 v / (V-1))``, V = ``values``."""
    _to_image(pixels, values).save(path, format="PNG")


def grid(pixels: Pixels, columns: int, values: int, scale: int = 1) -> Image.Image:
    """Images in rows of ``columns``, a grey line of one pixel between them, all enlarged ``scale`` times (nearest)."""
    count, channels, height, width = pixels.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    line: Any = 96 if channels == 1 else (96, 96, 96)
    size = (columns * (width + 1) - 1, rows * (height + 1) - 1)
    sheet = Image.new("L" if channels == 1 else "RGB", size, line)
    for position in range(count):
        row, column = divmod(position, columns)
        sheet.paste(_to_image(pixels[position], values), (column * (width + 1), row * (height + 1)))
    return sheet.resize((size[0] * scale, size[1] * scale), Image.Resampling.NEAREST)


class AugmentSettings(BaseModel):
    """Random changes of the training images, drawn anew each time an image is seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shift: int = Field(0, ge=0, description="largest shift along each axis, pixels; the edge is filled with value 0")
    flip: bool = Field(False, description="mirror left and right with probability one half, no unit")


def augment(pixels: Pixels, generator: torch.Generator, shift: int = 0, flip: bool = False) -> Pixels:
    """Shifts each image by up to ``shift`` pixels along each axis (filled with value 0) and mirrors half of them.

    ``generator`` is a CPU generator, so that the draws depend on its seed and not on the device; the gather runs on the
    device of ``pixels``. Whatever the settings, the same amount of randomness is drawn.
    """
    batch, channels, height, width = pixels.shape
    offsets = torch.randint(-shift, shift + 1, (batch, 2), generator=generator).to(pixels.device)
    mirrored = (torch.rand(batch, generator=generator) < 0.5).to(pixels.device) & flip
    rows = torch.arange(height, device=pixels.device) - offsets[:, :1]  # [b, h]: source row of each row
    columns = torch.arange(width, device=pixels.device) - offsets[:, 1:]  # [b, w]
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    sites = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]  # [b, h, w]
    moved = pixels.flatten(2).gather(2, sites.flatten(1)[:, None].expand(-1, channels, -1))
    return moved.view_as(pixels) * inside[:, None]


def _open(settings: ImageSettings) -> dict[str, _Stored]:
    """The splits of the source, nothing decoded yet; labels are checked here."""
    openers = {"digits": _open_digits, "array": _open_arrays}
    stored = openers.get(settings.source, _open_datasets)(settings)
    for name, split in stored.items():
        if split.count == 0:
            raise InputError(f"{_describe(settings)}: split {name} has no images; name another file or leave it out")
    return stored


def _open_digits(settings: ImageSettings) -> dict[str, _Stored]:
    from sklearn.datasets import load_digits  # half a second to import

    digits = load_digits()
    pixels = digits.images.astype(np.uint8)[:, None]
    names = [str(name) for name in digits.target_names]
    labels = digits.target.astype(np.int64)
    return {"train": _Stored(len(pixels), pixels.__getitem__, labels, names, "scikit-learn load_digits")}


def _open_arrays(settings: ImageSettings) -> dict[str, _Stored]:
    return {name: _open_array(name, path, settings) for name, path in settings.files.items()}


def _open_array(split: str, path: str, settings: ImageSettings) -> _Stored:
    """One .npy (pixels) or .npz (images, pixels or x, with labels or y) file of uint8 [n,h,w], [n,h,w,c], [n,c,h,w]."""
    try:
        content = np.load(path, mmap_mode="r" if path.endswith(".npy") else None, allow_pickle=False)
        arrays = {"pixels": content} if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:  # numpy raises a different type for each way a file can be broken
        raise InputError(f"{path}: cannot be read as .npy or .npz ({error}); name a file written by numpy") from error
    pixels = next((arrays[key] for key in ("images", "pixels", "x") if key in arrays), None)
    if pixels is None:
        raise InputError(f"{path}: no array images, pixels or x among {', '.join(arrays)}; rename the array of images")
    labels = next((arrays[key] for key in ("labels", "y") if key in arrays), None)
    if labels is not None and len(labels) != len(pixels):
        raise InputError(f"{path}: {len(pixels)} images but {len(labels)} labels; store one label for each image")
    pixels = _channels_first(pixels, path, settings)

    def read(positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        chosen = np.ascontiguousarray(pixels[positions])
        if chosen.max() >= settings.values:
            raise InputError(
                f"{path}: holds the value {chosen.max()}, values is {settings.values}; set values to 256 or convert the "
                f"array to 0 … {settings.values - 1} before storing it"
            )
        if chosen.shape[1] == settings.channels and settings.size in (None, chosen.shape[2:]):
            return chosen
        modes = (Image.fromarray(p[0] if len(p) == 1 else p.transpose(1, 2, 0)) for p in chosen)
        fitted = (_to_array(_fit(_to_grey_or_rgb(image, settings.channels), settings.size)) for image in modes)
        names = [f"{split} image {position}" for position in positions]
        return np.minimum(_collect(fitted, names, settings.size, f"resizing {split}"), settings.values - 1)

    return _Stored(len(pixels), read, _check_labels(labels, path, None), None, path)


def _channels_first(pixels: NDArray[Any], path: str, settings: ImageSettings) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8:
        raise InputError(f"{path}: the images are {pixels.dtype}, not uint8; store whole numbers from 0 to values - 1")
    if pixels.ndim == 3:
        return pixels[:, None]
    first, last = pixels.ndim == 4 and pixels.shape[1] in (1, 3), pixels.ndim == 4 and pixels.shape[3] in (1, 3)
    if first == last:
        raise InputError(
            f"{path}: cannot tell the channels of images of shape {pixels.shape}; store them as [n, height, width] or "
            f"[n, height, width, {settings.channels}]"
        )
    return pixels if first else pixels.transpose(0, 3, 1, 2)


def _open_datasets(settings: ImageSettings) -> dict[str, _Stored]:
    """Hub, parquet and imagefolder: all through ``datasets.load_dataset``."""
    found = {ALIASES.get(name, name): (name, rows) for name, rows in _load_datasets(settings).items()}
    found = {name: found[name] for name in SPLITS if name in found}
    if not found:
        raise InputError(f"{_describe(settings)}: has no split named train, validation or test; name another data set")
    return {name: _open_rows(name, own_name, rows, settings) for name, (own_name, rows) in found.items()}


def _load_datasets(settings: ImageSettings) -> dict[str, Any]:
    import datasets  # a second to import, and not needed for digits and arrays

    arguments: dict[str, Any] = {}
    if settings.source == "hub":
        path, _, configuration = (settings.name or "").partition(":")
        arguments = {"name": configuration or None}
    else:
        path = settings.source
        for split, pattern in settings.files.items():
            if "://" not in pattern and not glob.glob(pattern, recursive=True):
                raise InputError(f"{pattern}: no such file ({split} split of source {path}); correct the path in files")
        arguments = {"data_files": dict(settings.files)}
    if settings.source == "imagefolder":
        folders = settings.files.values()
        nested = any(child.is_dir() for folder in folders if Path(folder).is_dir() for child in Path(folder).iterdir())
        # Left to itself the loader would take the names of flat train and test folders for two classes.
        arguments = {
            "data_files": {split: f"{folder}/**" for split, folder in settings.files.items()},
            "drop_labels": None if nested else True,
        }
    silent = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    try:
        if silent:
            datasets.disable_progress_bars()
        return dict(datasets.load_dataset(path, **arguments))
    except Exception as error:  # the library raises dozens of types for a name, a network or a file that is not there
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(f"{_describe(settings)}: cannot be loaded ({reason}); check the name and the network") from error
    finally:
        if silent:
            datasets.enable_progress_bars()


def _open_rows(split: str, own_name: str, rows: Any, settings: ImageSettings) -> _Stored:
    import datasets

    where = f"{_describe(settings)}, split {split}"
    image_column = _find_image_column(rows.features, settings, where)
    label_column = _find_label_column(rows.features, settings, where)
    images = rows.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    feature = rows.features.get(label_column)
    class_names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    labels = None if label_column is None else _check_labels(np.asarray(rows[label_column][:]), where, class_names)

    def decode(numbered: tuple[int, dict[str, Any]]) -> NDArray[np.uint8]:
        return _decode(numbered[1], f"{where}, image {numbered[0]}", settings)

    def read(positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        def decoded() -> Iterator[NDArray[np.uint8]]:
            with ThreadPoolExecutor() as pool:  # Pillow lets go of the interpreter lock while it decodes
                for start in range(0, len(positions), DECODE_BATCH):
                    chosen = positions[start : start + DECODE_BATCH].tolist()
                    yield from pool.map(decode, zip(chosen, images[chosen][image_column], strict=True))

        names = [f"{where}, image {position}" for position in positions]
        return _collect(decoded(), names, settings.size, f"decoding {split}")

    return _Stored(len(rows), read, labels, class_names, f"{_describe(settings)}, split {own_name}")


def _find_image_column(features: Any, settings: ImageSettings, where: str) -> str:
    import datasets

    def holds_images(feature: Any) -> bool:
        stored = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
        return stored or isinstance(feature, datasets.Image)

    candidates = [name for name, feature in features.items() if holds_images(feature)]
    chosen = settings.image_column or (candidates[0] if len(candidates) == 1 else None)
    if chosen is None or chosen not in candidates:
        known = f"image columns: {', '.join(candidates) or 'none'}; all columns: {', '.join(features)}"
        problem = f"no image column {chosen}" if chosen else "cannot tell the image column"
        raise InputError(f"{where}: {problem} ({known}); set image_column")
    return chosen


def _find_label_column(features: Any, settings: ImageSettings, where: str) -> str | None:
    import datasets

    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    whole = [name for name, feature in features.items() if "int" in str(getattr(feature, "dtype", ""))]
    if settings.label_column is not None:
        if settings.label_column in classes + whole:
            return settings.label_column
        problem = "is not of a class or integer type" if settings.label_column in features else "does not exist"
        known = ", ".join(classes + whole) or "none"
        raise InputError(f"{where}: label column {settings.label_column} {problem}; set label_column (fit: {known})")
    usual = [name for name in LABEL_NAMES if name in (classes or whole)]
    if len(classes) > 1 and not usual:
        raise InputError(f"{where}: several label columns ({', '.join(classes)}); set label_column")
    return usual[0] if usual else next(iter(classes), None)


def _check_labels(labels: NDArray[Any] | None, where: str, names: list[str] | None) -> NDArray[np.int64] | None:
    if labels is None or labels.size == 0:
        return None
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{where}: labels are {labels.dtype} of shape {labels.shape}; store one class number an image")
    if (labels == -1).all():  # the hub's way of keeping the labels of a test split secret
        return None
    if labels.min() < 0 or (names is not None and labels.max() >= len(names)):
        raise InputError(f"{where}: labels from {labels.min()} to {labels.max()}; number the classes from 0")
    return labels.astype(np.int64)


def _count_classes(stored: dict[str, _Stored]) -> int:
    split = stored.get("train") or next(iter(stored.values()))
    if split.labels is None:
        return 0
    return len(split.class_names) if split.class_names else int(split.labels.max()) + 1


def _partition(counts: dict[str, int], settings: ImageSettings) -> dict[str, tuple[str, NDArray[np.int64]]]:
    """Split -> (stored split, positions in it): what is missing is held out of train, then ``limit`` applies."""
    parts = {name: (name, np.arange(count)) for name, count in counts.items()}
    if "train" in counts:
        order = Generator(PCG64(settings.seed)).permutation(counts["train"])
        shares = {"test": settings.test, "validation": settings.validation}
        for name, share in shares.items():  # test first: changing the validation share leaves the test images alone
            if name not in counts and share > 0:
                size = share if isinstance(share, int) else max(1, round(share * counts["train"]))
                parts[name] = ("train", np.sort(order[:size]))
                order = order[size:]
        if len(order) == 0:
            raise InputError(f"{_describe(settings)}: {counts['train']} train images, all held out; lower validation, test")
        parts["train"] = ("train", np.sort(order))
    if settings.limit is not None:
        for number, name in enumerate(SPLITS):
            if name in parts:
                origin, positions = parts[name]
                kept = Generator(PCG64([settings.seed, number])).permutation(len(positions))[: settings.limit]
                parts[name] = (origin, positions[np.sort(kept)])
    return parts


def _decode(record: Any, name: str, settings: ImageSettings) -> NDArray[np.uint8]:
    """A path or a {bytes, path} record -> uint8 [c, h, w] of values."""
    try:
        if isinstance(record, dict):
            record = record["path"] if record["bytes"] is None else io.BytesIO(record["bytes"])
        with Image.open(record) as image:
            fitted = _fit(_to_grey_or_rgb(ImageOps.exif_transpose(image), settings.channels), settings.size)
        return (_to_array(fitted).astype(np.uint16) * settings.values >> 8).astype(np.uint8)
    except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error, …
        raise InputError(f"{name}: cannot be decoded ({error}); repair or remove it") from error


def _to_grey_or_rgb(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("more than 16 bits per pixel")
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels, where 8 or 16 bits are read")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, (0, 0, 0, 255)), opaque)
    return image.convert("L" if channels == 1 else "RGB")


def _fit(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Covers ``size`` (height, width) with the image, antialiased, and crops the centre."""
    if size is None or image.size == size[::-1]:
        return image
    return ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)


def _to_array(image: Image.Image) -> NDArray[np.uint8]:
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _to_image(pixels: Tensor, values: int) -> Image.Image:
    stored = ((pixels.cpu().numpy().astype(np.int64) * 510 + values - 1) // (2 * (values - 1))).astype(np.uint8)
    return Image.fromarray(stored[0] if len(stored) == 1 else np.ascontiguousarray(stored.transpose(1, 2, 0)))


def _collect(
    images: Iterable[NDArray[np.uint8]], names: list[str], size: tuple[int, int] | None, title: str
) -> NDArray[np.uint8]:
    """Puts images of one shape into one array; ``names`` has one for each, ``size`` is demanded where it is given."""
    pixels: NDArray[np.uint8] | None = None
    for position, image in enumerate(tqdm(images, title, len(names), disable=None, unit="image", leave=False)):
        if pixels is None:
            pixels = np.empty((len(names), image.shape[0], *(size or image.shape[1:])), dtype=np.uint8)
        if image.shape != pixels.shape[1:]:
            found, wanted = ("x".join(map(str, shape[-2:])) for shape in (image.shape, pixels.shape))
            raise InputError(f"{names[position]}: {found} pixels where {wanted} is needed; set size to bring all to one")
        pixels[position] = image
    assert pixels is not None
    return pixels


def _known_size(settings: ImageSettings) -> tuple[int, int] | None:
    return (8, 8) if settings.source == "digits" else settings.size


def _describe(settings: ImageSettings) -> str:
    where = {"digits": "scikit-learn digits", "hub": f"hub data set {settings.name}"}
    return where.get(settings.source, f"{settings.source} {', '.join(settings.files.values())}")
