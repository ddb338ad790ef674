"""Variables: what the terms of a hierarchy are distributions over, and encoders are functions of."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from vqstack.checks import check_map
from vqstack.errors import InputError
from vqstack.likelihood import Known
from vqstack.shapes import of_pixels, value_dtype


@dataclass(frozen=True)
class Variable:
    """Whole numbers 0 … size-1 at the sites of a map: pixels, a map of codes, a label.

    Attributes:
        name: ``pixels``, ``z_1`` … ``z_L`` or ``label``.
        number: of its noise (see :func:`vqstack.likelihood.noise`): 0 of pixels, l of z_l, L + 1 of labels.
        shape: of one image's map, any number of axes; none for a label.
        size: number of values of a site.
        dtype: of tensors that hold it, [images, \\*shape].
    """

    name: str
    number: int
    shape: tuple[int, ...]
    size: int
    dtype: torch.dtype = torch.int64

    @classmethod
    def pixels(cls, shape: tuple[int, ...], size: int) -> "Variable":
        r"""Images or other signals of (c, \*map), V values a channel."""
        return cls("pixels", 0, shape, size, value_dtype(size))

    @classmethod
    def codes(cls, level: int, shape: tuple[int, ...], size: int) -> "Variable":
        """z_l."""
        return cls(f"z_{level}", level, shape, size)

    @property
    def sites(self) -> int:
        """Numbers of one image."""
        return prod(self.shape)

    def __str__(self) -> str:
        names = {"label": "labels", "pixels": "pixels"}
        return names.get(self.name, f"codes of level {self.number}")

    def check(self, values: Tensor, num: int | None = None, device: torch.device | None = None) -> None:
        """InputError unless these are values of the variable, of ``num`` images, on ``device`` (none: anywhere)."""
        kind = of_pixels(values, self.dtype) if self.number == 0 else {"dtype": self.dtype}
        check_map(values, str(self), self.shape, self.size, device, num=num, **kind)

    def checked(self, known: Known, num: int) -> Known:
        """A partly filled map of ``num`` images, its values 0 where nothing is given; InputError where it is none."""
        values, given, what = known.values, known.given, f"known: level {self.number}"
        if values.is_floating_point() or values.dtype == torch.bool or given.dtype != torch.bool:
            raise InputError(f"{what}: values must be whole numbers, and given booleans")
        wanted = (num, *self.shape)
        if not tuple(values.shape) == tuple(given.shape) == wanted:
            raise InputError(
                f"{what} has maps of {tuple(values.shape)}, given where {tuple(given.shape)} says: both must be "
                f"{wanted}"
            )
        told = values[given].long()
        if ((told < 0) | (told >= self.size)).any():
            raise InputError(f"{what} has a value outside 0 … {self.size - 1}")
        return Known(values.masked_fill(~given, 0), given)
