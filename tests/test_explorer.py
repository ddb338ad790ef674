"""The page of ``vqstack explore``, used in a real browser by clicks and keys, and checked by what the model says."""

import asyncio
import base64
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, refused, text_encoder, untrained
from PIL import Image, ImageSequence

import vqstack
from vqstack import Edited
from vqstack.codec.blocks import BlockCodec
from vqstack.images import save_png
from vqstack.texts import TextSettings, encode_texts

ui = pytest.importorskip("nicegui", reason="the page needs nicegui: pip install 'vqstack[explore]'")
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="a browser is driven by playwright: pip install playwright"
)

from vqstack.explorer import files, page, pictures  # noqa: E402
from vqstack.explorer.look import bits_picture, map_picture  # noqa: E402
from vqstack.explorer.opened import Opened  # noqa: E402
from vqstack.ledger import BITS  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--no-first-run", "--disable-quic"]
browsing = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is here: make browser installs Debian's")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the digits, hardly trained."""
    folder = tmp_path_factory.mktemp("explored") / "run"
    vqstack.train(vqstack.recipe("digits", **TINY), out=folder)
    return folder


@pytest.fixture(scope="module")
def opened(run):
    return Opened(run)


@pytest.fixture(scope="module")
def address(run):
    with served(run) as found:
        yield found


@contextmanager
def served(run):
    """The address of a run's page, served by a process of its own."""
    code = (
        f"import sys; sys.argv[1:] = ['explore', {str(run)!r}, '--port', '0']; import vqstack.commands as c; c.main()"
    )
    pipe, kept = subprocess.PIPE, {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    server = subprocess.Popen(  # nicegui would take it for a test of its own
        [sys.executable, "-c", code], env={**kept, "OMP_NUM_THREADS": "1"}, stdout=pipe, stderr=pipe, text=True
    )
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        _, complaints = server.communicate(timeout=30)
    assert "Traceback" not in complaints, complaints


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)


class Tab:
    """A tab of the browser, and what a person does and sees there."""

    def __init__(self, browser, address, size=(1400, 1000)):
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.page.goto(address)
        self.page.wait_for_selector("[data-do=drawn]")

    def part(self, name):
        self.page.click(f"[data-tab={name}]")

    def do(self, name):
        self.page.click(f"[data-do={name}] >> visible=true")
        self.page.wait_for_timeout(150)
        self.page.wait_for_selector("[aria-label=computing]", state="hidden", timeout=60_000)

    def open(self, number):
        self.page.fill("[aria-label='test image'] >> nth=0", str(number))
        self.do("test")

    def picture(self, hook, wanted):
        """Wait until what is shown is the picture that is wanted, pixel by pixel."""
        wanted = np.asarray(wanted.convert("RGB"))
        for _ in range(60):
            source = self.page.get_attribute(f"{hook} img >> nth=-1", "src") or ""
            if source.startswith("data:"):
                found = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB")
                if found.size == wanted.shape[1::-1] and np.array_equal(np.asarray(found), wanted):
                    return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{hook} shows something else")

    def board(self, name):
        return f"[data-board='{name}']"

    def site(self, name, row, column, rows, columns, button=True):
        """Point at a site of a board, and press the mouse there."""
        self.page.locator(self.board(name)).scroll_into_view_if_needed()
        box = self.page.locator(self.board(name)).bounding_box()
        x, y = box["x"] + (column + 0.5) * box["width"] / columns, box["y"] + (row + 0.5) * box["height"] / rows
        self.page.mouse.move(x, y)
        if button:
            self.page.mouse.down()
            self.page.mouse.up()
        self.page.wait_for_timeout(100)

    def take(self, number):
        """Open an image of the gallery; on a machine that is very busy a click was lost once."""
        for _ in range(3):
            self.page.click(f"[data-made='{number}']")
            try:
                self.page.wait_for_selector("[data-edited] img >> visible=true", timeout=10_000)
                return
            except sync_api.TimeoutError:
                continue
        raise AssertionError(f"image {number} does not open")

    def text(self, hook, pattern):
        """Wait until the text there matches."""
        self.page.wait_for_function(
            "([hook, pattern]) => new RegExp(pattern).test(document.querySelector(hook)?.textContent ?? '')",
            arg=[hook, pattern],
        )
        return self.page.inner_text(hook)

    def said(self, *words):
        """A word of the page to the person."""
        note = self.page.wait_for_selector(".q-notification").inner_text()
        assert all(word in note for word in words), note
        self.page.click(".q-notification button")
        self.page.wait_for_selector(".q-notification", state="detached")

    def download(self, name):
        with self.page.expect_download() as waiting:
            self.page.click(f"[data-do={name}] >> visible=true")
        return Path(waiting.value.path()).read_bytes()

    def close(self):
        self.page.close()


