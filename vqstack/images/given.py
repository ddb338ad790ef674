"""Floats that are given with each image: a column of lists of one length, or an array, named by ``data.condition``.

A column of texts becomes one of floats by ``data.text_encoder``.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqstack.errors import InputError, listed
from vqstack.images.settings import ImageSettings
from vqstack.shapes import by_axis
from vqstack.texts import encode_texts


def find_given(types: Mapping[str, Any], named: str | None, where: str) -> tuple[str, ...]:
    """The column of that name and the member inside it; empty where none is named.

    Args:
        types: of the columns; of records those of their members.
        named: COLUMN, or COLUMN.MEMBER.
        where: to begin a message with.
    """
    if named is None:
        return ()
    for path in ((named,), tuple(named.split(".", 1))):
        inside: Any = types
        for part in path:
            inside = inside.get(part) if isinstance(inside, Mapping) else None
        if inside is not None:
            return path
    raise InputError(f"{where}: condition {named} is no column among {listed(list(types))}; correct data.condition")


def given_floats(
    values: Sequence[Any], names: Sequence[str], settings: ImageSettings, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """See :func:`floats`, of texts where the settings name what encodes them."""
    if settings.texts is not None:
        for value, name in zip(values, names, strict=True):
            if not isinstance(value, str):
                raise InputError(
                    f"{name}: column {settings.condition} holds no text; correct that row, or leave it out"
                )
        values = list(encode_texts(settings.texts, values))
    return floats(values, names, settings.condition, shape)


def floats(
    values: Iterable[Any], names: Iterable[str], column: str | None, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    r"""What some images are given, [n, \*shape]; InputError that names the first one with something else.

    Args:
        values: lists of floats, or lists of these; one an image.
        names: of the images.
        column: that holds them.
        shape: of what each is given; empty: that of the first.
    """
    found = list[NDArray[np.float32]]()
    for value, name in zip(values, names, strict=True):
        array, problem = _plain(value), None
        shape = shape or (() if array is None else array.shape)
        if value is None:
            problem = "is missing"
        elif array is None or not 1 <= array.ndim <= 2 or not array.size:
            problem = "is no list of floats, nor lists of one length (of texts name data.text_encoder)"
        elif array.shape != shape:
            problem = f"has {by_axis(array.shape)} floats where others have {by_axis(shape)}"
        elif not np.isfinite(array).all():
            problem = "holds NaN, or a number that is too large for 32 bits"
        if problem:
            raise InputError(f"{name}: column {column} {problem}; correct that row, or leave it out")
        assert array is not None
        found.append(array)
    return np.stack(found)


def _plain(value: Any) -> NDArray[np.float32] | None:
    """As an array, where it is one of numbers."""
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        return None
    with np.errstate(over="ignore"):
        return array.astype(np.float32) if array.dtype.kind in "fiu" else None
