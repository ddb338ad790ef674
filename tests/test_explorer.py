"""The page of ``vqstack explore``, used in a real browser by clicks and keys, and checked by what the model says."""

import asyncio
import base64
import gzip
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from browsing import CHROMIUM, ENDLESS, QUIET, Tab, served
from helpers import TINY, refused, text_encoder, untrained
from PIL import Image, ImageSequence

import vqstack
from vqstack import Edited
from vqstack.codec.blocks import BlockCodec
from vqstack.images import save_png
from vqstack.texts import encode_texts

pytest.importorskip("nicegui", reason="the page needs nicegui: pip install 'vqstack[explore]'")
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="a browser is driven by playwright: pip install playwright"
)

from vqstack.explorer import files, page, pictures  # noqa: E402
from vqstack.explorer.look import bits_picture, map_picture  # noqa: E402
from vqstack.explorer.opened import Opened, Stopped  # noqa: E402
from vqstack.ledger import BITS  # noqa: E402

browsing = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is here: make browser installs Debian's")
SMALL = ((1, 4, 4), [(2, 2), (1, 1)])
KINDS = {
    "sound": ((1, 64), [(16,), (4,)], {"rate": 8000}, {}),
    "volume": ((1, 4, 4, 4), [(2, 2, 2), (1, 1, 1)], {}, {}),
    "video": ((3, 4, 8, 8), [(2, 2, 2), (1, 1, 1)], {"rate": 5}, {}),
    "codes": ((3, 4, 4), [(2, 2), (1, 1)], {}, {"kind": "residual", "codes": 2}),
}


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
def models(tmp_path_factory):
    """Models with random weights by their names, which are also the names of their pages, and where they lie."""
    folder = tmp_path_factory.mktemp("models")
    text = {"name": str(text_encoder(folder / "encoder")), "length": 8}
    floats = {"kind": "vector", "name": "numbers", "shape": [3]}
    caption = {"kind": "vector", "name": "caption", "shape": [8], "text": text}
    made = {kind: untrained(folder / kind, *given) for kind, given in KINDS.items()}
    made["floats"] = untrained(folder / "floats", *SMALL, condition=floats, prior={"condition": True})
    made["text"] = untrained(folder / "text", *SMALL, condition=caption, prior={"condition": True})
    led = {"level": 2, "depth": 1, "dim": 8, "heads": 2, "labels": True, "label_dropout": 0.1}
    drawn = {"width": 8, "least_width": 4, "perceptual": "none"}
    made["rendered"] = untrained(folder / "rendered", *SMALL, renderer=drawn)
    made["led"] = untrained(folder / "led", *SMALL, classes=3, refiners=[led], prior={"label_dropout": 0.0})
    return folder, made


@pytest.fixture(scope="module")
def address(run, models):
    folder, made = models
    with served(run, [folder / name for name in made]) as found:
        yield found


@pytest.fixture(scope="module")
def window():
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET).new_context()


@pytest.fixture(scope="module")
def shared():
    """The tab that tests use one after the other, and how many had failed when it was opened."""
    return {}


@pytest.fixture
def tab(window, address, shared, request):
    """A tab in which others may have worked before, but for tests that failed."""
    failed = request.session.testsfailed
    if shared.get("failed") != failed:
        if "tab" in shared:
            shared["tab"].close()  # and with it what it may still compute
        shared.update(tab=Tab(window, address), failed=failed)
    return shared["tab"]


@pytest.fixture
def visit(window, address):
    """Opens more tabs, of other models too; they are closed in the end."""
    made = []

    def opened(name="", size=(1400, 1000)):
        made.append(Tab(window, f"{address}/{name}", size))
        return made[-1]

    yield opened
    for one in made:
        one.close()


EDITED = "edit z_1"