@pytest.fixture
def tab(browser, address):
    made = Tab(browser, address)
    yield made
    made.close()


EDITED = "edit z_1, 4x4 of 8 codes"


@browsing
def test_look_shows_every_map_what_it_keeps_and_the_bits_of_every_site(tab, opened):
    tab.open(3)
    image, model = opened.image(3), opened.model
    for level in (1, 2):
        kept = model.decode(image.map(level), level)
        tab.picture(f"[data-kept='{level}']", pictures.of_input(model, kept))
    tab.picture("[data-image]", pictures.of_input(model, image.pixels))
    whole = map_picture(image, 1).resize((256, 256), Image.Resampling.NEAREST)
    tab.picture(tab.board("codes of level 1"), whole)
    nats = model.code_lengths_by_site(image.pixels, list(image.codes), image.labels)
    heat = bits_picture(image, 0, nats["level-1"] * BITS).resize((256, 256), Image.Resampling.NEAREST)
    tab.picture(tab.board("bits of every site"), heat)
    tab.site("bits of every site", 3, 5, 8, 8, button=False)
    here = float(nats["level-1"][0, :, 3, 5].sum()) * BITS
    assert f"site 3 5: {here:.2f} of" in tab.page.inner_text("text=/site 3 5/")
    rows = [row.split() for row in tab.page.locator("tbody tr").all_inner_texts()]
    total = sum(image.bits.values())
    for row, shown in [*image.bits.items(), ("total", total)]:
        assert [row, f"{shown:,.2f}", f"{shown / total:.1%}"] in rows
    tab.site("codes of level 1", 2, 1, 4, 4, button=False)
    said = tab.text("[data-told]", "site 2 1")
    bits = float(nats["level-2"][0, 2, 1]) * BITS
    assert f"code {int(image.codes[0][0, 2, 1])}, {bits:.2f} bits" in said


@browsing
def test_edit_does_what_the_calls_do_and_its_lines_make_the_image_again(tab, opened, run):
    tab.open(5)
    tab.part("Edit")
    tab.page.click("text=z_1, 4x4 of 8 codes >> visible=true")
    tab.page.wait_for_selector(tab.board(EDITED))
    tab.site(EDITED, 0, 1, 4, 4)
    tab.page.keyboard.press("ArrowDown")  # the board has the keys now
    tab.page.keyboard.press("Space")
    assert f"code {int(opened.image(5).codes[0][0, 1, 1])}" in tab.text("[data-here]", "site 1 1")
    assert "2 of 16" in tab.text("[data-count]", "2 of")
    tab.do("resample")
    expected = start = opened.image(5)
    expected = expected.resampled(1, [(0, 1), (1, 1)], seed=0)
    tab.picture("[data-edited]", pictures.of_input(opened.model, expected.pixels))

    tab.site(EDITED, 1, 1, 4, 4)
    tab.do("choices")
    second = expected.choices(1, (0, 1))[1]
    shown = tab.page.locator("[data-code]").all_inner_texts()
    assert shown[1] == f"{second.code}: {second.probability:.1%}"
    tab.page.click(f"[data-code='{second.code}']")
    expected = expected.placed(1, {(0, 1): second.code})
    tab.picture("[data-edited]", pictures.of_input(opened.model, expected.pixels))

    tab.page.click("text=whole map")
    tab.do("copy")
    expected = expected.copied(1, opened.image(1).codes[0])
    tab.picture("[data-edited]", pictures.of_input(opened.model, expected.pixels))
    old = int(expected.codes[0][0, 0, 0])
    tab.page.fill("[aria-label='code'] >> visible=true", str(old))
    tab.page.fill("[aria-label='becomes']", str((old + 1) % 8))
    tab.do("exchange")
    before, expected = expected, expected.exchanged(1, old, (old + 1) % 8)
    picture = pictures.of_input(opened.model, expected.pixels)
    tab.picture("[data-edited]", picture)
    tab.do("undo")
    tab.picture("[data-edited]", pictures.of_input(opened.model, before.pixels))
    tab.do("redo")
    tab.picture("[data-edited]", picture)

    lines = tab.download("python").decode()
    names = {}
    exec(lines, names)
    assert torch.equal(names["image"].pixels, expected.pixels) and not torch.equal(expected.pixels, start.pixels)
    stream = io.BytesIO()
    save_png(expected.pixels[0], stream, 17)
    assert tab.download("image") == stream.getvalue()
    zipfile.ZipFile(io.BytesIO(tab.download("codes"))).extractall("codes")
    (block,) = vqstack.CodeDataset(Path("codes/edited")).blocks("test")
    assert all(torch.equal(one, other) for one, other in zip(block.codes, expected.codes, strict=True))


