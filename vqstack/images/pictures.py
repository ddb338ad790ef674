"""Values back to files and to pictures: PNG, sounds, videos or arrays of one input, and an overview of many."""

import io
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqstack.errors import InputError
from vqstack.images.sounds import save_sound
from vqstack.images.video import FASTEST, save_gif, save_video
from vqstack.images.volumes import Range, as_tiff, from_values, save_volume
from vqstack.shapes import Pixels

WAVE = (64, 192)  # rows and columns of the picture of a series
RAMP = np.array([[13, 8, 70], [126, 3, 168], [240, 100, 60], [250, 240, 120]], float)  # few bits to many
SLICES = 8  # of a volume that its picture shows, at most

FileFormat = Literal["png", "wav", "flac", "gif", "mkv", "mp4", "npy", "tiff"]
Save: TypeAlias = Callable[[Tensor, io.BufferedIOBase], None]
"""Writes one input into a stream."""


def saver(
    shape: tuple[int, ...],
    values: int,
    rate: int | None = None,
    limits: Range = None,
    companding: str = "linear",
    asked: FileFormat | None = None,
) -> tuple[str, Save]:
    """How inputs are stored: the ending of their files, and what writes one. Without loss, unless ``asked`` otherwise.

    Args:
        shape: (c, h, w) of images, which become PNG; with a rate (c, n) is a sound, which becomes WAV, and (c, t, h, w)
            a video, which becomes GIF or, in colour, FFV1; others: .npy.
        values: V.
        rate: numbers or frames a second.
        limits: the numbers that values 0 and V-1 of others stand for.
        companding: of a sound.
        asked: another format; InputError where inputs of this kind cannot have it.
    """
    known: dict[str, Save] = {}
    if len(shape) == 3 and shape[0] in (1, 3) and values <= 256 and limits is None:
        known["png"] = partial(save_png, values=values)
    elif len(shape) == 2 and rate is not None:
        how = {"values": values, "rate": rate, "companding": companding}
        flac = shape[0] <= 8 and (rate < 2**16 or (rate % 10 == 0 and rate <= 655_350))  # what the format can say
        known |= {kind.lower(): _of_numbers(save_sound, **how, kind=kind) for kind in ("WAV", "FLAC")[: 1 + flac]}
    elif len(shape) == 4 and rate is not None and shape[0] in (1, 3) and values <= 256:
        known |= {kind: _of_numbers(save_video, values=values, rate=rate, kind=kind) for kind in ("mkv", "mp4")}
        gif = {"gif": _of_numbers(save_gif, values=values, rate=rate)} if rate <= FASTEST else {}
        known = gif | known if shape[0] == 1 else known | gif
    stack = as_tiff(shape, values, limits) if "png" not in known and rate is None else None
    known["npy"] = _of_numbers(lambda numbers, stream: np.save(stream, from_values(numbers, values, limits)))
    if stack is not None:
        known["tiff"] = _of_numbers(lambda numbers, stream: save_volume(numbers, stack, values, limits, stream))
    chosen = next(iter(known)) if asked is None else asked
    if chosen not in known:
        raise InputError(f"format {chosen}: what this model makes is stored as {', '.join(known)}: choose one of these")
    return f".{chosen}", known[chosen]


def _of_numbers(save: Callable[..., None], **how: Any) -> Save:
    return lambda numbers, stream: save(numbers.cpu().numpy(), stream, **how)


def save_png(pixels: UInt8[Tensor, "c h w"], path: Path | io.BufferedIOBase, values: int) -> None:
    """Stores one image as PNG, lossless: value v as ``round(255 v / (V-1))``, V = ``values``."""
    _to_image(pixels, values).save(path, format="PNG")  # type: ignore[arg-type]  # a stream is all it needs


