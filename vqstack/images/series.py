"""Series: rows of Parquet files whose column holds a list of numbers, or a list of such lists, one for each channel."""

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Integer

from vqstack.images.settings import ImageSettings
from vqstack.images.volumes import to_values


def is_series(kind: pa.DataType) -> bool:
    """Whether a column of this type holds numbers of one channel, or lists of these."""
    if not _is_list(kind):
        return False
    inside = kind.value_type.value_type if _is_list(kind.value_type) else kind.value_type
    return pa.types.is_integer(inside) or pa.types.is_floating(inside)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def whole(numbers: Any, settings: ImageSettings) -> Integer[np.ndarray, "c t"]:
    """All values of a row; ValueError where it is no series of the settings' channels, or holds what has no value."""
    if numbers is None:
        raise ValueError("no list of numbers in this row")
    if not len(numbers):
        return np.zeros((settings.channels, 0), np.uint8)
    channels = numbers if isinstance(numbers[0], list) else [numbers]
    if any(one is None or any(number is None for number in one) for one in channels):
        raise ValueError("a number is missing")
    if len(channels) != settings.channels or len({len(one) for one in channels}) > 1:
        lengths = ", ".join(str(len(one)) for one in channels)
        raise ValueError(f"lists of {lengths} numbers where {settings.channels} of one length are asked for")
    if not len(channels[0]):
        return np.zeros((settings.channels, 0), np.uint8)
    return to_values(np.array(channels), settings.values, settings.range)
