"""Sound files: what they may be, excerpts of one length, and back to WAV or FLAC.

A number s of 16 bits becomes the value ``round((s + 32768) (V-1) / 65535)``: every number its own for V = 65,536. With
mu-law companding s first becomes ``32768 sign(s) ln(1 + 255 |s| / 32768) / ln 256`` (the law that ITU-T G.711 draws in
straight pieces). Files of other widths are brought to 16 bits by rounding (floats: 1.0 is full scale, what lies beyond
is cut). A file of another rate is resampled, one of more channels than are asked for is averaged, one of fewer is
repeated.

Needs the extra ``sounds`` (soundfile; soxr for other rates).
"""

import io
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Integer
from numpy.typing import NDArray

from vqstack.errors import extra

SUFFIXES = frozenset(".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .w64 .caf .rf64".split())
MU = 255
FULL = 2**15  # what is added to a signed number of 16 bits
MOST = 2**13  # numbers of a channel in a byte: FLAC has 65,535 of silence in 11 bytes


def is_sound(path: str) -> bool:
    """Whether a file is a sound by its name."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def begins_as_sound(content: bytes) -> bool:
    """Whether bytes begin as WAV, FLAC, OGG or AIFF does."""
    return content[:4] in (b"fLaC", b"OggS") or (
        content[:4] in (b"RIFF", b"FORM") and content[8:11] in (b"WAV", b"AIF")
    )


def _library() -> Any:
    return extra("soundfile", 'sounds need soundfile: pip install "vqstack[sounds]"')


def _of_library(name: str, file: str | bytes, **how: Any) -> Any:
    """What a function of the library makes of a file; its messages say where in memory bytes lie."""
    library = _library()
    try:
        return getattr(library, name)(io.BytesIO(file) if isinstance(file, bytes) else file, **how)
    except library.LibsndfileError as error:
        raise ValueError(error.error_string) from error


def length(file: str | bytes, rate: int) -> int:
    """How many numbers a channel of the file has at that rate. ValueError where it is broken."""
    about = _of_library("info", file)
    _check_length(about.frames, len(file) if isinstance(file, bytes) else os.path.getsize(file))
    return about.frames if about.samplerate == rate else round(about.frames * rate / about.samplerate)


def _check_length(count: int, size: int) -> None:
    """ValueError where a header says nothing of the length, or more than any format packs into so many bytes."""
    if count > MOST * size:
        said = "does not say how long it is" if count > 2**62 else f"says {count} numbers and has {size} bytes"
        raise ValueError(f"{said}: write it anew, not through a pipe")


@lru_cache(2)  # the excerpts of a file are read one after the other
def _of_path(path: str, state: tuple[int, int], rate: int, channels: int) -> Int32[np.ndarray, "n c"]:
    return _numbers(path, rate, channels)


def _numbers(file: str | bytes, rate: int, channels: int) -> Int32[np.ndarray, "n c"]:
    """All of a file: signed numbers of 16 bits."""
    found, own = _of_library("read", file, dtype="float64", always_2d=True)
    if not np.isfinite(found).all():
        raise ValueError("numbers that are not finite")
    if own != rate:
        soxr = extra("soxr", 'sounds of other rates need soxr: pip install "vqstack[sounds]"')
        found = soxr.resample(found, own, rate, quality="VHQ")
    if found.shape[1] > channels:
        found = found.mean(1, keepdims=True)
    if channels % found.shape[1]:
        raise ValueError(f"{found.shape[1]} channels, which do not make {channels}")
    found = np.repeat(found, channels // found.shape[1], 1)
    return np.clip(np.rint(found * FULL), -FULL, FULL - 1).astype(np.int32)


def read(
    file: str | bytes, start: int, size: int, rate: int, channels: int, values: int, companding: str = "linear"
) -> Integer[np.ndarray, "c n"]:
    """An excerpt of a file as values 0 … V-1, of 8 bits where these hold them, else of 32.

    Args:
        file: its path, or what it holds.
        start, size: its first number and how many there are, at the rate.
        rate: numbers a second.
        channels: c.
        values: V.
        companding: linear or mu-law.
    """
    if isinstance(file, bytes):
        numbers = _numbers(file, rate, channels)
    else:
        status = os.stat(file)
        numbers = _of_path(file, (status.st_size, status.st_mtime_ns), rate, channels)
    numbers = numbers[start : start + size]
    if len(numbers) < size - 2:
        raise ValueError(f"{len(numbers)} numbers where {size} were to be read")
    if len(numbers) < size:  # a resampler rounds otherwise
        numbers = np.pad(numbers, ((0, size - len(numbers)), (0, 0)), mode="edge")
    return _to_values(numbers.T, values, companding)


def _to_values(numbers: NDArray[np.int32], values: int, companding: str) -> Integer[np.ndarray, "c n"]:
    kept = np.uint8 if values <= 256 else np.int32
    if companding == "mu-law":
        bent = np.sign(numbers) * np.log1p(MU / FULL * np.abs(numbers)) / np.log1p(MU)
        return np.rint((bent + 1) / 2 * (values - 1)).astype(kept)
    return (((numbers.astype(np.int64) + FULL) * (values - 1) * 2 + 65535) // 131070).astype(kept)


def whole_sound(path: Path) -> tuple[Int32[np.ndarray, "c n"], int, str]:
    """All numbers of a file of 16 bits as values 0 … 65,535, their rate, and how the file has them (``PCM_16``)."""
    with _library().SoundFile(path) as file:
        _check_length(file.frames, os.path.getsize(path))
        numbers = file.read(dtype="int16", always_2d=True)
        return np.ascontiguousarray(numbers.T, dtype=np.int32) + FULL, file.samplerate, file.subtype


def save_sound(
    sound: NDArray[Any],
    path: Path | io.BufferedIOBase,
    values: int,
    rate: int,
    companding: str = "linear",
    kind: str = "WAV",
) -> None:
    """Stores values [c, n] as WAV or FLAC of 16 bits: value v as ``round(65535 v / (V-1)) - 32768``, or expanded."""
    numbers = (sound.astype(np.int64) * 131070 + values - 1) // (2 * (values - 1)) - FULL
    if companding == "mu-law":
        bent = sound.astype(np.float64) * 2 / (values - 1) - 1
        wide = np.sign(bent) * np.expm1(np.abs(bent) * np.log1p(MU)) * FULL / MU
        numbers = np.clip(np.rint(wide), -FULL, FULL - 1).astype(np.int64)
    _library().write(path, numbers.T.astype(np.int16), rate, format=kind, subtype="PCM_16")
