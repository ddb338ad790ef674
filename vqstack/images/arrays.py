"""Opening what is an array: scikit-learn's digits, .npy and .npz files, what a registered source gives."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqstack.errors import InputError, reason
from vqstack.images.given import find_given
from vqstack.images.labels import Stored
from vqstack.images.settings import SOURCES, SPLITS, ImageSettings, Split
from vqstack.images.undecoded import Records
from vqstack.paths import check_local
from vqstack.reading import plain_file

logger = logging.getLogger(__name__)
IMAGES, LABELS = ("images", "pixels", "x"), ("labels", "y")  # names in .npz files


Opened = tuple[Records, Stored | None, NDArray[Any] | None]
"""A split, how its labels are stored, and the labels."""


def open_arrays(settings: ImageSettings) -> dict[Split, Opened]:
    """The splits of a source of arrays, train first."""
    if settings.source == "digits":
        return {"train": _digits(settings)}
    if settings.source == "array":
        return {name: _open_file(settings.files[name], settings) for name in SPLITS if name in settings.files}
    source = SOURCES.find(settings.source)
    assert source is not None
    given = source(settings)
    return {name: _given(f"{settings}, split {name}", *given[name], settings) for name in SPLITS if name in given}


def _digits(settings: ImageSettings) -> Opened:
    from sklearn.datasets import load_digits  # half a second to import

    digits = load_digits()
    train = _records(str(settings), digits.images.astype(np.uint8))
    if settings.label_column == "":
        return train, None, None
    names = [str(name) for name in digits.target_names]
    return train, Stored(str(settings), ("target",), "number", names), digits.target


def _given(
    where: str, values: NDArray[Any], labels: NDArray[Any] | None, names: list[str] | None, settings: ImageSettings
) -> Opened:
    """A split of a source that is registered."""
    stored = None if labels is None else Stored(where, ("labels",), "number", names)
    return _records(where, _inputs(values, settings, where)), stored, labels


def _records(where: str, values: NDArray[Any]) -> Records:
    return Records(where, len(values), values.__getitem__, None, None, None, ordered=True)


def _open_file(path: str, settings: ImageSettings) -> Opened:
    """One .npy (pixels) or .npz (images, pixels or x, with labels or y) file of uint8 [n,h,w], [n,h,w,c], [n,c,h,w].

    A .npy file is memory-mapped; an .npz is an archive, of which the first of each of these names is read, unless
    ``image_column`` and ``label_column`` name others. The labels are given as they are stored.
    """
    columns = ((settings.image_column, IMAGES), (settings.label_column, LABELS))
    image_keys, label_keys = (usual if named is None else (named,) for named, usual in columns)
    check_local(path)
    try:
        content = np.load(plain_file(path), mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            if settings.image_column is not None:
                raise InputError(f"{path}: one array has no columns; leave image_column out, or name an .npz")
            names, arrays, image_keys = ["pixels"], {"pixels": content}, ("pixels",)
        else:
            with content:
                names = list(content)
                chosen = [next((key for key in keys if key in names), None) for keys in (image_keys, label_keys)]
                chosen.append(settings.condition)
                arrays = {key: content[key] for key in chosen if key in names}
    except InputError:
        raise
    except Exception as error:  # numpy raises a different type for each way a file can be broken
        problem = f"{path}: cannot be read as .npy or .npz ({reason(error)})"
        raise InputError(f"{problem}; name a file written by numpy") from error
    pixels = next((arrays[key] for key in image_keys if key in arrays), None)
    if pixels is None:
        wanted = ", ".join(image_keys)
        raise InputError(f"{path}: no array {wanted} among {', '.join(names)}; rename it, or set image_column")
    labels = next((arrays[key] for key in label_keys if key in arrays), None)
    if labels is None and settings.label_column:
        raise InputError(f"{path}: no array {settings.label_column} among {', '.join(names)}; correct label_column")
    others = [name for name in names if name not in arrays]
    if labels is None and others and settings.label_column is None:
        logger.warning("%s: no labels; if an array holds classes, set label_column: %s", path, ", ".join(others))
    stored = None
    if labels is not None:
        kind = {"U": "text", "b": "bool"}.get(labels.dtype.kind, "number")
        stored = Stored(path, (next(key for key in label_keys if key in arrays),), kind)
    split = _records(path, _inputs(pixels, settings, path))
    if find_given(dict.fromkeys(names, True), settings.condition, path):
        given = arrays[str(settings.condition)]
        if len(given) != split.count:
            raise InputError(
                f"{path}: {settings.condition} has {len(given)} rows for {split.count} images; give one each"
            )
        split = replace(split, given=given.__getitem__)
    return split, stored, labels


def _inputs(values: NDArray[Any], settings: ImageSettings, where: str) -> NDArray[Any]:
    return _images(values, where) if settings.pictures else _signals(values, settings, where)


def _images(pixels: NDArray[Any], path: str) -> NDArray[np.uint8]:
    """An array of images as Pillow wants it: channels last, and no axis for grey."""
    if pixels.dtype != np.uint8:
        raise InputError(f"{path}: the images are {pixels.dtype}, not uint8; store whole numbers from 0 to values - 1")
    first, last = (pixels.ndim == 4 and pixels.shape[axis] in (1, 3) for axis in (1, 3))
    if pixels.ndim != 3 and first == last:
        raise InputError(f"{path}: cannot tell the channels of {pixels.shape}; store images as [n, height, width, c]")
    pixels = pixels.transpose(0, 2, 3, 1) if first else pixels
    return pixels[..., 0] if pixels.ndim == 4 and pixels.shape[3] == 1 else pixels


def _signals(values: NDArray[Any], settings: ImageSettings, path: str) -> NDArray[Any]:
    r"""An array [n, c, \*size] of whole numbers; the axis of one channel may be missing."""
    if values.dtype.kind not in "iu":
        raise InputError(f"{path}: the numbers are {values.dtype}; store whole numbers from 0 to values - 1")
    axes = len(settings.kept or ())
    if axes and settings.channels == 1 and values.ndim == axes + 1:
        values = values[:, None]
    wanted = (settings.channels, *(settings.kept or ()))
    if (axes and values.shape[1:] != wanted) or not 3 <= values.ndim <= 5 or values.shape[1] != settings.channels:
        last = values.shape[1:] == (*wanted[1:], wanted[0])
        cure = "store it as np.moveaxis(array, -1, 1)" if last else "correct size or channels, or the order of its axes"
        raise InputError(f"{path}: inputs of {values.shape[1:]} where channels first, {wanted}, was said; {cure}")
    return values
