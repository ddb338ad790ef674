"""Plots of an evaluation: the ledger, how codes are used, reconstructions from each level."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from vqstack.errors import extra
from vqstack.images import grid
from vqstack.ledger import Ledger
from vqstack.shapes import Pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(columns: int = 1, width: float = 6.0, height: float = 4.0) -> tuple["Figure", list[Any]]:
    """A figure that belongs to no window, and its axes in one row; inches."""
    missing = "plots: matplotlib is not installed: install it with pip install 'vqstack[evaluate]'"
    made = extra("matplotlib.figure", missing).Figure(figsize=(width, height), layout="constrained")
    return made, list(made.subplots(1, columns, squeeze=False)[0])


def plot_ledgers(ledgers: Mapping[str, Ledger]) -> "Figure":
    """Bits per image of each row, ledgers side by side; logarithmic, for the pixels cost far more than the rest."""
    made, (axes,) = figure()
    names = list(next(iter(ledgers.values())).rows)
    thickness = 0.8 / len(ledgers)
    for i, (title, ledger) in enumerate(ledgers.items()):
        places = [row + (i - (len(ledgers) - 1) / 2) * thickness for row in range(len(names))]
        bars = axes.barh(places, [ledger.row_bits(name) for name in names], thickness, label=title)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize="small")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("bits per image")
    axes.legend(loc="upper right")  # the best place takes a search
    return made


def plot_usage(counts: list[Int64[Tensor, "..."]]) -> "Figure":
    """How often each code is used, most used first, as a multiple of equal use; one panel a level."""
    made, panels = figure(len(counts), width=3.2 * len(counts), height=3.0)
    for number, (axes, uses) in enumerate(zip(panels, counts, strict=True), start=1):
        uses = uses.flatten()
        relative = uses.double().sort(descending=True).values * len(uses) / uses.sum().clamp(min=1)
        axes.bar(range(len(uses)), relative.tolist(), width=1.0)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_title(f"level {number}")
        axes.set_xlabel("code, most used first")
    panels[0].set_ylabel("use / equal use")
    return made


def reconstruction_strip(
    pixels: Pixels, decoded: Mapping[str, Pixels], values: int, heard: bool = False
) -> Image.Image:
    """Images in the first row, below them what each level, 1 … L, keeps of them."""
    rows = torch.cat([pixels, *decoded.values()])
    return grid(rows, len(pixels), values, max(1, 64 // pixels.shape[-2]), heard)
