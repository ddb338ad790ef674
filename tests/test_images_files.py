"""Odd and broken image files: what becomes of each, and the table of it in docs/data.md."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused
from PIL import Image
from pydantic import ValidationError

from vqstack.codec.pictures import read_picture
from vqstack.errors import InputError
from vqstack.images import ImageSettings, load_images, load_splits
from vqstack.images.decode import decode_all

DOCS = Path(__file__).parents[1] / "docs" / "data.md"
PACKAGE = Path(__file__).parents[1] / "vqstack"
RGB = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
GREY, ALPHA = RGB[..., 0], RGB[..., 1]
SMOOTH = np.add.outer(np.arange(8), np.arange(8)).astype(np.uint8)[..., None] * np.array([9, 5, 2], dtype=np.uint8)


def three(grey):
    return np.repeat(np.asarray(grey)[..., None], 3, axis=2)


def on_black(colours, alpha):
    """What is left of colours [h, w, 3] where they cover a share alpha / 255 of black."""
    return np.round(colours * (alpha[..., None] / 255.0))


def stored(image, kind, **options) -> bytes:
    """An image of Pillow, or an array, as the bytes of a file."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def palette(transparent: bool = False) -> bytes:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    image.putpalette(RGB.reshape(64, 3).tobytes())
    return stored(image, "PNG", **({"transparency": 10} if transparent else {}))


def key_colour() -> bytes:
    return stored(RGB, "PNG", transparency=tuple(int(x) for x in RGB[2, 3]))