@browsing
def test_numbers_that_do_not_fit_are_refused_and_stay(tab):
    field, before = "[aria-label='test image'] >> nth=0", tab.page.inner_text("[data-open]")
    for wrong in ("297", "-1", "1.5", ""):
        tab.page.fill(field, wrong)
        tab.press("test")
        tab.said("test image", "0 … 296")
        assert tab.page.input_value(field) == wrong
    assert tab.page.inner_text("[data-open]") == before
    tab.page.fill("[aria-label=seed] >> nth=0", str(2**53 + 1))  # a browser makes it another number
    tab.press("drawn")
    tab.said("seed", "0 … 9007199254740991")
    assert tab.page.inner_text("[data-open]") == before
    tab.page.fill("[aria-label=seed] >> nth=0", "0")
    tab.part("Generate")
    tab.page.fill("[aria-label='temperature, prior']", "-1")
    tab.press("sample")
    tab.said("temperature, prior", "0.001 or more")


@browsing
def test_look_shows_every_map_what_it_keeps_and_the_bits_of_every_site(tab, opened):
    tab.part("Look")
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
    tab.page.wait_for_selector(f"text=site 3 5: {here:.2f} of")
    rows = [row.split() for row in tab.page.locator("tbody tr").all_inner_texts()]
    total = sum(image.bits.values())
    for row, shown in [*image.bits.items(), ("total", total)]:
        assert [row, f"{shown:,.2f}", f"{shown / total:.1%}"] in rows
    tab.site("codes of level 1", 2, 1, 4, 4, button=False)
    said = tab.text("[data-told]", "site 2 1.*looked at")
    bits = float(nats["level-2"][0, 2, 1]) * BITS
    assert f"code {int(image.codes[0][0, 2, 1])}, {bits:.2f} bits" in said


@browsing
def test_edit_does_what_the_calls_do_and_its_lines_make_the_image_again(tab, opened, run):
    tab.edit(5, "z_1", [(0, 1, 4, 4)])
    tab.page.keyboard.press("ArrowDown")  # the board has the keys now
    tab.page.keyboard.press("Space")
    assert f"code {int(opened.image(5).codes[0][0, 1, 1])}" in tab.text("[data-here]", "site 1 1")
    tab.text("[data-count]", "2 of 16")
    tab.do("resample")
    expected = start = opened.image(5)
    expected = expected.resampled(1, [(0, 1), (1, 1)], seed=0)
    tab.picture("[data-edited]", pictures.of_input(opened.model, expected.pixels))

    tab.site(EDITED, 1, 1, 4, 4)
    tab.text("[data-count]", "1 of 16")
    tab.do("choices")
    second = expected.choices(1, (0, 1))[1]
    tab.page.wait_for_selector("[data-code]")
    assert tab.page.locator("[data-code]").all_inner_texts()[1] == f"{second.code}: {second.probability:.1%}"
    tab.page.click(f"[data-code='{second.code}']")
    expected = expected.placed(1, {(0, 1): second.code})
    tab.picture("[data-edited]", pictures.of_input(opened.model, expected.pixels))

    tab.whole()
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
    tab.press("undo")
    tab.picture("[data-edited]", pictures.of_input(opened.model, before.pixels))
    tab.press("redo")
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
def test_a_rectangle_of_pixels_is_drawn_again(tab, opened):
    tab.edit(2, "image")
    tab.page.click("text=rectangle")
    tab.drag("edit image", (0, 0), (1, 2), 8, steps=4)
    tab.text("[data-count]", "6 of 64")
    tab.page.click("text=brush")
    tab.do("resample")
    sites = [(0, row, column) for row in range(2) for column in range(3)]
    expected = opened.image(2).resampled(0, sites, seed=0)
    tab.picture("[data-edited]", pictures.of_input(opened.model, expected.pixels))


@browsing
def test_a_quick_brush_leaves_no_gaps_and_a_kept_image_is_named_until_it_is_forgotten(tab, opened):
    tab.edit(3, "z_1")
    tab.press("keep")
    tab.open(2)
    tab.text("[data-other]", "the other image: test image 3")
    tab.drag(EDITED, (0, 0), (3, 3), 4, steps=1)
    tab.text("[data-count]", "4 of 16")
    tab.whole()
    tab.do("copy")
    kept = opened.image(2).copied(1, opened.image(3).codes[0])
    tab.picture("[data-edited]", pictures.of_input(opened.model, kept.pixels))
    tab.press("forget")
    other = "[aria-label='test image'] >> visible=true >> nth=1"
    tab.page.fill(other, "7")
    tab.do("copy")
    copied = kept.copied(1, opened.image(7).codes[0])
    tab.picture("[data-edited]", pictures.of_input(opened.model, copied.pixels))
    tab.page.fill(other, "1")


