"""Videos: which frames are taken, what files of every kind become, and a run from files to drawn clips."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from helpers import refused, toy, trained
from PIL import Image, ImageOps
from pydantic import ValidationError

from vqstack.commands import generate
from vqstack.images import ImageSettings, load_splits, saver
from vqstack.images.video import whole


def frames(count, side=16, channels=3, seed=0):
    """Frames of one colour each in four quarters, all different."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 2, 2, channels)).astype(np.uint8)
    return coarse.repeat(side // 2, 1).repeat(side // 2, 2)


def write(path, shown, rate=10, codec="ffv1", kind="bgr0", times=None, audio=False):
    """A file of these frames, [t, h, w, 3], at even moments or at ``times`` in thousandths of a second."""
    with av.open(str(path), "w") as file:
        rate = rate if times is None else 1000
        track = file.add_stream(codec, rate=rate, width=shown.shape[2], height=shown.shape[1], pix_fmt=kind)
        sound = file.add_stream("pcm_s16le", rate=8000) if audio else None
        for number, frame in enumerate(shown):
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24").reformat(format=kind)
            if times is not None:
                image.pts, image.time_base = times[number], Fraction(1, 1000)
            file.mux(track.encode(image))
        file.mux(track.encode(None))
        if sound is not None:
            _sound(file, sound)


def _sound(file, track):
    part = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
    part.sample_rate = 8000
    file.mux(track.encode(part))
    file.mux(track.encode(None))


def settings(folder, **changes):
    chosen = {"source": "videofolder", "files": {"train": str(folder)}, "size": (4, 8, 8), "rate": 10, "channels": 3}
    return ImageSettings(**{"validation": 0.0, "test": 0.0, **chosen, **changes})


def means(clip):
    """The mean of each quarter of each frame of [c, t, h, w], as [t, 2, 2, c]."""
    c, t, h, w = clip.shape
    return clip.reshape(c, t, 2, h // 2, 2, w // 2).mean((3, 5)).transpose(1, 2, 3, 0)


def of(shown):
    return shown[:, :: shown.shape[1] // 2, :: shown.shape[2] // 2].astype(float)


@pytest.mark.parametrize("count", [1, 7, 12])
def test_frames_at_the_rate_of_the_file_are_its_frames(count, tmp_path):
    shown = frames(count)
    write(tmp_path / "a.mkv", shown)
    found = whole(str(tmp_path / "a.mkv"), settings(tmp_path, size=(1, 16, 16)))
    assert np.array_equal(found, shown.transpose(3, 0, 1, 2))


@pytest.mark.parametrize(("rate", "asked"), [(30, 30), (30, 10), (24, 10), (10, 25), (30, 29), (25, 1)])
def test_what_is_taken_is_what_is_on_the_screen(rate, asked, tmp_path):
    shown = frames(30)
    write(tmp_path / "a.mkv", shown, rate)
    found = whole(str(tmp_path / "a.mkv"), settings(tmp_path, size=(1, 16, 16), rate=asked))
    count = int(np.floor(Fraction(30 * asked, rate) + Fraction(99, 100))) if 30 * asked % rate else 30 * asked // rate
    wanted = [int(Fraction(k * rate, asked)) for k in range(count)]
    assert np.array_equal(found, shown[wanted].transpose(3, 0, 1, 2))


def test_frames_of_a_varying_rate_last_as_long_as_they_are_shown(tmp_path):
    shown = frames(5)
    write(tmp_path / "a.mkv", shown, times=[40, 140, 440, 480, 640])
    found = whole(str(tmp_path / "a.mkv"), settings(tmp_path, size=(1, 16, 16)))
    assert np.array_equal(found[:, :6], shown[[0, 1, 1, 1, 2, 3]].transpose(3, 0, 1, 2))
    assert np.array_equal(found[:, 6], shown[4].transpose(2, 0, 1))


def _gif(path, durations):
    first, *others = (Image.fromarray(frame) for frame in GREY)
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)


GREY = frames(6, channels=1)[..., 0]
KINDS = {  # what is written -> how far quarters may be from what they were, and the rate
    "FFV1 in Matroska": (lambda p: write(p / "a.mkv", frames(6)), 0),
    "FFV1 in AVI": (lambda p: write(p / "a.avi", frames(6)), 0),
    "MPEG-4 in MP4": (lambda p: write(p / "a.mp4", frames(6), codec="mpeg4", kind="yuv420p"), 40),
    "H.264 without loss in MP4": (lambda p: write(p / "a.mp4", frames(6), codec="libx264rgb", kind="rgb24"), 30),
    "Motion JPEG in MOV": (lambda p: write(p / "a.mov", frames(6), codec="mjpeg", kind="yuvj444p"), 40),
    "VP9 in WebM": (lambda p: write(p / "a.webm", frames(6), codec="libvpx-vp9", kind="yuv420p"), 60),
    "with sound": (lambda p: write(p / "a.mkv", frames(6), audio=True), 0),
}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_becomes_of_files(kind, tmp_path):
    make, far = KINDS[kind]
    make(tmp_path)
    (path,) = tmp_path.iterdir()
    found = whole(str(path), settings(tmp_path, size=(1, 16, 16)))
    assert found.shape == (3, 6, 16, 16)
    assert np.abs(means(found) - of(frames(6))).max() <= far


def test_an_animation_is_a_video_whose_frames_last_as_it_says(tmp_path):
    _gif(tmp_path / "a.gif", [100, 300, 100, 200, 100, 100])
    found = whole(str(tmp_path / "a.gif"), settings(tmp_path, size=(1, 16, 16), channels=1))
    assert np.array_equal(found[0], GREY[[0, 1, 1, 1, 2, 3, 3, 4, 5]])


def test_frames_are_scaled_until_they_cover_the_size_and_cut(tmp_path):
    wide = np.zeros((5, 20, 40, 3), np.uint8)
    wide[:, :, 10:30] = 200
    write(tmp_path / "a.mkv", wide)
    found = whole(str(tmp_path / "a.mkv"), settings(tmp_path, size=(4, 10, 10), channels=1))
    assert found.shape == (1, 5, 10, 10) and found[..., 2:-2].min() >= 190


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(1, 2), Fraction(10, 11)], ids=str)
def test_pixels_that_are_not_square_are_made_so(aspect, tmp_path):
    """As players show it: the width is scaled, and then the frame as any other."""
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        track = file.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        track.codec_context.sample_aspect_ratio = aspect
        for frame in frames(3, side=32):
            file.mux(track.encode(av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format="yuv420p")))
        file.mux(track.encode(None))
    with av.open(str(tmp_path / "a.mp4")) as file:
        stored = [frame.to_image() for frame in file.decode(video=0)]
    width = round(32 * aspect)
    pictures = [image.resize((width, 32), Image.Resampling.LANCZOS) for image in stored]
    side = min(width, 32)
    wanted = np.stack([np.asarray(ImageOps.fit(one, (side, side), Image.Resampling.LANCZOS)) for one in pictures])
    found = whole(str(tmp_path / "a.mp4"), settings(tmp_path, size=(1, side, side)))
    assert np.array_equal(found, wanted.transpose(3, 0, 1, 2))


