"""What public methods refuse, in one place: tensors of another type, shape, device or range, and numbers out of range.

The cost is that of a minimum and a maximum, and none where the type cannot hold a wrong value.
"""

import operator
from typing import Any

import torch
from torch import Tensor

from vqstack.errors import InputError


def check_map(
    values: Any,
    what: str,
    shape: tuple[int, ...],
    size: int,
    device: torch.device | None,
    dtype: torch.dtype = torch.int64,
    num: int | None = None,
    least: int = 0,
    look: bool = True,
) -> None:
    """InputError unless ``values`` is a tensor [images, \\*shape] of whole numbers least … size-1.

    Args:
        values: what was given.
        what: its name, such as "codes of level 1".
        shape: of one image's map.
        size: number of values.
        device: where the model is; none: anywhere, it will be moved.
        dtype: of the values.
        num: number of images; none: any.
        least: the smallest value.
        look: for values out of range, too; without it a training step does not wait for an extreme.
    """
    wanted = f"{str(dtype).removeprefix('torch.')} (images{''.join(f', {n}' for n in shape)}{',' * (not shape)})"
    if not isinstance(values, Tensor):
        raise InputError(f"{what}: {type(values).__name__} where a tensor belongs: give {wanted}")
    if values.dtype != dtype:
        raise InputError(
            f"{what} are {str(values.dtype).removeprefix('torch.')}: give {wanted} with values {least} … {size - 1}"
        )
    if values.ndim != len(shape) + 1 or tuple(values.shape[1:]) != shape:
        raise InputError(f"{what} have shape {tuple(values.shape)}: they must be {wanted}")
    if num is not None and len(values) != num:
        raise InputError(f"{what} have shape {tuple(values.shape)}: give one for each of the {num} images")
    if device is not None and values.device != device:
        raise InputError(f"{what} are on {values.device}, the model is on {device}: move one of them with .to()")
    if look and size <= torch.iinfo(dtype).max and values.numel():
        for extreme in torch.stack(values.aminmax()).tolist():
            if not least <= extreme < size:
                raise InputError(f"{what}: {extreme} lies outside {least} … {size - 1}: give those of this model")


def check_floats(values: Any, what: str, shape: tuple[int | None, ...], device: torch.device | None) -> None:
    """InputError unless ``values`` is a tensor of floats of this shape, on ``device`` (none: anywhere).

    Axes that are None may have any size.
    """
    wanted = f"floats ({', '.join('any' if n is None else str(n) for n in shape)})"
    if not isinstance(values, Tensor):
        raise InputError(f"{what}: {type(values).__name__} where a tensor belongs: give {wanted}")
    fits = all(n is None or n == m for n, m in zip(shape, values.shape, strict=False))
    if not values.is_floating_point() or values.ndim != len(shape) or not fits:
        found = f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}"
        raise InputError(f"{what}: {found} where {wanted} belong")
    if device is not None and values.device != device:
        raise InputError(f"{what}: on {values.device}, the model is on {device}: move one of them with .to()")


def check_number(value: Any, what: str, least: int, most: int) -> int:
    """A whole number from ``least`` to ``most``, as int, or InputError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        raise InputError(f"{what}: {str(value)[:80]} is no whole number from {least} to {most}")
    return number