@browsing
def test_keys_choose_rectangles_and_undo(tab, opened):
    tab.edit(2, "z_1", [(0, 0, 4, 4), (0, 0, 4, 4)])  # chosen and given up: the keys are there
    tab.text("[data-count]", "no site")
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
    changed = f"open: test image 2, class {int(start.labels)}, 1 change"
    assert tab.text("[data-open]", "1 change") == changed
    tab.open(3)  # which loses nothing
    assert not tab.page.locator("[data-board='overview of level 1'] rect").count()  # and has been changed nowhere
    tab.press("undo")
    assert tab.text("[data-open]", "1 change") == changed
    tab.picture("[data-edited]", pictures.of_input(opened.model, expected.pixels))
    tab.press("redo")
    tab.text("[data-open]", "test image 3")


@browsing
def test_what_is_computed_is_stopped_and_what_was_done_is_kept(tab, opened):
    tab.edit(4, "z_2")
    tab.whole()
    tab.seed(ENDLESS)
    tab.press("resample")
    tab.computing()
    tab.press("stop")
    tab.said("stopped", "as it was")
    tab.picture("[data-edited]", pictures.of_input(opened.model, opened.image(4).pixels))
    tab.seed(0)
    tab.do("resample")
    tab.picture("[data-edited]", pictures.of_input(opened.model, opened.image(4).resampled(2).pixels))

    tab.part("Generate")
    tab.page.fill("[aria-label='images']", "20")
    tab.page.fill("[aria-label='temperature, prior']", "1")
    tab.seed(ENDLESS)
    tab.press("sample")
    tab.page.wait_for_selector("[data-made='7']")
    tab.press("stop")
    tab.said("stopped", "8 of 20 images")
    assert tab.page.locator("[data-made]").count() == 8


@browsing
def test_generate_draws_varies_and_blends(tab, opened):
    tab.part("Generate")
    tab.open(4)
    assert not tab.page.locator("[aria-label='guidance, prior']").count()  # it never learned to do without labels
    tab.page.fill("[aria-label='images']", "3")
    tab.page.fill("[aria-label='temperature, prior']", "0.5")
    tab.seed(0)
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
    tab.page.click("[data-made='3']")
    tab.picture("[data-edited]", pictures.of_input(opened.model, blended.pixels))
    names = {}
    exec(tab.download("python").decode(), names)
    assert torch.equal(names["image"].pixels, blended.pixels)


@browsing
def test_pictures_come_from_the_decoder_that_is_chosen(visit, models):
    """What is drawn, looked at, offered and changed; the lines make it again, bits stay those of the likelihood."""
    model, tab = models[1]["rendered"], visit("rendered")
    image = Edited.drawn(model, 3)
    tab.page.fill("[aria-label=seed] >> nth=0", "3")
    tab.do("drawn", 2)
    tab.picture("[data-image]", pictures.of_input(model, image.pixels))
    tab.page.click("label:has-text('pixels by')")
    tab.page.click(".q-menu >> text=renderer")
    for level in (1, 2):
        kept = model.decode(image.map(level), level, decoder="renderer")
        tab.picture(f"[data-kept='{level}']", pictures.of_input(model, kept))
    tab.picture("[data-image]", pictures.of_input(model, image.pixels))  # it stays as it was drawn
    image = Edited.drawn(model, 3, decoder="renderer")
    tab.do("drawn", 2)
    assert "pixels by the renderer" in tab.page.inner_text("[data-open]")
    tab.picture("[data-image]", pictures.of_input(model, model.render(image.codes[0])))
    rows = [row.split() for row in tab.page.locator("tbody tr").all_inner_texts()]
    assert ["total", f"{sum(image.bits.values()):,.2f}", "100.0%"] in rows
    tab.part("Edit")
    tab.page.click("[aria-label=map] >> text=z_1")
    tab.site(EDITED, 0, 1, 2, 2)
    tab.do("choices")
    second = image.choices(1, (0, 1))[1]
    tab.page.click(f"[data-code='{second.code}']")
    image = image.placed(1, {(0, 1): second.code})
    tab.picture("[data-edited]", pictures.of_input(model, image.pixels))
    tab.page.click("[aria-label=map] >> text=image")
    tab.site("edit image", 0, 0, 4, 4)
    tab.do("resample")
    tab.said("the renderer draws no pixels")
    names = {}
    exec(tab.download("python").decode(), names)
    assert torch.equal(names["image"].pixels, image.pixels)
    tab.part("Generate")
    tab.do("vary")
    varied = [image.varied(1, seed=0, number=n) for n in range(2)]
    assert torch.equal(varied[0].pixels, varied[1].pixels)  # the renderer draws no lots
    tab.page.click("[data-made='1']")
    tab.picture("[data-edited]", pictures.of_input(model, varied[1].pixels))
    tab.page.reload()
    tab.page.wait_for_selector("text=renderer >> visible=true")  # the choice is kept, too