@pytest.mark.parametrize("rate", [7, 24, 30, 48, 50])
def test_a_gif_lasts_as_long_as_its_frames_and_each_of_them_is_read_back(rate, tmp_path):
    clip = frames(2 * rate + 1, side=4, channels=1).transpose(3, 0, 1, 2)
    _, save = saver(clip.shape, 256, rate=rate, asked="gif")
    with (tmp_path / "a.gif").open("wb") as stream:
        save(torch.from_numpy(clip), stream)
    with Image.open(tmp_path / "a.gif") as image:
        lasts = []
        for number in range(image.n_frames):
            image.seek(number)
            lasts.append(image.info["duration"])
    assert min(lasts) >= 20 and np.abs(np.cumsum(lasts) - 1000 * np.arange(1, 2 * rate + 2) / rate).max() <= 5
    asked = settings(tmp_path, size=(1, 4, 4), channels=1, rate=rate)
    assert np.array_equal(whole(str(tmp_path / "a.gif"), asked), clip)


def _cut(path, part):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])


def _sound_alone(path):
    with av.open(str(path), "w") as file:
        _sound(file, file.add_stream("pcm_s16le", rate=8000))


def _broken(make, change):
    def both(path):
        make(path)
        change(path)

    return both


NOISE = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
BROKEN = {  # file name, what writes it, words of the refusal
    "zero bytes": ("a.mp4", lambda p: p.write_bytes(b""), "cannot be read"),
    "text": ("a.mkv", lambda p: p.write_text("no video"), "cannot be read"),
    "MP4, cut off": (
        "a.mp4",
        _broken(lambda p: write(p, NOISE, codec="mpeg4", kind="yuv420p"), lambda p: _cut(p, 0.7)),
        "cannot be read",
    ),
    "Matroska, cut off": ("a.mkv", _broken(lambda p: write(p, NOISE), lambda p: _cut(p, 0.5)), "cannot be read"),
    "AVI, cut off": ("a.avi", _broken(lambda p: write(p, NOISE), lambda p: _cut(p, 0.5)), "cannot be read"),
    "sound alone": ("a.mkv", _sound_alone, "no video"),
    "a hole in its times": (
        "a.mkv",
        lambda p: write(p, frames(3), times=[0, 100, 10_000_100]),
        "a frame stays for 10,000 seconds",
    ),
    "an image": ("a.mp4", lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "cannot be read"),
}


@pytest.mark.parametrize("kind", BROKEN, ids=str)
def test_what_cannot_be_read_is_refused_by_name_or_left_out(kind, tmp_path):
    name, make, words = BROKEN[kind]
    make(tmp_path / name)
    refused(lambda: load_splits(settings(tmp_path), ["train"]), name, words)
    write(tmp_path / "good.mkv", frames(8))
    split = load_splits(settings(tmp_path, on_error="skip"), ["train"])["train"]
    assert len(split) == 2 and name in json.dumps(split.source["left_out"])