@browsing
def test_rectangles_pixels_and_drawn_maps(tab, opened):
    tab.open(2)
    tab.part("Edit")
    tab.page.click("text=rectangle")
    tab.page.click("[aria-label=map] >> text=image")
    name = "edit image"
    tab.page.wait_for_selector(tab.board(name))
    box = tab.page.locator(tab.board(name)).bounding_box()
    step = box["width"] / 8
    tab.page.mouse.move(box["x"] + 0.5 * step, box["y"] + 0.5 * step)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 2.5 * step, box["y"] + 1.5 * step, steps=4)
    tab.page.mouse.up()
    tab.text("[data-count]", "6 of 64")
    tab.do("resample")
    sites = [(0, row, column) for row in range(2) for column in range(3)]
    expected = opened.image(2).resampled(0, sites, seed=0)
    tab.picture("[data-edited]", pictures.of_input(opened.model, expected.pixels))


@browsing
def test_a_quick_brush_leaves_no_gaps_and_a_kept_image_is_named_until_it_is_forgotten(tab, opened):
    tab.open(3)
    tab.part("Edit")
    tab.page.click("[data-do=keep]")
    tab.open(2)
    assert "test image 3" in tab.text("[data-other]", "the other image")
    tab.page.click("text=z_1, 4x4 of 8 codes >> visible=true")
    box = tab.page.locator(tab.board(EDITED)).bounding_box()
    step = box["width"] / 4
    tab.page.mouse.move(box["x"] + step / 2, box["y"] + step / 2)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 3.5 * step, box["y"] + 3.5 * step, steps=1)
    tab.page.mouse.up()
    tab.text("[data-count]", "4 of 16")
    tab.page.click("text=whole map")
    tab.do("copy")
    kept = opened.image(2).copied(1, opened.image(3).codes[0])
    tab.picture("[data-edited]", pictures.of_input(opened.model, kept.pixels))
    tab.page.click("[data-do=forget] >> visible=true")
    tab.page.fill("[aria-label='test image'] >> nth=1", "7")
    tab.do("copy")
    other = kept.copied(1, opened.image(7).codes[0])
    tab.picture("[data-edited]", pictures.of_input(opened.model, other.pixels))


@browsing
def test_keys_choose_rectangles_and_undo(tab, opened):
    tab.open(2)
    tab.part("Edit")
    tab.page.click("text=z_1, 4x4 of 8 codes >> visible=true")
    tab.page.focus(tab.board(EDITED))
    for key in ("ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown", "Shift+ArrowDown", "Shift+ArrowUp"):
        tab.page.keyboard.press(key)
    tab.text("[data-count]", "4 of 16")
    tab.do("resample")
    start = opened.image(2)
    expected = start.resampled(1, [(row, column) for row in (0, 1) for column in (1, 2)], seed=0)
    tab.picture("[data-edited]", pictures.of_input(opened.model, expected.pixels))
    tab.page.keyboard.press("Control+z")
    tab.picture("[data-edited]", pictures.of_input(opened.model, start.pixels))
    tab.page.keyboard.press("Control+Shift+z")
    tab.picture("[data-edited]", pictures.of_input(opened.model, expected.pixels))
    assert tab.text("[data-open]", "open") == f"open: test image 2, class {int(start.labels)}, 1 change"


@browsing
def test_a_page_that_is_loaded_again_has_its_image_and_its_past(tab, browser, address, opened):
    tab.open(3)
    tab.part("Edit")
    tab.page.click("text=whole map")
    tab.do("resample")
    tab.page.reload()
    tab.text("[data-open]", "test image 3, class [0-9], 1 change")
    changed = opened.image(3).resampled(2, seed=0)
    tab.picture("[data-edited]", pictures.of_input(opened.model, changed.pixels))
    tab.do("undo")
    tab.picture("[data-edited]", pictures.of_input(opened.model, opened.image(3).pixels))
    other = Tab(browser, address)
    assert "No image" in other.page.inner_text("[data-open]")
    other.close()