@browsing
def test_guidance_is_offered_where_it_leads(visit, models):
    model, tab = models[1]["led"], visit("led")
    tab.part("Generate")
    assert not tab.page.locator("[aria-label='guidance, prior'], [aria-label='guidance, level 1']").count()
    tab.page.fill("[aria-label='guidance, level 2']", "3")
    tab.do("sample")
    wanted = Edited.gallery(model, 8, sampling=vqstack.SamplingSettings(guidance=(1, 3, 1)))
    tab.picture("[data-made='7']", pictures.of_input(model, wanted[7].pixels))


def test_guidance_leads_where_the_settings_say_and_is_refused_elsewhere(models):
    model = deepcopy(models[1]["led"])
    for weights in model.parameters():  # transformers start with an output of zeros
        weights.data.add_(0.3 * torch.randn(weights.shape))
    plain, led = model.sample(8).codes[1], []
    for part in range(3):
        sampling = vqstack.SamplingSettings(guidance=tuple(9.0 if number == part else 1.0 for number in range(3)))
        try:
            led.append(not torch.equal(model.sample(8, sampling=sampling).codes[1], plain))
        except vqstack.InputError:
            led.append(False)
    assert model.settings.guided == led == [False, True, False]


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
    image = use.places(5, 6)[-1][0]
    tab.page.click(f"[aria-label='image {image}']")
    tab.text("[data-open]", f"test image {image},")
    tab.page.wait_for_selector("[data-tab=Look][aria-selected=true]")
    tab.part("Codebooks")
    tab.page.click("[aria-label=level] >> text=z_2")
    tab.text("[data-use]", "^z_2:")
    assert tab.page.locator("[data-board='codebook of level 2']").count()
    assert not tab.page.locator("[data-code-use]").count()  # it was one of z_1
    tab.page.click("[aria-label=level] >> text=z_1")
    tab.text("[data-use]", "^z_1:")


def compressed(model, paths):
    """What the page makes of files."""
    return files.Compressed(BlockCodec(model), {path: path.stem for path in paths}, lambda path: None)


@browsing
def test_compress_gives_files_both_ways_and_shows_their_beginnings(tab, opened, tmp_path):
    paths = [tmp_path / "mine.png", tmp_path / "yours.png"]
    for path, pixels in zip(paths, opened.split.part(slice(6, 8)).pixels, strict=True):
        save_png(pixels, path, 17)
    tab.part("Compress")
    shutil.copy(paths[0], tmp_path / "endless.png")
    tab.give("data-drop", tmp_path / "endless.png")
    tab.computing()
    tab.page.keyboard.press("Escape")
    tab.said("stopped", "as it was")
    tab.give("data-drop", paths)
    made = compressed(opened.model, paths)
    said = tab.text("[data-size]", "bytes")
    assert f"{len(made.content):,} compressed" in said and said.startswith("mine.png, yours.png: ")
    tab.text("[data-level]", "exact")
    rows = [row.split() for row in tab.page.locator("[aria-label='bytes by row'] tbody tr").all_inner_texts()]
    assert sum(float(row[-1].replace(",", "")) for row in rows) == pytest.approx(len(made.content), abs=0.3)
    assert tab.download("compressed") == made.content
    back = zipfile.ZipFile(io.BytesIO(tab.download("back")))
    for path in paths:
        assert Image.open(io.BytesIO(back.read(path.name))).tobytes() == Image.open(path).tobytes()
    (tmp_path / "both.vqs").write_bytes(made.content)
    tab.give("data-drop", tmp_path / "both.vqs")
    tab.text("[data-size]", f"^both.vqs:.*{len(made.content):,} bytes as given, {len(made.content):,} compressed")
    assert tab.download("compressed") == made.content
    slider = tab.page.locator("[data-bytes]")
    box = slider.bounding_box()
    slider.click(position={"x": 0.97 * box["width"], "y": box["height"] / 2})  # waits until it stands still
    size = int(re.findall("^[0-9,]+", tab.text("[data-level]", "guessed|few"))[0].replace(",", ""))
    found = made.beginning(size)
    assert found[1].level and size < len(made.content)
    tab.picture("[data-decoded='1']", pictures.of_input(opened.model, found[1].pixels[None]))