def without(colours, row, column):
    colours = colours.copy()
    colours[row, column] = 0
    return colours


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def sixteen_bits(values, kind: int, *more: bytes) -> bytes:
    """A PNG of 16-bit values, each twice the byte given; kind 0 is grey, 2 is colour; with more chunks."""
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2") * 257)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0)), *more]
    return b"".join([b"\x89PNG\r\n\x1a\n", *parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def turned(orientation: int) -> bytes:
    image = Image.fromarray(SMOOTH)
    exif = image.getexif()
    exif[0x0112] = orientation
    return stored(image, "PNG", exif=exif)


def animation(kind: str, **options) -> bytes:
    frames = [Image.fromarray(three(GREY // 128 * 255)), Image.fromarray(255 - three(GREY // 128 * 255))]
    return stored(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)


def see_through_gif() -> bytes:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    image.putpalette(RGB.reshape(64, 3).tobytes())
    return stored(image, "GIF", transparency=10)


def cmyk(kind: str, **options) -> bytes:
    return stored(Image.fromarray(SMOOTH).convert("CMYK"), kind, **options)


@dataclass(frozen=True)
class Kind:
    """A kind of file, what becomes of it, and how to tell: an array, or a word of the refusal."""

    what: str
    result: str
    data: Callable[[], bytes] | None
    expected: np.ndarray | str
    near: float = 0  # largest difference, where a format loses something


REFUSED = "refused"
KINDS = [
    Kind("PNG, 8-bit colour", "as it is", lambda: stored(RGB, "PNG"), RGB),
    Kind("PNG, 8-bit grey", "all channels equal", lambda: stored(GREY, "PNG"), three(GREY)),
    Kind("PNG, palette", "its colours", palette, RGB),
    Kind("PNG, palette with a transparent entry", "laid on `background`", lambda: palette(True), without(RGB, 1, 2)),
    Kind(
        "PNG, colour and alpha",
        "laid on `background`",
        lambda: stored(np.dstack([RGB, ALPHA]), "PNG"),
        on_black(RGB, ALPHA),
        1,
    ),
    Kind(
        "PNG, grey and alpha",
        "laid on `background`",
        lambda: stored(np.dstack([GREY, ALPHA]), "PNG"),
        on_black(three(GREY), ALPHA),
        1,
    ),
    Kind("PNG, one colour declared transparent", "laid on `background`", key_colour, without(RGB, 2, 3)),
    Kind("PNG, 1 bit", "0 and 255", lambda: stored(GREY > 99, "PNG"), three(GREY > 99) * 255),
    Kind(
        "PNG, 16-bit grey",
        "scaled to 8 bits, rounded",
        lambda: stored(GREY.astype(np.uint16) * 256 + ALPHA, "PNG"),
        three(np.round((GREY * 256.0 + ALPHA) * 255 / 65535)),
    ),
    Kind(
        "PNG, 16-bit grey, one value declared transparent",
        "laid on `background`",
        lambda: sixteen_bits(GREY, 0, chunk(b"tRNS", struct.pack(">H", int(GREY[2, 3]) * 257))),
        three(np.where(GREY == GREY[2, 3], 0, GREY)),
    ),
    Kind("PNG, 16-bit colour", "the upper 8 bits", lambda: sixteen_bits(RGB, 2), RGB),
    Kind("PNG, animated", "first frame", lambda: animation("PNG"), three(GREY // 128 * 255)),
    Kind("PNG, turned by EXIF (6)", "turned upright", lambda: turned(6), np.rot90(SMOOTH, -1)),
    Kind("PNG, mirrored by EXIF (2)", "mirrored back", lambda: turned(2), SMOOTH[:, ::-1]),
    Kind("PNG, cut off", REFUSED, lambda: stored(RGB, "PNG")[:120], "cannot be read"),
    Kind("PNG, header only", REFUSED, lambda: stored(RGB, "PNG")[:33], "cannot be read"),
    Kind("PNG, damaged header", REFUSED, lambda: stored(RGB, "PNG").replace(b"IHDR", b"IHDX"), "cannot be read"),
    Kind("PNG, more pixels than Pillow's limit (bomb)", REFUSED, bomb, "exceeds limit"),
    Kind("JPEG, colour", "decoded", lambda: stored(SMOOTH, "JPEG", quality=95), SMOOTH, 8),
    Kind("JPEG, progressive", "decoded", lambda: stored(SMOOTH, "JPEG", quality=95, progressive=True), SMOOTH, 8),
    Kind(
        "JPEG, grey", "all channels equal", lambda: stored(SMOOTH[..., 0], "JPEG", quality=95), three(SMOOTH[..., 0]), 8
    ),
    Kind("JPEG, CMYK", "converted, without a colour profile", lambda: cmyk("JPEG", quality=95), SMOOTH, 8),
    Kind("JPEG, cut off", REFUSED, lambda: stored(RGB, "JPEG")[:-40], "truncated"),
    Kind("JPEG named .png", "decoded: names do not matter", lambda: stored(SMOOTH, "JPEG", quality=95), SMOOTH, 8),
    Kind("GIF, animated", "first frame", lambda: animation("GIF"), three(GREY // 128 * 255)),
    Kind("GIF, transparent entry", "laid on `background`", see_through_gif, without(RGB, 1, 2)),
    Kind("WebP, lossless", "as it is", lambda: stored(RGB, "WEBP", lossless=True), RGB),
    Kind("WebP, animated", "first frame", lambda: animation("WEBP", lossless=True), three(GREY // 128 * 255)),
    Kind("WebP, cut off", REFUSED, lambda: stored(RGB, "WEBP", lossless=True)[:60], "cannot be read"),
    Kind("BMP", "as it is", lambda: stored(RGB, "BMP"), RGB),
    Kind("PPM", "as it is", lambda: stored(RGB, "PPM"), RGB),
    Kind("TIFF, CMYK", "converted, without a colour profile", lambda: cmyk("TIFF"), SMOOTH, 1),
    Kind(
        "TIFF, 16-bit grey",
        "scaled to 8 bits, rounded",
        lambda: stored(GREY.astype(np.uint16) * 257, "TIFF"),
        three(GREY),
    ),
    Kind("TIFF, several pages", "first page", lambda: animation("TIFF"), three(GREY // 128 * 255)),
    Kind("TIFF, floating point", REFUSED, lambda: stored(GREY.astype(np.float32), "TIFF"), "neither 8 nor 16 bits"),
    Kind(
        "TIFF, 32-bit whole numbers",
        REFUSED,
        lambda: stored(GREY.astype(np.int32) * 70_000, "TIFF"),
        "neither 8 nor 16",
    ),
    Kind(
        "larger than `size`",
        "scaled until it covers it, antialiased",
        lambda: stored(np.full((32, 32, 3), 7, "u1"), "PNG"),
        np.full((8, 8, 3), 7),
    ),
    Kind(
        "smaller than `size`",
        "enlarged until it covers it",
        lambda: stored(np.full((1, 1, 3), 7, "u1"), "PNG"),
        np.full((8, 8, 3), 7),
    ),
    Kind(
        "of another shape than `size`",
        "scaled with its shape kept, the centre cut out",
        lambda: stored(np.pad(RGB, ((0, 0), (40, 40), (0, 0))), "PNG"),
        RGB,
    ),
    Kind("zero bytes", REFUSED, lambda: b"", "cannot be read"),
    Kind("text", REFUSED, lambda: b"<html>404</html>", "cannot be read"),
    Kind("AVIF", "decoded", lambda: stored(SMOOTH, "AVIF", quality=95), SMOOTH, 8),
    Kind("EPS", REFUSED, lambda: stored(RGB, "EPS"), "none of PNG"),
    Kind("PDF", REFUSED, lambda: b"%PDF-1.4 /Type /Page", "none of PNG"),
    Kind("JPEG 2000", REFUSED, lambda: stored(RGB, "JPEG2000"), "none of PNG"),
    Kind("ICO", REFUSED, lambda: stored(RGB, "ICO"), "none of PNG"),
    Kind("SVG", REFUSED, lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "cannot be read"),
    Kind("zeros", REFUSED, lambda: bytes(500), "cannot be read"),
    Kind("no such file", REFUSED, None, "no such file"),
]
SETTINGS = ImageSettings(source="imagefolder", files={"train": "x"}, size=(8, 8), channels=3, validation=0, test=0)


def table() -> str:
    """As docs/data.md has it."""
    rows = [f"| {kind.what} | {kind.result} |" for kind in KINDS]
    return "\n".join(["| file | what becomes of it |", "|---|---|", *rows])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.what)
def test_what_becomes_of_a_file(kind, tmp_path):
    path = tmp_path / "image.png"
    if kind.data is not None:
        path.write_bytes(kind.data())
    if isinstance(kind.expected, str):
        assert kind.result == REFUSED
        refused(lambda: load_images([path], SETTINGS), "image.png", kind.expected)
    else:
        found = load_images([path], SETTINGS)[0].permute(1, 2, 0).numpy().astype(float)
        assert abs(found - kind.expected).max() <= kind.near


@pytest.mark.parametrize("colour", ["white", "#ff8000"])
def test_what_is_transparent_is_laid_on_the_background(colour, tmp_path):
    behind = np.array([255, 255, 255] if colour == "white" else [255, 128, 0])
    hole = np.ones((8, 8), bool)
    hole[2, 3] = False
    files = {
        "colours": (stored(np.dstack([RGB, ALPHA]), "PNG"), RGB, ALPHA),
        "grey": (stored(np.dstack([GREY, ALPHA]), "PNG"), three(GREY), ALPHA),
        "one colour": (key_colour(), RGB, hole * 255),
        "palette": (palette(True), RGB, 255 * (np.arange(64).reshape(8, 8) != 10)),
        "GIF": (see_through_gif(), RGB, 255 * (np.arange(64).reshape(8, 8) != 10)),
    }
    settings = SETTINGS.model_copy(update={"background": colour})
    for name, (content, colours, alpha) in files.items():
        (tmp_path / name).write_bytes(content)
        found = load_images([tmp_path / name], settings)[0].permute(1, 2, 0).numpy()
        share = alpha[..., None] / 255
        assert abs(found - (colours * share + behind * (1 - share))).max() <= 1, name
    deep = sixteen_bits(GREY, 0, chunk(b"tRNS", struct.pack(">H", int(GREY[2, 3]) * 257)))
    (tmp_path / "deep").write_bytes(deep)
    grey = settings.model_copy(update={"channels": 1})
    level = np.array(Image.new("RGB", (1, 1), colour).convert("L"))[0, 0]
    assert np.array_equal(load_images([tmp_path / "deep"], grey)[0, 0], np.where(GREY == GREY[2, 3], level, GREY))


@pytest.mark.parametrize("colour", ["", "whit", "#12", "#11223344"])
def test_a_background_is_an_opaque_colour(colour):
    with pytest.raises(ValidationError, match="colour"):
        ImageSettings(background=colour)


def test_the_codec_sees_the_pictures_that_data_sets_see(tmp_path):
    """What it takes at all is equal, file by file; the rest it refuses by name."""
    taken = set()
    for number, kind in enumerate(kind for kind in KINDS if kind.data is not None):
        path = tmp_path / f"{number}.png"
        path.write_bytes(kind.data())
        try:
            _, pixels = read_picture(path, 3, 256)
        except InputError as error:
            assert str(path) in str(error)
            continue
        taken.add(kind.what)
        assert torch.equal(pixels, load_images([path], SETTINGS.model_copy(update={"size": None}))[0]), kind.what
    assert taken >= {"PNG, turned by EXIF (6)", "PNG, mirrored by EXIF (2)", "JPEG, colour", "AVIF"}


def test_only_one_place_opens_image_files_and_starts_no_program(tmp_path, monkeypatch):
    """Pillow hands EPS to Ghostscript, also where it is called photo.jpg."""
    calls = [path.name for path in PACKAGE.rglob("*.py") if "Image.open(" in path.read_text("utf-8")]
    assert calls == ["formats.py"]

    def started(*arguments, **options):
        raise AssertionError(f"a program was started: {arguments}")

    monkeypatch.setattr("subprocess.Popen", started)
    monkeypatch.setattr("os.system", started)
    for name in ("photo.jpg", "x.png", "x.eps", "x"):
        (tmp_path / name).write_bytes(stored(RGB, "EPS"))
        refused(lambda name=name: load_images([tmp_path / name], SETTINGS), name, "none of")
        refused(lambda name=name: read_picture(tmp_path / name, 3, 256), name, "none of")
    row = {"bytes": stored(RGB, "EPS"), "path": None}
    assert "none of" in decode_all([row], ["row"], SETTINGS, None)[0]


def test_the_table_in_the_docs_is_this_one():
    assert len({kind.what for kind in KINDS}) == len(KINDS)
    assert table() in DOCS.read_text(encoding="utf-8"), f"docs/data.md should have this table:\n{table()}"


def folder_of_all(tmp_path) -> ImageSettings:
    (tmp_path / "images").mkdir()
    for number, kind in enumerate(KINDS):
        if kind.data is not None:
            (tmp_path / "images" / f"{number:02d}.png").write_bytes(kind.data())
    return SETTINGS.model_copy(update={"files": {"train": str(tmp_path / "images")}})


def test_a_folder_of_all_of_them(tmp_path, caplog):
    """Left out, counted and named with on_error skip; else the first one ends the command."""
    settings = folder_of_all(tmp_path)
    good = [number for number, kind in enumerate(KINDS) if not isinstance(kind.expected, str)]
    bad = [number for number, kind in enumerate(KINDS) if isinstance(kind.expected, str) and kind.data is not None]
    split = load_splits(settings.model_copy(update={"on_error": "skip"}), ["train"])["train"]
    assert split.index.tolist() == good
    for pixels, number in zip(split.pixels, good, strict=True):
        expected, near = KINDS[number].expected, KINDS[number].near
        assert abs(pixels.permute(1, 2, 0).numpy().astype(float) - expected).max() <= near
    assert split.source["skipped"]["count"] == len(bad)
    assert [
        f"{number:02d}.png" in reason for number, reason in zip(bad, split.source["skipped"]["first"], strict=False)
    ] == [True] * 5
    assert f"{len(bad)} of {len(good) + len(bad)} images left out" in caplog.text
    refused(lambda: load_splits(settings, ["train"]), f"{bad[0]:02d}.png", "on_error")


def test_a_folder_of_broken_files_only(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    settings = SETTINGS.model_copy(update={"files": {"train": str(tmp_path / "images")}, "on_error": "skip"})
    with pytest.raises(InputError, match="no images left"):
        load_splits(settings, ["train"])