@browsing
def test_numbers_that_do_not_fit_are_refused_and_stay(tab):
    field = "[aria-label='test image'] >> nth=0"
    for wrong in ("297", "-1", "1.5", ""):
        tab.page.fill(field, wrong)
        tab.page.click("[data-do=test]")
        tab.said("test image", "0 … 296")
        assert tab.page.input_value(field) == wrong
    assert "No image" in tab.page.inner_text("[data-open]")
    tab.part("Generate")
    tab.page.fill("[aria-label='temperature, prior']", "-1")
    tab.do("sample")
    tab.said("temperature, prior", "0.001 or more")


@browsing
def test_generate_draws_varies_and_blends(tab, opened):
    tab.open(4)
    tab.part("Generate")
    tab.page.fill("[aria-label='images']", "3")
    tab.page.fill("[aria-label='temperature, prior']", "0.5")
    tab.do("sample")
    own = opened.model.settings.draws()
    sampling = vqstack.SamplingSettings(
        temperature=(0.5, *(draw.temperature for draw in own[1:])), mean=tuple(draw.mean for draw in own)
    )
    wanted = Edited.gallery(opened.model, 3, sampling=sampling)
    for number, image in enumerate(wanted):
        tab.picture(f"[data-made='{number}']", pictures.of_input(opened.model, image.pixels))
        assert f"{sum(image.bits.values()):,.0f} bits" in tab.page.inner_text(f"[data-made='{number}']")
    start = opened.image(4)
    tab.do("vary")
    tab.picture("[data-made='7']", pictures.of_input(opened.model, start.varied(1, number=7).pixels))
    tab.do("blend")
    blended = start.blended(opened.image(1), [0.5, 0.0], seed=3)
    tab.picture("[data-made='3']", pictures.of_input(opened.model, blended.pixels))
    tab.take(3)
    tab.picture("[data-edited]", pictures.of_input(opened.model, blended.pixels))
    names = {}
    exec(tab.download("python").decode(), names)
    assert torch.equal(names["image"].pixels, blended.pixels)


@browsing
def test_codebooks_say_how_codes_are_used(tab, opened):
    tab.part("Codebooks")
    tab.do("count")
    use = vqstack.use_of_codes(opened.model, opened.split.part(slice(0, 1000)).pixels, 1)
    used = (use.counts > 0).float().mean()
    assert f"{used:.1%} of 8 codes used" in tab.text("[data-use]", "perplexity")
    share = round(100 * int(use.counts[5]) / int(use.counts.sum()), 2)
    rows = [row.split() for row in tab.page.locator("[data-uses] tbody tr").all_inner_texts()]
    assert ["5", str(int(use.counts[5])), f"{share:g}"] in rows
    tab.site("codebook of level 1", 0, 5, 1, 8)
    assert f"code 5: {int(use.counts[5])} of {int(use.counts.sum())}" in tab.text("[data-code-use]", "code 5")


@browsing
def test_compress_gives_files_both_ways_and_shows_their_beginnings(tab, opened, tmp_path):
    paths = [tmp_path / "mine.png", tmp_path / "yours.png"]
    for path, pixels in zip(paths, opened.split.part(slice(6, 8)).pixels, strict=True):
        save_png(pixels, path, 17)
    tab.part("Compress")
    tab.page.set_input_files("[data-drop] input[type=file]", paths)
    made = files.Compressed(BlockCodec(opened.model), {path: path.stem for path in paths})
    said = tab.text("[data-size]", "bytes")
    assert f"{len(made.content):,} compressed" in said
    tab.text("[data-level]", "exact")
    assert tab.download("compressed") == made.content
    back = zipfile.ZipFile(io.BytesIO(tab.download("back")))
    for path in paths:
        assert Image.open(io.BytesIO(back.read(path.name))).tobytes() == Image.open(path).tobytes()
    (tmp_path / "both.vqs").write_bytes(made.content)
    tab.page.set_input_files("[data-drop] input[type=file]", tmp_path / "both.vqs")
    tab.text("[data-size]", f"^1 files.*{len(made.content):,} bytes as given, {len(made.content):,} compressed")
    assert tab.download("compressed") == made.content
    slider = tab.page.locator("[data-bytes]").bounding_box()
    tab.page.mouse.click(slider["x"] + 0.97 * slider["width"], slider["y"] + slider["height"] / 2)
    size = int(re.findall("^[0-9,]+", tab.text("[data-level]", "guessed|few"))[0].replace(",", ""))
    found = made.beginning(size)
    assert found[1].level and size < len(made.content)
    tab.picture("[data-decoded='1']", pictures.of_input(opened.model, found[1].pixels[None]))