@browsing
def test_wrong_and_huge_files_are_refused_by_name(tab, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "huge.png").write_bytes(bytes(17 * 2**20))
    tab.give("data-own", tmp_path / "broken.png")
    tab.said("broken.png", "cannot be read")
    tab.give("data-own", tmp_path / "huge.png")
    tab.said("16 MB")
    (tmp_path / "broken.vqs").write_bytes(b"nothing")
    tab.part("Compress")
    tab.give("data-drop", tmp_path / "broken.vqs")
    tab.said("broken.vqs")


@browsing
def test_everything_has_a_name_for_who_cannot_see_it(tab):
    for part in page.PARTS:
        tab.part(part)
        nameless = tab.page.evaluate(
            """() => [...document.querySelectorAll('button, input, [role=button], [role=application], [role=slider]')]
                .filter((e) => e.offsetParent && e.tabIndex >= 0 && !(e.innerText || e.ariaLabel || e.labels?.length
                    || e.closest('[aria-label], label')))
                .map((e) => e.outerHTML.slice(0, 200))"""
        )
        assert nameless == []


@browsing
def test_a_page_that_is_loaded_again_has_its_image_and_its_past_and_shares_them_with_none(visit, opened):
    tab = visit()
    tab.part("Edit")
    tab.press("resample")
    tab.said("choose sites first")
    tab.open(3)
    tab.whole()
    tab.do("resample")
    tab.page.reload()
    tab.text("[data-open]", "test image 3, class [0-9], 1 change")
    changed = opened.image(3).resampled(2, seed=0)
    tab.picture("[data-edited]", pictures.of_input(opened.model, changed.pixels))
    tab.press("undo")
    tab.picture("[data-edited]", pictures.of_input(opened.model, opened.image(3).pixels))
    assert "No image" in visit(size=(390, 800)).page.inner_text("[data-open]")


@browsing
def test_a_narrow_tab_shows_all_and_what_it_computes_ends_with_it(visit, tab, opened):
    other = visit(size=(390, 800))  # as narrow as a telephone
    tab.edit(1, "z_2")
    other.open(2)
    wide = other.page.evaluate("document.documentElement.scrollWidth")
    overflowing = other.page.evaluate(
        "() => [...document.querySelectorAll('*')].filter((e) => e.getBoundingClientRect().right > 391)"
        ".map((e) => e.outerHTML.slice(0, 120))"
    )
    assert wide <= 390, overflowing
    for part in page.PARTS[:0:-1]:
        other.part(part)
        other.page.wait_for_selector(f"[data-tab={part}][aria-selected=true]")
        beyond = other.page.evaluate(
            "() => [...document.querySelectorAll('.q-tab-panel input, .q-tab-panel button')]"
            ".filter((e) => e.getBoundingClientRect().right > 391).map((e) => e.outerHTML.slice(0, 120))"
        )
        assert beyond == []
    other.whole()
    other.seed(ENDLESS)
    other.press("resample")
    other.computing()
    tab.whole()
    tab.press("resample")
    tab.said("another tab is computing")
    other.close()  # before that nothing of this tab is computed, and of the other nothing comes to an end
    expected = opened.image(1).resampled(2, seed=0)
    tab.picture("[data-edited]", pictures.of_input(opened.model, expected.pixels))


