"""A browser as the tests of the page have it: its tabs, and what a person does and sees there."""

import base64
import io
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--no-first-run", "--disable-quic"]
ENDLESS = 77
"""A seed with which the page's server computes until it is stopped; a gallery from its second piece on."""
SERVER = f"""
import sys
from pathlib import Path

from vqstack import commands
from vqstack.edited import Edited
from vqstack.explorer import files, page
from vqstack.explorer.opened import Opened

def endless(work, meant):
    def repeated(*given, **named):
        while meant(*given, **named):
            work(*given, **named)
        return work(*given, **named)
    return repeated

Edited.resampled = endless(Edited.resampled, lambda *_, seed=0, **__: seed == {ENDLESS})
Edited.gallery = endless(Edited.gallery, lambda _, num, seed=0, first=0, *__, **___: seed == {ENDLESS} and first)
files.compress = endless(files.compress, lambda _, pictures, *__, **___: pictures.entries[0].stem == "endless")
run, *others = sys.argv[1:]
for folder in map(Path, others):
    page.register(Opened(folder), f"/{{folder.name}}")
sys.argv[1:] = ["explore", run, "--port", "0"]
commands.main()
"""


@contextmanager
def served(run, others=()):
    """The address of a run's page, served by a process of its own; below it pages of other models by their names."""
    pipe, kept = subprocess.PIPE, {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    server = subprocess.Popen(  # nicegui would take it for a test of its own
        [sys.executable, "-c", SERVER, run, *others], env={**kept, "OMP_NUM_THREADS": "1"}, stdout=pipe, stderr=pipe,
        text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        _, complaints = server.communicate(timeout=60)
    assert "Traceback" not in complaints, complaints


class Tab:
    """A tab of the browser. ``page`` is Playwright's."""

    def __init__(self, window, address, size=(1400, 1000)):
        self.page = window.new_page()
        self.page.set_viewport_size({"width": size[0], "height": size[1]})
        self.page.set_default_timeout(60_000)
        self.page.goto(address)
        self.page.wait_for_selector("[data-do=drawn]")

    def close(self):
        self.page.close()

    def part(self, name):
        self.page.click(f"[data-tab={name}]")

    # --- what is pressed, and what comes of it ------------------------------------------------------------------------

    def press(self, name):
        self.page.click(f"[data-do={name}] >> visible=true")

    def do(self, name, times=1):
        """Press what has something computed, so many times, and wait until that is over."""
        done = int(self.page.get_attribute("[aria-label=computing]", "data-done"))
        self.press(name)
        self.over(done + times)

    def over(self, done):
        """Wait until so many computations of this tab are over, and none goes on."""
        self.page.wait_for_function(
            "(done) => +document.querySelector('[aria-label=computing]').dataset.done >= done", arg=done
        )
        self.page.wait_for_selector("[aria-label=computing]", state="hidden")

    def computing(self):
        """Wait until something is computed."""
        self.page.wait_for_selector("[aria-label=computing]")

    def open(self, number):
        """A test image; the part that looks at images computes what each level keeps."""
        self.page.fill("[aria-label='test image'] >> nth=0", str(number))
        looked = self.page.get_attribute("[data-tab=Look]", "aria-selected") == "true"
        self.do("test", 1 + looked)

    def edit(self, number, level, sites=()):
        """A test image in the part that edits, as if nothing had been done there, with these sites of a map chosen."""
        self.part("Edit")
        self.open(number)
        self.page.click(f"[aria-label=map] >> text={level}")
        self.page.wait_for_selector(f"[data-board^='edit {level}']")
        self.page.click("text='none' >> visible=true")
        self.seed(0)
        for row, column, rows, columns in sites:  # the last has the keys then
            self.site(f"edit {level}", row, column, rows, columns)

    def seed(self, number):
        self.page.fill(
            "[aria-label=seed] >> visible=true >> nth=1", str(number)
        )  # the first is that of samples to open

    def whole(self):
        self.page.click("text=whole map >> visible=true")

    def board(self, name):
        return f"[data-board^='{name}']"

    def site(self, name, row, column, rows, columns, button=True):
        """Point at a site of a board, and press the mouse there."""
        self.page.locator(self.board(name)).scroll_into_view_if_needed()
        box = self.page.locator(self.board(name)).bounding_box()
        x, y = box["x"] + (column + 0.5) * box["width"] / columns, box["y"] + (row + 0.5) * box["height"] / rows
        self.page.mouse.move(x, y)
        if button:
            self.page.mouse.down()
            self.page.mouse.up()

    def drag(self, name, start, end, columns, steps):
        """Press the mouse at a site, and let it go at another one."""
        box = self.page.locator(self.board(name)).bounding_box()
        step = box["width"] / columns
        for (row, column), then in ((start, self.page.mouse.down), (end, self.page.mouse.up)):
            self.page.mouse.move(box["x"] + (column + 0.5) * step, box["y"] + (row + 0.5) * step, steps=steps)
            then()

    def give(self, hook, files):
        self.page.set_input_files(f"[{hook}] input[type=file]", files)

    def download(self, name):
        with self.page.expect_download() as waiting:
            self.press(name)
        return Path(waiting.value.path()).read_bytes()

    # --- what is seen -------------------------------------------------------------------------------------------------

    def picture(self, hook, wanted):
        """Wait until what is shown is the picture that is wanted, pixel by pixel."""
        wanted = np.asarray(wanted.convert("RGB"))
        for _ in range(300):
            source = self.page.get_attribute(f"{hook} img >> nth=-1", "src") or ""
            if source.startswith("data:"):
                found = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB")
                if found.size == wanted.shape[1::-1] and np.array_equal(np.asarray(found), wanted):
                    return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{hook} shows something else")

    def text(self, hook, pattern):
        """Wait until the text there matches."""
        self.page.wait_for_function(
            "([hook, pattern]) => new RegExp(pattern).test(document.querySelector(hook)?.textContent ?? '')",
            arg=[hook, pattern],
        )
        return self.page.inner_text(hook)

    def said(self, *words):
        """A word of the page to the person, the only one there is."""
        note = self.page.wait_for_selector(".q-notification").inner_text()
        assert all(word in note for word in words), note
        self.page.click(".q-notification button")
        self.page.wait_for_selector(".q-notification", state="detached")