@browsing
def test_wrong_and_huge_files_are_refused_by_name(tab, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "huge.png").write_bytes(bytes(17 * 2**20))
    tab.page.set_input_files("[data-own] input[type=file]", tmp_path / "broken.png")
    tab.said("broken.png", "cannot be read")
    tab.page.set_input_files("[data-own] input[type=file]", tmp_path / "huge.png")
    tab.said("16 MB")
    (tmp_path / "broken.vqs").write_bytes(b"nothing")
    tab.part("Compress")
    tab.page.set_input_files("[data-drop] input[type=file]", tmp_path / "broken.vqs")
    tab.said("broken.vqs")
    tab.part("Edit")
    tab.do("resample")
    tab.said("choose sites first")


@browsing
def test_tabs_do_not_mix_and_one_closed_amid_work_harms_none(browser, address, tab, opened):
    other = Tab(browser, address, (390, 800))  # as narrow as a telephone
    tab.open(1)
    other.open(2)
    wide = other.page.evaluate("document.documentElement.scrollWidth")
    overflowing = other.page.evaluate(
        "() => [...document.querySelectorAll('*')].filter((e) => e.getBoundingClientRect().right > 391)"
        ".map((e) => e.outerHTML.slice(0, 120))"
    )
    assert wide <= 390, overflowing
    for part in page.PARTS[1:]:
        other.part(part)
        other.page.wait_for_timeout(200)
        beyond = other.page.evaluate(
            "() => [...document.querySelectorAll('.q-tab-panel input, .q-tab-panel button')]"
            ".filter((e) => e.getBoundingClientRect().right > 391).map((e) => e.outerHTML.slice(0, 120))"
        )
        assert beyond == []
    other.page.click("[data-do=drawn]")
    other.close()
    tab.part("Edit")
    tab.page.click("text=whole map")
    tab.do("resample")
    expected = opened.image(1).resampled(2, seed=0)
    tab.picture("[data-edited]", pictures.of_input(opened.model, expected.pixels))


@browsing
def test_everything_has_a_name_for_who_cannot_see_it(tab):
    tab.open(0)
    for part in page.PARTS:
        tab.part(part)
        nameless = tab.page.evaluate(
            """() => [...document.querySelectorAll('button, input, [role=button], [role=application], [role=slider]')]
                .filter((e) => e.offsetParent && e.tabIndex >= 0 && !(e.innerText || e.ariaLabel || e.labels?.length
                    || e.closest('[aria-label], label')))
                .map((e) => e.outerHTML.slice(0, 200))"""
        )
        assert nameless == []


SIGNALS = {
    "sound": ((1, 64), [(16,), (4,)], {"rate": 8000}, {}),
    "volume": ((1, 4, 4, 4), [(2, 2, 2), (1, 1, 1)], {}, {}),
    "video": ((3, 4, 8, 8), [(2, 2, 2), (1, 1, 1)], {"rate": 5}, {}),
    "two codes": ((3, 4, 4), [(2, 2), (1, 1)], {}, {"kind": "residual", "codes": 2}),
}


