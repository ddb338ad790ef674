"""Image data sets -> uint8 tensors: read, decoded and split once; everything after works on tensors.

How a file's numbers become values 0 … V-1: 8-bit images of a data set (hub, parquet, imagefolder) are quantised,
``floor(p V / 256)``: unchanged for V = 256, ``p >= 128`` for V = 2. Arrays and scikit-learn's digits (V = 17) hold the
values themselves; V or more is refused. Image files given by hand (:func:`load_images`) are read as :func:`save_png`
writes them, v as ``round(255 v / (V-1))``.

Colours. Sixteen-bit grey is scaled to eight, transparent parts are laid on black, EXIF rotation is applied.
"""

import glob
import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.random import PCG64, Generator
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel, Field, PositiveInt, model_validator
from torch import Tensor
from tqdm import tqdm

from vqstack.errors import InputError
from vqstack.shapes import Labels, Pixels

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Size = tuple[PositiveInt, PositiveInt]
Source = Literal["digits", "hub", "parquet", "imagefolder", "array"]
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}
LABEL_NAMES = ("label", "labels", "fine_label", "class", "class_label", "target", "digit", "y")
DECODE_BATCH = 512  # images fetched at a time; bounds the memory of those still encoded


class ImageSettings(BaseModel, frozen=True, extra="forbid"):
    """Where the images come from, their geometry, and which of them are held out."""

    source: Source = Field("digits", description="kind of source; digits: the 1,797 images of 8x8 inside scikit-learn")
    name: str | None = Field(None, description="hub: data set as OWNER/NAME or OWNER/NAME:CONFIGURATION")
    files: dict[Split, str] = Field({}, description="split -> parquet file or glob, image folder, .npy or .npz file")
    image_column: str | None = Field(None, description="column of the images; empty: the only one of an image type")
    label_column: str | None = Field(None, description="column of the labels; empty: the only one of a class type")
    size: Size | None = Field(None, description="height and width in pixels, covered and cropped; empty: native size")
    channels: Literal[1, 3] = Field(1, description="colour channels, count: 1 grey, 3 RGB")
    values: int = Field(256, ge=2, le=256, description="values per channel, count V; pixels are 0 … V-1 (digits: 17)")
    validation: int | float = Field(0.1, ge=0, description="held out if missing: share of train below 1 or image count")
    test: int | float = Field(0.1, ge=0, description="held out if missing: share of train below 1 or image count")
    limit: int | None = Field(None, ge=1, description="largest count of images in each split; a seeded choice of them")
    seed: int = Field(0, ge=0, description="seed of the held-out splits and of the choice under limit, no unit")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_digits(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("source", "digits") != "digits":
            return data
        return {"values": 17, "validation": 200, "test": 297} | data | {"size": data.get("size") or (8, 8)}

    @model_validator(mode="after")
    def _consistent(self) -> "ImageSettings":
        if any(isinstance(share, float) and share >= 1 for share in (self.validation, self.test)):
            raise ValueError("validation and test are shares below 1 or counts; write a count without a decimal point")
        if self.source == "digits" and (self.values, self.channels, self.size) != (17, 1, (8, 8)):
            raise ValueError("the digits are 8x8 of 17 grey values: set values to 17, channels to 1, leave size empty")
        if self.source == "hub" and not self.name:
            raise ValueError("source hub needs name, for example ylecun/mnist")
        if self.source in ("parquet", "imagefolder", "array") and not self.files:
            raise ValueError(f"source {self.source} needs files: a path for each of train, validation, test")
        return self

    def __str__(self) -> str:
        named = {"digits": "scikit-learn digits", "hub": f"hub data set {self.name}"}
        return named.get(self.source, f"{self.source} {', '.join(self.files.values())}")


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """One split in memory."""

    pixels: Pixels  # uint8 [n, c, h, w]
    labels: Labels | None  # class numbers, where the source has them
    index: Int64[Tensor, "b"]  # position in the source split as stored: a held-out image keeps its position in train
    name: str  # train, validation or test
    source: dict[str, Any]  # where the images came from, as JSON for a manifest

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def num_classes(self) -> int:
        """Number of label values: declared by the source, else largest label of train + 1; 0 without labels."""
        return int(self.source["num_classes"])

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, their numbers where the source names none; empty without labels."""
        return list(self.source["class_names"] or map(str, range(self.num_classes)))


def load_splits(settings: ImageSettings, names: Iterable[str] = SPLITS) -> dict[str, ImageSplit]:
    """Reads and decodes the named splits, each image once.

    A missing validation or test split is held out of train by a permutation under ``settings.seed``; inside a split the
    images keep the order of the source. Raises InputError for whatever is missing, broken or of the wrong type.
    """
    stored = _open(settings)
    parts = _partition({name: split.count for name, split in stored.items()}, settings)
    classes = next(iter(stored.values())).num_classes
    loaded = {}
    for name in names:
        if name not in parts:
            raise InputError(f"{settings}: no {name} split; name a file for it or hold out a part of train")
        origin, positions = parts[name]
        split = stored[origin]
        pixels = torch.from_numpy(_read(split, positions, settings))
        labels = None if split.labels is None else torch.from_numpy(split.labels[positions])
        if labels is not None and labels.max() >= classes:
            raise InputError(
                f"{split.where}: label {labels.max()} where {classes} classes are known; correct the labels"
            )
        source = {"source": settings.source, "origin": split.where, "held_out": name != origin, "seed": settings.seed}
        source |= {"shape": list(pixels.shape[1:]), "values": settings.values}
        source |= {"num_classes": classes, "class_names": split.class_names if classes else None}
        loaded[name] = ImageSplit(pixels, labels, torch.from_numpy(positions), name, source)
    return loaded


def split_names(settings: ImageSettings) -> list[Split]:
    """The splits that the source has or that are held out of its train split, without decoding an image."""
    parts = _partition({name: split.count for name, split in _open(settings).items()}, settings)
    return [name for name in SPLITS if name in parts]


def image_shape(settings: ImageSettings) -> tuple[int, int, int]:
    """(channels, height, width) of the images, without loading any where ``size`` is set, else from the first one."""
    if settings.size is not None:
        return settings.channels, *settings.size
    height, width = _read(next(iter(_open(settings).values())), np.zeros(1, dtype=np.int64), settings).shape[2:]
    return settings.channels, height, width


def num_classes(settings: ImageSettings) -> int:
    """As :attr:`ImageSplit.num_classes`, without decoding an image."""
    return next(iter(_open(settings).values())).num_classes


def load_images(paths: Sequence[Path], settings: ImageSettings) -> Pixels:
    """Image files given by hand -> uint8 [n, c, h, w], with the geometry of ``settings``.

    A file's number p becomes the value ``round(p (V-1) / 255)``, the inverse of :func:`save_png`. Raises InputError
    naming the file that cannot be read or has another size.
    """
    if not paths:
        raise InputError("no image files given; name at least one")
    stored = ImageSettings.model_construct(**dict(settings) | {"values": 256})  # 8 bits, mapped below
    images = (_decode(str(path), str(path), stored) for path in paths)
    pixels = _collect(images, [str(path) for path in paths], settings.size)
    return torch.from_numpy(((pixels.astype(np.int64) * (settings.values - 1) * 2 + 255) // 510).astype(np.uint8))


def save_png(pixels: UInt8[Tensor, "c h w"], path: Path, values: int) -> None:
    """Stores one image as PNG, lossless: value v as ``round(255 v / (V-1))``, V = ``values``."""
    _to_image(pixels, values).save(path, format="PNG")


def grid(pixels: Pixels, columns: int, values: int, scale: int = 1) -> Image.Image:
    """Images in rows of ``columns``, a grey line of one pixel between them, all enlarged ``scale`` times (nearest)."""
    count, channels, height, width = pixels.shape
    columns = min(columns, count)
    size = (columns * (width + 1) - 1, -(-count // columns) * (height + 1) - 1)
    sheet = Image.new("L", size, 96).convert("L" if channels == 1 else "RGB")
    for i in range(count):
        sheet.paste(_to_image(pixels[i], values), (i % columns * (width + 1), i // columns * (height + 1)))
    return sheet.resize((size[0] * scale, size[1] * scale), Image.Resampling.NEAREST)


class AugmentSettings(BaseModel, frozen=True, extra="forbid"):
    """Random changes of the training images, drawn anew each time an image is seen."""

    shift: int = Field(0, ge=0, description="largest shift along each axis, pixels; the edge is filled with value 0")
    flip: bool = Field(False, description="mirror left and right with probability one half, no unit")
    views: int = Field(
        0,
        ge=0,
        description="views of each training image whose codes are stored for the levels above 1 and the prior, count; "
        "0: a new view is encoded each time an image is seen",
    )

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return self.shift > 0 or self.flip


def augment(pixels: Pixels, generator: torch.Generator, shift: int = 0, flip: bool = False) -> Pixels:
    """Shifts each image by up to ``shift`` pixels along each axis (filled with value 0) and mirrors half of them.

    ``generator`` is a CPU generator: the draws depend on its seed and not on the device of ``pixels``.
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


@dataclass(frozen=True, eq=False)
class _Stored:
    """A split as the source has it; ``fetch`` takes positions and gives the records that :func:`_decode` reads."""

    where: str
    count: int
    fetch: Callable[[Any], Iterable[Any]]
    labels: NDArray[np.int64] | None
    class_names: list[str] | None

    @property
    def num_classes(self) -> int:
        return 0 if self.labels is None else len(self.class_names or []) or int(self.labels.max()) + 1


def _open(settings: ImageSettings) -> dict[str, _Stored]:
    """The splits of the source, train first, nothing decoded yet; labels are checked here."""
    if settings.source == "digits":
        from sklearn.datasets import load_digits  # half a second to import

        digits = load_digits()
        names, labels = [str(name) for name in digits.target_names], digits.target.astype(np.int64)
        stored = {"train": _Stored(str(settings), 1797, digits.images.astype(np.uint8).__getitem__, labels, names)}
    elif settings.source == "array":
        stored = {name: _open_array(settings.files[name], settings) for name in SPLITS if name in settings.files}
    else:
        found = {ALIASES.get(name, name): rows for name, rows in _load_datasets(settings).items()}
        if not found.keys() & set(SPLITS):
            raise InputError(f"{settings}: has no split named train, validation or test; name another data set")
        stored = {n: _open_rows(found[n], f"{settings}, split {n}", settings) for n in SPLITS if n in found}
    return stored


def _open_array(path: str, settings: ImageSettings) -> _Stored:
    """One .npy (pixels) or .npz (images, pixels or x, with labels or y) file of uint8 [n,h,w], [n,h,w,c], [n,c,h,w]."""
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            arrays = {"pixels": content} if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:  # numpy raises a different type for each way a file can be broken
        raise InputError(f"{path}: cannot be read as .npy or .npz ({error}); name a file written by numpy") from error
    pixels = next((arrays[key] for key in ("images", "pixels", "x") if key in arrays), None)
    if pixels is None:
        raise InputError(f"{path}: no array images, pixels or x among {', '.join(arrays)}; rename the array of images")
    if pixels.dtype != np.uint8:
        raise InputError(f"{path}: the images are {pixels.dtype}, not uint8; store whole numbers from 0 to values - 1")
    first, last = (pixels.ndim == 4 and pixels.shape[axis] in (1, 3) for axis in (1, 3))
    if pixels.ndim != 3 and first == last:
        raise InputError(f"{path}: cannot tell the channels of {pixels.shape}; store images as [n, height, width, c]")
    pixels = pixels.transpose(0, 2, 3, 1) if first else pixels  # Pillow wants channels last, and no axis for grey
    pixels = pixels[..., 0] if pixels.ndim == 4 and pixels.shape[3] == 1 else pixels
    labels = next((arrays[key] for key in ("labels", "y") if key in arrays), None)
    labels = None if labels is None else _check_labels(labels, len(pixels), path, None)
    return _Stored(path, len(pixels), pixels.__getitem__, labels, None)


def _load_datasets(settings: ImageSettings) -> dict[str, Any]:
    """Hub, parquet and imagefolder: all through ``datasets.load_dataset``."""
    import datasets  # a second to import, and not needed for digits and arrays

    path, _, configuration = (str(settings.name) if settings.source == "hub" else settings.source).partition(":")
    for split, pattern in settings.files.items():
        if "://" not in pattern and not glob.glob(pattern, recursive=True):
            raise InputError(f"{pattern}: no such file (the {split} split of source {path}); correct the path in files")
    files: dict[str, str] = {str(split): pattern for split, pattern in settings.files.items()}
    arguments: dict[str, Any] = {"name": configuration or None, "data_files": files or None}
    if settings.source == "imagefolder":
        arguments["data_files"] = {split: f"{folder}/**" for split, folder in files.items()}
        # Left to itself the loader would take the names of flat train and test folders for two classes.
        nested = any(glob.glob(f"{glob.escape(folder)}/*/") for folder in files.values())
        arguments["drop_labels"] = None if nested else True
    try:
        return dict(datasets.load_dataset(path, **arguments))
    except Exception as error:  # the library raises dozens of types for a name, a network or a file that is not there
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(f"{settings}: cannot be loaded ({reason}); check the name, the files, the network") from error


def _open_rows(rows: Any, where: str, settings: ImageSettings) -> _Stored:
    import datasets

    types = rows.features
    records = [name for name, kind in types.items() if isinstance(kind, dict) and kind.keys() == {"bytes", "path"}]
    image_types = [name for name, kind in types.items() if isinstance(kind, datasets.Image)] + records
    image_column = _choose_column("image", settings.image_column, image_types, list(types), where)
    classes = [name for name, kind in types.items() if isinstance(kind, datasets.ClassLabel)]
    whole = [name for name, kind in types.items() if "int" in str(getattr(kind, "dtype", ""))]
    usual = [name for name in LABEL_NAMES if name in (classes or whole)][:1]
    fitting = list(dict.fromkeys(classes + whole)) if settings.label_column else usual or classes
    label_column, class_names, labels = settings.label_column, None, None
    if fitting or label_column:
        label_column = _choose_column("label", label_column, fitting, list(types), where)
        class_names = list(types[label_column].names) if label_column in classes else None
        labels = _check_labels(np.asarray(rows[label_column][:]), len(rows), where, class_names)
    images = rows.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    return _Stored(where, len(rows), lambda chosen: images[chosen.tolist()][image_column], labels, class_names)


def _choose_column(what: str, named: str | None, fitting: list[str], columns: list[str], where: str) -> str:
    if named in fitting or (named is None and len(fitting) == 1):
        return named or fitting[0]
    problem = f"{what} column {named} is not there or of another type" if named else f"cannot tell the {what} column"
    known = f"of a fitting type: {', '.join(fitting) or 'none'}; all columns: {', '.join(columns)}"
    raise InputError(f"{where}: {problem} ({known}); set {what}_column")


def _check_labels(labels: Any, count: int, where: str, names: list[str] | None) -> NDArray[np.int64] | None:
    if labels.shape != (count,) or (labels.dtype.kind not in "iu" and count > 0):
        raise InputError(f"{where}: {count} images, labels {labels.dtype}{labels.shape}; store a class number for each")
    if (labels == -1).all():  # the hub's way of keeping the labels of a test split secret
        return None
    if labels.min() < 0 or (names is not None and labels.max() >= len(names)):
        raise InputError(f"{where}: labels from {labels.min()} to {labels.max()}; number the classes from 0")
    return labels.astype(np.int64)


def _partition(counts: dict[str, int], settings: ImageSettings) -> dict[str, tuple[str, NDArray[np.int64]]]:
    """Split -> (stored split, positions in it): what is missing is held out of train, then ``limit`` applies."""
    parts = {name: (name, np.arange(count)) for name, count in counts.items()}
    if "train" in counts:
        order = Generator(PCG64(settings.seed)).permutation(counts["train"])
        # Test first: another share for validation leaves the test images as they are.
        for name, share in (("test", settings.test), ("validation", settings.validation)):
            if name not in counts and share > 0:
                size = share if isinstance(share, int) else max(1, round(share * counts["train"]))
                parts[name], order = ("train", np.sort(order[:size])), order[size:]
        parts["train"] = ("train", np.sort(order))
    for number, name in enumerate(SPLITS):
        if settings.limit is not None and name in parts:
            origin, positions = parts[name]
            kept = Generator(PCG64([settings.seed, number])).permutation(len(positions))[: settings.limit]
            parts[name] = (origin, positions[np.sort(kept)])
    return parts


def _read(split: _Stored, positions: NDArray[np.int64], settings: ImageSettings) -> NDArray[np.uint8]:
    """Decodes the images at these positions, uint8 [n, c, h, w]."""
    if len(positions) == 0 or split.count == 0:
        raise InputError(f"{split.where}: no images left for a split; name another file or hold out less of train")
    names = [f"{split.where}, image {position}" for position in positions]
    batches = [slice(start, start + DECODE_BATCH) for start in range(0, len(names), DECODE_BATCH)]
    with ThreadPoolExecutor() as pool:  # Pillow lets go of the interpreter lock while it decodes
        decoded = (pool.map(_decode, split.fetch(positions[b]), names[b], repeat(settings)) for b in batches)
        return _collect(chain.from_iterable(decoded), names, settings.size)


def _decode(record: Any, name: str, settings: ImageSettings) -> NDArray[np.uint8]:
    """An array of values [h, w] or [h, w, c], a path or a {bytes, path} record -> uint8 [c, h, w] of values."""
    held = isinstance(record, np.ndarray)
    try:
        if held and record.max() >= settings.values:
            raise ValueError(f"value {record.max()} where {settings.values - 1} is the largest; set values to 256?")
        if isinstance(record, dict):
            record = record["path"] if record["bytes"] is None else io.BytesIO(record["bytes"])
        with Image.fromarray(record) if held else Image.open(record) as image:
            pixels = _to_array(ImageOps.exif_transpose(image), settings)
    except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error, …
        raise InputError(f"{name}: cannot be read ({error}); repair or remove it") from error
    pixels = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
    if held:
        return np.minimum(pixels, settings.values - 1)  # resizing overshoots at edges
    return (pixels.astype(np.uint16) * settings.values >> 8).astype(np.uint8)


def _to_array(image: Image.Image, settings: ImageSettings) -> NDArray[np.uint8]:
    """Grey [h, w] or RGB [h, w, 3], eight bits, brought to ``size``: covered, antialiased, and its centre cropped."""
    if image.mode[0] in "IF":
        wide = np.asarray(image)
        if image.mode == "F" or wide.min() < 0 or wide.max() > 65535:
            raise ValueError("neither 8 nor 16 bits per pixel")
        image = Image.fromarray(((wide.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
    image = image.convert("L" if settings.channels == 1 else "RGB")
    if settings.size is not None and image.size != settings.size[::-1]:
        image = ImageOps.fit(image, settings.size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(image)


def _to_image(pixels: Tensor, values: int) -> Image.Image:
    stored = ((pixels.cpu().numpy().astype(np.int64) * 510 + values - 1) // (2 * (values - 1))).astype(np.uint8)
    return Image.fromarray(stored[0] if len(stored) == 1 else np.ascontiguousarray(stored.transpose(1, 2, 0)))


def _collect(images: Iterable[NDArray[np.uint8]], names: list[str], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Puts images of one shape into one array; ``names`` has one for each, ``size`` is demanded where it is given."""
    pixels = np.empty(0, dtype=np.uint8)
    for position, image in enumerate(tqdm(images, "reading images", len(names), disable=None, leave=False)):
        if position == 0:
            pixels = np.empty((len(names), image.shape[0], *(size or image.shape[1:])), dtype=np.uint8)
        if image.shape != pixels.shape[1:]:
            raise InputError(f"{names[position]}: {image.shape[1:]} pixels, not {pixels.shape[2:]}; set size for all")
        pixels[position] = image
    return pixels