@browsing
@pytest.mark.parametrize("kind", KINDS)
def test_signals_of_other_kinds_are_shown_and_edited(visit, models, kind, tmp_path):
    model, tab = models[1][kind], visit(kind)
    tab.do("drawn", 2)
    image = Edited.drawn(model)
    tab.picture("[data-image]", pictures.of_input(model, image.pixels))
    heard = tab.page.locator("audio >> visible=true")
    if kind == "sound":  # what each level keeps, and all of it
        kept = [pictures.heard(model, model.decode(image.map(level), level)) for level in (2, 1)]
        sources = heard.evaluate_all("(found) => found.map((one) => one.src)")
        assert sources == [*kept, pictures.heard(model, image.pixels)]
    else:
        assert not heard.count()
    if kind == "video":
        clip = tab.page.get_attribute("[data-clip='the video'] img >> nth=0", "src")
        frames = ImageSequence.Iterator(Image.open(io.BytesIO(base64.b64decode(clip.partition(",")[2]))))
        wanted = [pictures.of_input(model, frame[None]) for frame in image.pixels[0].unbind(1)]
        assert all(np.array_equal(one.convert("RGB"), other) for one, other in zip(frames, wanted, strict=True))
    nats = model.code_lengths_by_site(image.pixels, list(image.codes))
    heat = bits_picture(image, 0, nats["level-1"] * BITS)
    if kind == "codes":
        heat = heat.resize((256, 256), Image.Resampling.NEAREST)
    tab.picture(tab.board("bits of every site") if kind == "codes" else "[data-heat]", heat)
    tab.part("Edit")
    tab.page.click("[aria-label=map] >> text=z_1")
    tab.press("keep")
    tab.whole()
    tab.do("resample")
    changed = image.resampled(1)
    tab.picture("[data-edited]", pictures.of_input(model, changed.pixels))
    tab.text("[data-other]", "the other image: sample, seed 0")
    if kind == "video":
        downloaded = tab.download("image")
    tab.do("copy")  # the codes of the image that was kept
    tab.picture("[data-edited]", pictures.of_input(model, changed.copied(1, image.codes[0]).pixels))
    tab.part("Codebooks")
    tab.do("count")
    tab.text("[data-use]", "perplexity")
    if kind == "codes":  # two codebooks of six
        tab.site("codebook of level 1", 0, 7, 1, 12)
        tab.text("[data-code-use]", "^code 1 of codebook 1:")
    if kind == "volume":
        volumes_come_back(tab, tmp_path)
    if kind == "video":
        tab.part("Compress")
        for name, content in (("mine.mkv", downloaded), ("other.mkv", downloaded + b"\0")):
            (tmp_path / name).write_bytes(content)
        tab.give("data-drop", tmp_path / "mine.mkv")
        tab.text("[data-level]", "exact")
        assert tab.download("back") == downloaded
        tab.give("data-drop", tmp_path / "other.mkv")
        tab.said("other.mkv", ".npy of 3x4x8x8")


def volumes_come_back(tab, folder):
    """Two scans, one of them zipped, and pages of a TIFF: none of the size that the model knows."""
    numbers = np.random.default_rng(0).integers(0, 16, (3, 5, 3, 6)).astype(np.uint8)
    for name, volume in (("scan.nii", numbers[0]), ("zipped.nii.gz", numbers[1])):
        nibabel.Nifti1Image(volume, np.diag([2.0, 2.0, 3.0, 1.0])).to_filename(folder / name)
    first, *others = (Image.fromarray(page) for page in numbers[2])
    first.save(folder / "pages.tif", save_all=True, append_images=others)
    given = {path.name: path.read_bytes() for path in folder.iterdir()}
    tab.part("Compress")
    tab.give("data-drop", [folder / name for name in given])
    tab.text("[data-level]", "exact")
    back = zipfile.ZipFile(io.BytesIO(tab.download("back")))
    assert {*back.namelist()} == {*given} and back.read("scan.nii") == given["scan.nii"]
    assert gzip.decompress(back.read("zipped.nii.gz")) == gzip.decompress(given["zipped.nii.gz"])
    pages = [np.asarray(page) for page in ImageSequence.Iterator(Image.open(io.BytesIO(back.read("pages.tif"))))]
    assert np.array_equal(pages, numbers[2])