def test_what_is_short_or_no_video_is_counted_and_clips_hold_every_frame(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "walk").mkdir()
    write(tmp_path / "run" / "a.mkv", frames(10))
    write(tmp_path / "walk" / "b.mkv", frames(4, seed=1))
    write(tmp_path / "walk" / "short.mkv", frames(3))
    (tmp_path / "walk" / "notes.txt").write_text("words")
    split = load_splits(settings(tmp_path, size=(4, 16, 16)), ["train"])["train"]
    left = {reason: what["count"] for reason, what in split.source["left_out"].items()}
    assert left == {"no video": 1, "smaller than 4x16x16": 1}
    assert split.class_names == ["run", "walk"] and split.labels.tolist() == [0, 0, 0, 1]
    shown = frames(10).transpose(3, 0, 1, 2)
    for clip, start in zip(split.pixels[:3].numpy(), (0, 3, 6), strict=True):
        assert np.array_equal(clip, shown[:, start : start + 4])


@pytest.mark.parametrize("changes", [{"size": (8, 8)}, {"rate": None}, {"channels": 2}, {"values": 300}], ids=str)
def test_settings_that_do_not_fit_are_refused(changes, tmp_path):
    with pytest.raises(ValidationError):
        settings(tmp_path, **changes)


@pytest.mark.parametrize("kind", [None, "mkv", "gif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_reads_back(channels, kind, tmp_path):
    clip = frames(6, channels=channels).transpose(3, 0, 1, 2) // 86
    ending, save = saver(clip.shape, 3, rate=10, asked=kind)
    assert ending == f".{kind or ('gif' if channels == 1 else 'mkv')}"
    with (tmp_path / f"a{ending}").open("wb") as stream:
        save(torch.from_numpy(clip), stream)
    asked = settings(tmp_path, size=(6, 16, 16), channels=channels, values=3)
    assert np.array_equal(whole(str(tmp_path / f"a{ending}"), asked), clip)


@pytest.mark.parametrize("sides", [(16, 16), (15, 16), (16, 15)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_mp4_has_the_frames_and_the_rate_and_nearly_the_values(channels, sides, tmp_path):
    clip = frames(12, channels=channels).transpose(3, 0, 1, 2)[:, :, : sides[0], : sides[1]]
    ending, save = saver(clip.shape, 256, rate=25, asked="mp4")
    with (tmp_path / f"a{ending}").open("wb") as stream:
        save(torch.from_numpy(clip), stream)
    with av.open(str(tmp_path / "a.mp4")) as file:
        (track,) = file.streams.video
        assert (track.average_rate, track.frames, track.codec_context.name) == (25, 12, "h264")
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(track)]).transpose(3, 0, 1, 2)
    factor = 1 if sides == (16, 16) else 2
    assert shown.shape[1:] == (12, factor * sides[0], factor * sides[1])
    wanted = clip.repeat(factor, 2).repeat(factor, 3).astype(int)
    assert np.abs(shown - wanted).mean() < (1 if channels == 1 else 4)  # colours have half the resolution


def test_what_a_video_cannot_be_is_refused():
    refused(lambda: saver((1, 4, 8, 8), 256, rate=10, asked="wav"), "format wav", "gif, mkv, mp4, npy")
    refused(lambda: saver((1, 4, 8, 8), 256, asked="mp4"), "format mp4", "npy, tiff")
    refused(lambda: saver((9, 8), 256, rate=8000, asked="flac"), "format flac", "wav, npy")
    refused(lambda: saver((1, 8), 256, rate=196_611, asked="flac"), "format flac", "wav, npy")
    refused(lambda: saver((1, 4, 8, 8), 256, rate=51, asked="gif"), "format gif", "mkv, mp4, npy")
    refused(lambda: saver((3, 8, 8), 256, asked="gif"), "format gif", "png, npy")


def test_a_run_from_videos_to_videos(tmp_path):
    (tmp_path / "data").mkdir()
    for seed in range(6):
        write(tmp_path / "data" / f"{seed}.mkv", frames(8, 8, seed=seed))
    data = {"source": "videofolder", "files": {"train": str(tmp_path / "data")}, "size": (4, 8, 8), "rate": 10}
    config = toy(data | {"channels": 3, "validation": 0.2, "test": 0.2}, (2, 2, 2), (1, 1, 1))
    model = trained(config, tmp_path / "run")
    generate.main([str(tmp_path / "run"), "--num", "1", "--out", str(tmp_path / "drawn")])
    found = whole(str(tmp_path / "drawn" / "000000.mkv"), config.data)
    assert np.array_equal(found, model.sample(1).pixels[0].numpy())
    kept = ["--images", str(tmp_path / "data" / "0.mkv"), "--from-level", "1", "--out", str(tmp_path / "varied")]
    generate.main([str(tmp_path / "run"), *kept])
