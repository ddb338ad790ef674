"""The pictures of docs/explorer.md: the page used by clicks in headless Chromium, and photographed.

    python benchmarks/explorer_stories.py RUN --out FOLDER --story look|digit|sky|bits [--image 3]

``look``: the part that looks, with a test image. ``digit``: the codes that the one site of the top map may have.
``sky``: the upper sites of the lowest map, drawn again with four seeds. ``bits``: where the bits of two images are.
"""

import argparse
import base64
import io
import shutil
import subprocess
import sys
from pathlib import Path

from explorer import BROWSERS
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from vqstack.ending import run_command


def settled(page: Page) -> None:
    """Wait until nothing is computed."""
    page.wait_for_timeout(400)
    page.wait_for_selector("[aria-label=computing]", state="hidden", timeout=120_000)
    page.wait_for_timeout(400)


def picture(page: Page, hook: str) -> Image.Image:
    """What the page shows there."""
    source = page.get_attribute(f"{hook} img >> nth=-1", "src") or ""
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB")


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Pictures in a row, a grey line between them."""
    height = max(one.height for one in pictures)
    sheet = Image.new("RGB", (sum(one.width + 4 for one in pictures) - 4, height), "gray")
    at = 0
    for one in pictures:
        sheet.paste(one, (at, 0))
        at += one.width + 4
    return sheet


def whole(page: Page, path: Path) -> None:
    """The page from its head to its end."""
    page.mouse.wheel(0, -100_000)  # the head stays in sight: else it would lie amid the picture
    page.wait_for_timeout(400)
    page.screenshot(path=str(path), full_page=True)


def look(page: Page, out: Path) -> None:
    whole(page, out / "explorer_look.png")


def digit(page: Page, out: Path) -> None:
    page.click("[data-tab=Edit]")
    page.click("text=whole map")
    page.click("[data-do=choices]")
    settled(page)
    whole(page, out / "explorer_digit.png")


def sky(page: Page, out: Path) -> None:
    page.click("[data-tab=Edit]")
    page.click("[aria-label=map] >> text=z_1")
    page.click("text=rectangle")
    box = page.locator("[data-board^='edit z_1']").bounding_box()
    assert box is not None
    site = box["width"] / 8
    page.mouse.move(box["x"] + site / 2, box["y"] + site / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 7.5 * site, box["y"] + 2.5 * site, steps=5)
    page.mouse.up()
    page.click("text=the likeliest codes, the mean of pixels")
    page.click("text=drawn as the model draws")
    shown = [picture(page, "[data-edited]")]
    for _ in range(4):
        page.click("[data-do=resample]")
        settled(page)
        shown.append(picture(page, "[data-edited]"))
        page.click("[data-do=undo]")
        page.wait_for_timeout(300)
    side_by_side(shown).save(out / "explorer_sky.png")


def bits(page: Page, out: Path) -> None:
    shown = [picture(page, "[data-image]"), picture(page, "[data-heat]")]
    levels = page.locator("[data-kept]").count()
    for level in range(1, levels + 1):
        page.click("[data-which]")
        page.click(f".q-menu >> text=z_{level}")
        settled(page)
        shown.append(picture(page, "[data-heat]"))
    side_by_side(shown).save(out / "explorer_bits.png")


STORIES = {"look": look, "digit": digit, "sky": sky, "bits": bits}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the pictures")
    parser.add_argument("--story", choices=STORIES, required=True)
    parser.add_argument("--image", type=int, default=3, help="number of the test image")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "vqstack", "explore", str(options.run), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=next(filter(None, map(shutil.which, BROWSERS))), args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page(viewport={"width": 1100, "height": 900})
            page.goto(address)
            page.fill("[aria-label='test image'] >> nth=0", str(options.image))
            page.click("[data-do=test]")
            settled(page)
            settled(page)
            STORIES[options.story](page, options.out)
    finally:
        server.terminate()


if __name__ == "__main__":
    run_command(main)
