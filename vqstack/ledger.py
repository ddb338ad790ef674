"""The ledger: the code length of images under the whole model, one row per term of the bound.

For an image y with codes z_1 … z_L = enc(y),

    -ln P(y) <= -ln P(label) - ln P_prior(z_L | label) - sum_{l=2..L} ln P_dec_l(z_{l-1} | z_l) - ln P_dec_1(y | z_1)

Nats inside; bits and bits per dimension (a dimension is one channel of one pixel) where a person reads.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

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


def table(ledgers: Mapping[str, Ledger]) -> str:
    """Ledgers side by side, in bits per image; one column each."""
    names = list(next(iter(ledgers.values())).rows)
    lines = [["row", "dims", *ledgers]]
    for name in names:
        lines.append(
            [
                name,
                f"{next(iter(ledgers.values())).rows[name].dims:.1f}".removesuffix(".0"),
                *(f"{x.row_bits(name):.2f}" for x in ledgers.values()),
            ]
        )
    given = next(iter(ledgers.values())).given
    total = f"total bits given {given}" if given else "total bits"
    lines.append([total, "", *(f"{x.bits:.2f}" for x in ledgers.values())])
    errors = ["" if x.error is None else f"{x.error:.2f}" for x in ledgers.values()]
    lines += [["± standard error", "", *errors]] if any(errors) else []
    lines.append(["bits/dim", "", *(f"{x.bits_per_dim:.4f}" for x in ledgers.values())])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