@browsing
def test_floats_that_a_model_is_given_come_from_a_file(visit, models, tmp_path):
    model, tab = models[1]["floats"], visit("floats")
    told = torch.tensor([[0.5, -1.0, 2.0]])
    np.save("told.npy", told[0].numpy())
    tab.press("drawn")
    tab.said("is given")
    tab.part("Generate")
    tab.give("data-condition", tmp_path / "told.npy")
    tab.text("[data-given]", "told.npy")
    tab.do("sample")
    wanted = Edited.gallery(model, 8, condition=told, sampling=model.settings.sampling)[7]
    tab.picture("[data-made='7']", pictures.of_input(model, wanted.pixels))
    tab.page.click("[data-made='7']")
    tab.picture("[data-edited]", pictures.of_input(model, wanted.pixels))
    names = {}
    exec(tab.download("python").decode(), names)
    assert torch.equal(names["image"].pixels, wanted.pixels)


@browsing
def test_a_text_that_a_model_is_given_is_written_in(visit, models):
    model, tab = models[1]["text"], visit("text")
    tab.part("Generate")
    tab.page.fill("[aria-label=text]", "a red square")
    tab.text("[data-given]", "given: a red square")
    tab.do("sample")
    settings = model.settings.condition.text
    told = torch.from_numpy(encode_texts(settings, ["a red square"]))
    wanted = Edited.gallery(model, 8, condition=told, sampling=model.settings.sampling)[7]
    tab.picture("[data-made='7']", pictures.of_input(model, wanted.pixels))


def alone(opened, work, *wanted):
    """What comes of a computation; the browser's own loop runs in this thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, opened.compute(work, *wanted)).result()


def test_a_model_that_is_replaced_says_so(run, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(run / "model", copy)
    opened = Opened(copy)
    assert alone(opened, lambda: 7) == 7
    refused(lambda: opened.image(0), "test images")  # it came without its run
    drawn = opened.use(1)
    assert drawn.counts.sum() == 64 * 16
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    refused(lambda: alone(opened, lambda: 7), "has changed", "again")
    opened.end()  # the server does not wait for what is computed
    with pytest.raises(Stopped):
        alone(opened, lambda: 7)


def test_what_nobody_wants_ends_at_the_next_pass_and_leaves_no_trace(opened):
    image, passes = opened.image(0), []

    def wanted():
        passes.append(0)
        return len(passes) < 40

    with pytest.raises(Stopped):
        alone(opened, lambda: [image.resampled(1, seed=seed) for seed in range(100)], wanted)
    assert len(passes) == 40 and not opened.computing
    with pytest.raises(Stopped):  # nothing is begun that nobody wants
        alone(opened, lambda: passes.append(0), lambda: False)
    assert len(passes) == 40
    again = alone(opened, lambda: image.resampled(1, seed=3))
    assert torch.equal(again.pixels, Opened(opened.run).image(0).resampled(1, seed=3).pixels)


CLOSED = """
import asyncio, gc, sys, weakref
from pathlib import Path
from nicegui import Client, core, ui
from vqstack.explorer import page
from vqstack.explorer.opened import Opened

def closed():
    client = Client(ui.page("/closed"))
    with client:
        desk = page.build(opened, client)
    client.delete()
    return weakref.ref(desk)

async def left():
    core.loop = asyncio.get_running_loop()
    desk = closed()
    await asyncio.sleep(1.5)  # what sends to the browser looks once a second whether that is there
    gc.collect()
    return desk()

opened = Opened(Path(sys.argv[1]))
print(asyncio.run(left()))
"""


def test_a_closed_tab_leaves_nothing(run):
    kept = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    told = subprocess.run([sys.executable, "-c", CLOSED, run], env=kept, capture_output=True, text=True)
    assert told.stdout == "None\n", told


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


def test_the_address_that_the_relay_gives_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(page.app, "urls", {"http://127.0.0.1:8321", "https://relay.example/abc"})
    page.shared()
    assert capsys.readouterr().out == "https://relay.example/abc, for everybody who has this address\n"
