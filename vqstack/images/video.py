"""Videos: the frames that are shown at even moments, brought to one size; and back to files.

Moment k is ``k / rate`` seconds after the first frame. What is on the screen then is taken: the last frame that has
begun, to half a tick of the file's clock. So frames of a slower or a varying rate repeat, and of a faster one some are
left out. One that stays for more than a minute is a hole in the times of the file, which is refused.

Needs the extra ``video`` (PyAV).
"""

import io
import os
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from vqstack.errors import extra
from vqstack.images.fitting import channels_first, fitted, to_values
from vqstack.images.settings import ImageSettings
from vqstack.reading import plain_file

LONGEST = 60  # seconds that a frame may stay on the screen
FASTEST = 50  # frames a second that players show of a GIF
SUFFIXES = frozenset(".mp4 .m4v .mov .mkv .webm .avi .gif .mpg .mpeg .ogv .wmv .flv .ts .m2ts .3gp .y4m .apng".split())


def is_video(path: str) -> bool:
    """Whether a file is a video by its name."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def _library() -> Any:
    return extra("av", 'videos need PyAV: pip install "vqstack[video]"')


def _frames(path: str) -> Iterator[tuple[Fraction, Any]]:
    """Every frame and when it is shown, in seconds; last the end, with nothing. ValueError where some are missing."""
    with _library().open(plain_file(path)) as file:
        streams = [one for one in file.streams.video if not one.disposition & type(one.disposition).attached_pic]
        if not streams:
            raise ValueError("no video in it")
        stream, count, time, gap = streams[0], 0, Fraction(0), Fraction(0)
        for frame in file.decode(stream):
            if frame.is_corrupt or frame.pts is None:
                raise ValueError(f"frame {count} is damaged")
            if count and frame.pts * frame.time_base <= time:
                raise ValueError(f"frame {count} is shown before the one that precedes it")
            gap = frame.pts * frame.time_base - time if count else gap
            time, count = frame.pts * frame.time_base, count + 1
            yield time, (frame, stream.sample_aspect_ratio or 1)
        if not count:
            raise ValueError("no frames in it")
        usual = 1 / stream.average_rate if stream.average_rate else gap
        end = time + (frame.duration * frame.time_base if frame.duration else usual)
        if count < stream.frames:
            raise ValueError(f"ends after {count} of {stream.frames} frames")
        promised = file.duration / 1e6 if file.duration and len(file.streams) == 1 else 0
        if float(end) < promised - 2 * float(usual):
            raise ValueError(f"ends after {float(end):.2f} of {promised:.2f} seconds")
        yield end, None


def _picture(frame: Any, aspect: Fraction | int) -> Image.Image:
    """A frame as a viewer shows it: 8 bits, with its transparency, turned as the file says, its pixels square.

    Pixels that are wider than high, or the other way round, are made square by scaling the width.
    """
    alpha = any(part.is_alpha for part in frame.format.components) or frame.format.has_palette
    image = Image.fromarray(frame.to_ndarray(format="rgba")) if alpha else frame.to_image()
    if aspect != 1:
        image = image.resize((max(1, round(image.width * aspect)), image.height), Image.Resampling.LANCZOS)
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


@lru_cache(2)  # the clips of a file are read one after the other
def _whole(
    path: str, state: tuple[int, int], rate: int, size: tuple[int, ...], channels: int, values: int, background: str
) -> UInt8[np.ndarray, "c t h w"]:
    found = list[NDArray[np.uint8]]()
    frames = _frames(path)
    first, begin = next(frames)
    tick = begin[0].time_base / 2
    for (start, shown), (end, _) in pairwise(chain([(first, begin)], frames)):
        if end - start > LONGEST:
            raise ValueError(f"a frame stays for {float(end - start):,.0f} seconds, more than {LONGEST}: cut it there")
        picture = None
        while Fraction(len(found), rate) < end - first - tick:
            if picture is None:
                picture = to_values(channels_first(fitted(_picture(*shown), size, channels, background)), values)
            found.append(picture)
    return np.stack(found, 1)


def whole(path: str, settings: ImageSettings) -> UInt8[np.ndarray, "c t h w"]:
    """All frames of a file, at the rate and of the size that settings ask for."""
    assert settings.rate is not None and settings.kept is not None
    status, size = os.stat(path), settings.kept[1:]
    state = (status.st_size, status.st_mtime_ns)
    return _whole(path, state, settings.rate, size, settings.channels, settings.values, settings.background)


def save_gif(clip: UInt8[np.ndarray, "c t h w"], stream: io.BufferedIOBase, values: int, rate: int) -> None:
    """Frames as an animation that repeats; of FASTEST a second at most, each of 256 colours at most.

    Grey frames lose nothing. A frame lasts whole hundredths of a second: as many as bring its end nearest to its time,
    so that 30 frames of a thirtieth last 3, 4 and 3, and all of them a second.
    """
    shown = (frame[..., 0] if len(clip) == 1 else frame for frame in _eight_bits(clip, values))
    first, *others = map(Image.fromarray, shown)
    ends = [round(100 * frame / rate) for frame in range(clip.shape[1] + 1)]
    lasts = [10 * (end - start) for start, end in pairwise(ends)]
    first.save(stream, format="GIF", save_all=True, append_images=others, duration=lasts, loop=0)  # type: ignore[arg-type]


def save_video(
    clip: UInt8[np.ndarray, "c t h w"], stream: io.BufferedIOBase, values: int, rate: int, kind: str = "mkv"
) -> None:
    """Frames as FFV1 in Matroska, without loss, or in MP4 for players: H.264, which loses a little.

    H.264 wants even sides: where one is odd every pixel becomes four. FFV1 is the same bytes wherever it is written.
    """
    frames = _eight_bits(clip, values)
    container, codec, options = ("matroska", "ffv1", {})
    pixels = "gray" if len(clip) == 1 else "bgr0"
    if kind == "mp4":
        container, codec, options, pixels = "mp4", "libx264", {"crf": "12", "threads": "1"}, "yuv420p"
        frames = frames.repeat(2, 1).repeat(2, 2) if frames.shape[1] % 2 or frames.shape[2] % 2 else frames
    size = {"height": frames.shape[1], "width": frames.shape[2]}
    library = _library()
    with library.open(stream, "w", format=container, options={"fflags": "bitexact"}) as file:
        track = file.add_stream(codec, rate=rate, pix_fmt=pixels, options=options, **size)
        for frame in frames:
            given = frame[..., 0] if pixels == "gray" else np.broadcast_to(frame, (*frame.shape[:2], 3))
            whole = library.VideoFrame.from_ndarray(np.ascontiguousarray(given), "gray" if given.ndim == 2 else "rgb24")
            file.mux(track.encode(whole.reformat(format=pixels)))
        file.mux(track.encode(None))


def _eight_bits(clip: UInt8[np.ndarray, "c t h w"], values: int) -> UInt8[np.ndarray, "t h w c"]:
    """``round(255 v / (V-1))``, frame by frame."""
    return ((clip.astype(np.int64) * 510 + values - 1) // (2 * (values - 1))).astype(np.uint8).transpose(1, 2, 3, 0)