@browsing
@pytest.mark.parametrize("kind", SIGNALS)
def test_signals_of_other_kinds_are_shown_and_edited(browser, kind, tmp_path):
    model = untrained(tmp_path / "model", *SIGNALS[kind])
    with served(tmp_path / "model") as address:
        tab = Tab(browser, address)
        tab.do("drawn")
        image = Edited.drawn(model)
        tab.picture("[data-image]", pictures.of_input(model, image.pixels))
        assert (tab.page.locator("audio >> visible=true").count() == 1) == (kind == "sound")
        if kind == "video":
            clip = tab.page.get_attribute("[data-clip] img >> nth=0", "src")
            frames = ImageSequence.Iterator(Image.open(io.BytesIO(base64.b64decode(clip.partition(",")[2]))))
            wanted = [pictures.of_input(model, frame[None]) for frame in image.pixels[0].unbind(1)]
            assert all(np.array_equal(one.convert("RGB"), other) for one, other in zip(frames, wanted, strict=True))
        nats = model.code_lengths_by_site(image.pixels, list(image.codes))
        heat = bits_picture(image, 0, nats["level-1"] * BITS)
        if kind == "two codes":
            heat = heat.resize((256, 256), Image.Resampling.NEAREST)
        tab.picture(tab.board("bits of every site") if kind == "two codes" else "[data-heat]", heat)
        tab.part("Edit")
        tab.page.click("[aria-label=map] >> text=z_1")
        tab.page.click("[data-do=keep]")
        tab.page.click("text=whole map")
        tab.do("resample")
        changed = image.resampled(1)
        tab.picture("[data-edited]", pictures.of_input(model, changed.pixels))
        tab.text("[data-other]", "the other image: sample, seed 0")
        tab.do("copy")  # the codes of the image that was kept
        tab.picture("[data-edited]", pictures.of_input(model, changed.copied(1, image.codes[0]).pixels))
        tab.part("Codebooks")
        tab.do("count")
        tab.text("[data-use]", "perplexity")
        tab.close()


@browsing
def test_floats_that_a_model_is_given_come_from_a_file(browser, tmp_path):
    given = {"condition": {"kind": "vector", "name": "numbers", "shape": [3]}, "prior": {"condition": True}}
    model = untrained(tmp_path / "model", (1, 4, 4), [(2, 2), (1, 1)], **given)
    told = torch.tensor([[0.5, -1.0, 2.0]])
    np.save("told.npy", told[0].numpy())
    with served(tmp_path / "model") as address:
        tab = Tab(browser, address)
        tab.do("drawn")
        tab.said("is given")
        tab.part("Generate")
        tab.page.set_input_files("[data-condition] input[type=file]", tmp_path / "told.npy")
        tab.text("[data-given]", "told.npy")
        tab.do("sample")
        wanted = Edited.gallery(model, 8, condition=told, sampling=model.settings.sampling)[7]
        tab.picture("[data-made='7']", pictures.of_input(model, wanted.pixels))
        tab.take(7)
        tab.picture("[data-edited]", pictures.of_input(model, wanted.pixels))
        names = {}
        exec(tab.download("python").decode(), names)
        assert torch.equal(names["image"].pixels, wanted.pixels)
        tab.close()


@browsing
def test_a_text_that_a_model_is_given_is_written_in(browser, tmp_path):
    text = {"name": str(text_encoder(tmp_path / "encoder")), "length": 8}
    given = {"condition": {"kind": "vector", "name": "caption", "shape": [8], "text": text}}
    model = untrained(tmp_path / "model", (1, 4, 4), [(2, 2), (1, 1)], **given, prior={"condition": True})
    with served(tmp_path / "model") as address:
        tab = Tab(browser, address)
        tab.part("Generate")
        tab.page.fill("[aria-label=text]", "a red square")
        tab.text("[data-given]", "given: a red square")
        tab.do("sample")
        told = torch.from_numpy(encode_texts(TextSettings(**text), ["a red square"]))
        wanted = Edited.gallery(model, 8, condition=told, sampling=model.settings.sampling)[7]
        tab.picture("[data-made='7']", pictures.of_input(model, wanted.pixels))
        tab.close()


def test_a_model_that_is_replaced_says_so(run, tmp_path):
    def alone(work):
        with ThreadPoolExecutor(1) as pool:  # the browser's own loop runs in this thread
            return pool.submit(asyncio.run, opened.compute(work)).result()

    copy = tmp_path / "model"
    shutil.copytree(run / "model", copy)
    opened = Opened(copy)
    assert alone(lambda: 7) == 7
    refused(lambda: opened.image(0), "test images")  # it came without its run
    drawn = opened.use(1)
    assert drawn.counts.sum() == 64 * 16
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    refused(lambda: alone(lambda: 7), "has changed", "again")


def test_a_port_that_is_taken_is_refused():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused(lambda: page.free_port("127.0.0.1", taken.getsockname()[1]), "--port")
    assert page.free_port("127.0.0.1", 0) > 0


def test_maps_of_any_number_of_axes_have_places():
    assert pictures.laid_out((5,)) == (1, 5) and pictures.laid_out((70,)) == (3, 32)
    assert pictures.laid_out((4, 6)) == (4, 6) and pictures.laid_out((2, 4, 6)) == (8, 6)
    assert pictures.laid_out((3, 4, 6), chain=True) == (12, 6)