def grid(pixels: Pixels, columns: int, values: int, scale: int = 1, heard: bool = False) -> Image.Image:
    """Inputs in rows of ``columns``, a grey line of one pixel between them, all enlarged ``scale`` times (nearest).

    Images show themselves, a series its curve, one that is ``heard`` its spectrogram below that, a volume its slices
    along the first axis, side by side.
    """
    pixels, values = _seen_and_heard(pixels, values) if heard and pixels.ndim == 3 else _pictured(pixels, values)
    count, channels, height, width = pixels.shape
    columns = min(columns, count)
    size = (columns * (width + 1) - 1, -(-count // columns) * (height + 1) - 1)
    sheet = Image.new("L", size, 96).convert("L" if channels == 1 else "RGB")
    for i in range(count):
        sheet.paste(_to_image(pixels[i], values), (i % columns * (width + 1), i // columns * (height + 1)))
    return sheet.resize((size[0] * scale, size[1] * scale), Image.Resampling.NEAREST)


def _pictured(numbers: Pixels, values: int) -> tuple[UInt8[Tensor, "b shown h w"], int]:
    """Pictures of inputs with any number of axes, and their number of grey values."""
    if numbers.ndim == 4 and numbers.shape[1] in (1, 3) and values <= 256:
        return numbers, values
    grey = (numbers.cpu().long() * 510 + values - 1).div(2 * (values - 1), rounding_mode="floor").to(torch.uint8)
    if grey.ndim == 3:
        return _curves(numbers.cpu(), values), 256
    grey = grey if grey.shape[1] == 3 else grey[:, :1]
    if grey.ndim == 5:
        chosen = torch.linspace(0, grey.shape[2] - 1, min(SLICES, grey.shape[2])).round().long()
        grey = grey[:, :, chosen].permute(0, 1, 3, 2, 4).flatten(3)
    return grey, 256


def _seen_and_heard(sounds: Integer[Tensor, "n c t"], values: int) -> tuple[UInt8[Tensor, "n three h w"], int]:
    """The curves of each sound, and below them the spectrogram of the mean of its channels."""
    curves = _curves(sounds.cpu(), values)
    height, width = WAVE[0], curves.shape[-1]
    spectra = [_spectrogram(sound.double().mean(0)).resize((width, height)) for sound in sounds.cpu()]
    below = torch.stack([torch.from_numpy(np.array(spectrum)).permute(2, 0, 1) for spectrum in spectra])
    return torch.cat([curves.expand(-1, 3, -1, -1), below], 2), 256


def _curves(series: Integer[Tensor, "n c t"], values: int) -> UInt8[Tensor, "n one h w"]:
    """For each channel, one below the other, from the smallest to the largest value of each stretch of time."""
    rows, columns = WAVE
    places = ((values - 1 - series) * (rows - 1)).div(values - 1, rounding_mode="floor")
    columns = min(columns, series.shape[-1])
    cuts = [round(series.shape[-1] * i / columns) for i in range(columns + 1)]
    parts = [places[..., first:last] for first, last in pairwise(cuts)]
    high = torch.stack([part.amin(-1) for part in parts], -1)[:, :, None]
    low = torch.stack([part.amax(-1) for part in parts], -1)[:, :, None]
    row = torch.arange(rows)[:, None]
    drawn = (row >= high) & (row <= low)
    return torch.where(drawn, 255, 0).to(torch.uint8).flatten(1, 2)[:, None]


def _spectrogram(series: Tensor) -> Image.Image:
    """Loudness of frequencies (low ones below) over time, decibels from the loudest down to -80."""
    signal = series.double() - series.double().mean()
    size = min(256, 2 ** int(np.log2(max(2, len(signal)))))
    window = torch.hann_window(size, dtype=torch.float64)
    power = torch.stft(signal, size, size // 4, window=window, return_complex=True, pad_mode="constant").abs().square()
    decibels = (10 * (power / power.max().clamp(min=1e-9)).clamp(min=1e-8).log10()).flip(0)
    return Image.fromarray(heat(decibels.flatten()).reshape(*decibels.shape, 3))


def heat(bits: Tensor) -> NDArray[np.uint8]:
    """A colour for each number, [n, 3]: from the fewest bits, dark blue, to the most, yellow."""
    low, high = float(bits.min()), float(bits.max())
    shares = ((bits.double() - low) / max(high - low, 1e-9)).numpy() * (len(RAMP) - 1)
    below = np.minimum(shares.astype(int), len(RAMP) - 2)
    part = (shares - below)[:, None]
    return ((1 - part) * RAMP[below] + part * RAMP[below + 1]).round().astype(np.uint8)


def _to_image(pixels: Tensor, values: int) -> Image.Image:
    """``round(255 v / (V-1))``, in whole numbers."""
    stored = ((pixels.cpu().numpy().astype(np.int64) * 510 + values - 1) // (2 * (values - 1))).astype(np.uint8)
    return Image.fromarray(stored[0] if len(stored) == 1 else np.ascontiguousarray(stored.transpose(1, 2, 0)))
