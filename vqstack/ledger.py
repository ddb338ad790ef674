"""The ledger: the code length of images under the whole model, one row per term of the bound.

For an image y with codes z_1 … z_L = enc(y),

    -ln P(y) <= -ln P(label) - ln P_prior(z_L | label) - sum_{l=2..L} ln P_dec_l(z_{l-1} | z_l) - ln P_dec_1(y | z_1)

Nats inside; bits and bits per dimension (a dimension is one channel of one pixel) where a person reads.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vqstack.shapes import Nats

BITS = 1 / math.log(2)
"""Bits a nat."""


@dataclass(frozen=True)
class Row:
    """One term, summed over images: ``nats``, and ``dims``, the number of sites of one image that it describes.

    Where images have padding of several lengths it is the mean number of those that are none.
    """

    nats: float
    dims: int | float


@dataclass(frozen=True)
class Ledger:
    """Code lengths of a set of images.

    Attributes:
        rows: terms in the order in which a decoder needs them: label, prior, level-L … level-1.
        count: number of images.
        given: what all rows are merely given, for which no bits are counted; empty: nothing.
        squares: sum over images of the square of all their nats; None: not known.
    """

    rows: dict[str, Row]
    count: int
    given: str = ""
    squares: float | None = None

    @classmethod
    def of(cls, code_lengths: Mapping[str, Nats], dims: Mapping[str, int], given: str = "") -> "Ledger":
        """From the code lengths of each image, nats."""
        lengths = {name: nats.cpu().double() for name, nats in code_lengths.items()}
        rows = {name: Row(nats.sum().item(), dims[name]) for name, nats in lengths.items()}
        whole = torch.stack([*lengths.values()]).sum(0)
        return cls(rows, len(whole), given, whole.square().sum().item())

    def merge(self, other: "Ledger") -> "Ledger":
        """The ledger of both sets of images together."""
        dims = [{k: r.dims for k, r in ledger.rows.items()} for ledger in (self, other)]
        if dims[0] != dims[1] or self.given != other.given:
            raise ValueError("only ledgers with the same rows can be merged")
        rows = {k: Row(r.nats + other.rows[k].nats, r.dims) for k, r in self.rows.items()}
        squares = None if self.squares is None or other.squares is None else self.squares + other.squares
        return Ledger(rows, self.count + other.count, self.given, squares)

    def row_bits(self, name: str) -> float:
        """Mean bits per image of one row."""
        return self.rows[name].nats / self.count * BITS

    @property
    def bits(self) -> float:
        """Mean bits per image, all rows together."""
        return sum(self.row_bits(name) for name in self.rows)

    @property
    def error(self) -> float | None:
        """Standard error of ``bits``, the images taken as drawn at random; None for one image, or if not known."""
        if self.squares is None or self.count < 2:
            return None
        nats = sum(row.nats for row in self.rows.values())
        variance = max(0.0, self.squares - nats**2 / self.count) / (self.count - 1)
        return math.sqrt(variance / self.count) * BITS

    @property
    def bits_per_dim(self) -> float:
        """Mean bits per channel of a pixel."""
        return self.bits / self.rows["level-1"].dims

    def __repr__(self) -> str:
        rows = ", ".join(f"{name} {self.row_bits(name):.2f}" for name in self.rows)
        given = f" given {self.given}" if self.given else ""
        return f"Ledger({self.bits:.2f} bits per image{given}, {self.count} images: {rows})"

    def to_json(self) -> dict:
        """Means per image, as ``ledger.json`` holds them."""
        rows = [
            {"row": k, "nats": r.nats / self.count, "bits": self.row_bits(k), "dims": r.dims}
            for k, r in self.rows.items()
        ]
        found = {"rows": rows, "bits": self.bits, "bits_per_dim": self.bits_per_dim, "images": self.count}
        found |= {} if self.error is None else {"standard_error": self.error}
        return found | ({"given": self.given} if self.given else {})


def side_by_side(ledgers: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The lines of a table of ledgers as :meth:`Ledger.to_json` has them, in bits per image; one column each."""
    found = list(ledgers.values())
    lines = [["row", "dims", *ledgers]]
    for rows in zip(*(ledger["rows"] for ledger in found), strict=True):
        each = [f"{row['dims']:.1f}".removesuffix(".0") for row in rows]
        dims = " / ".join(each if len(set(each)) > 1 else each[:1])  # with padding those of each ledger
        lines.append([rows[0]["row"], dims, *(f"{row['bits']:.2f}" for row in rows)])
    total = f"total bits given {found[0]['given']}" if "given" in found[0] else "total bits"
    lines.append([total, "", *(f"{ledger['bits']:.2f}" for ledger in found)])
    errors = [f"{ledger['standard_error']:.2f}" if "standard_error" in ledger else "" for ledger in found]
    lines += [["± standard error", "", *errors]] if any(errors) else []
    return [*lines, ["bits/dim", "", *(f"{ledger['bits_per_dim']:.4f}" for ledger in found)]]


def table(ledgers: Mapping[str, Ledger]) -> str:
    """:func:`side_by_side` as text."""
    lines = side_by_side({name: ledger.to_json() for name, ledger in ledgers.items()})
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join("  ".join([line[0].ljust(first), *map(str.rjust, line[1:], others)]) for line in lines)
