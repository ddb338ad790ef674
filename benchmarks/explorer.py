"""How quick the page of ``vqstack explore`` is, and whether it grows.

    python benchmarks/explorer.py RUN [--edits 100] [--minutes 60] [--tabs 10]

Starts the page of a run, opens a test image, and draws one site of the lowest map again, over and over, by clicks in
headless Chromium. Prints the seconds to the page, the seconds of an edit (from the click until the line that says
"computing" is gone: median, 95th percentile), of ``codes for this site`` and of a whole map drawn again (medians of
five), with the processor seconds of the server beside them, and the server's memory after every 20 edits and after all
of them, with --tabs opened and closed on the way. With --minutes the edits are spread over so long.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
from playwright.sync_api import Page, sync_playwright

from vqstack.ending import run_command

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def do(page: Page, name: str, times: int = 1) -> float:
    """Seconds from pressing a button until what it has computed, so many times, is over."""
    done = int(page.get_attribute("[aria-label=computing]", "data-done") or 0) + times
    began = time.perf_counter()
    page.click(f"[data-do={name}]")
    over = "(done) => +document.querySelector('[aria-label=computing]').dataset.done >= done"
    page.wait_for_function(over, arg=done, timeout=120_000)
    return time.perf_counter() - began


def processor(process: psutil.Process) -> float:
    """Seconds that a process has computed."""
    spent = process.cpu_times()
    return spent.user + spent.system


def five(page: Page, process: psutil.Process, name: str) -> dict[str, float]:
    """Medians of five: seconds of what a button does, and processor seconds of the server."""
    seconds, spent = [], []
    for _ in range(5):
        before = processor(process)
        seconds.append(do(page, name))
        page.wait_for_timeout(500)  # what comes after it belongs to it, and not to the next
        spent.append(processor(process) - before)
    return {"seconds": statistics.median(seconds), "processor seconds": statistics.median(spent)}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--edits", type=int, default=100, help="count")
    parser.add_argument("--minutes", type=float, default=0, help="that the page stays open")
    parser.add_argument("--tabs", type=int, default=10, help="others, opened and closed on the way")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    command = [sys.executable, "-m", "vqstack", "explore", str(options.run), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        found: dict[str, object] = {"seconds to the page": time.perf_counter() - began}
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=next(filter(None, map(shutil.which, BROWSERS))), args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page()
            page.goto(address)
            do(page, "test", 2)  # the image, and what each level keeps
            page.click("[data-tab=Edit]")
            page.click("[aria-label=map] >> text=z_1")
            page.focus("[data-board^='edit z_1']")
            page.keyboard.press("Space")
            seconds, process, sizes = [], psutil.Process(server.pid), []
            for number in range(options.edits):
                seconds.append(do(page, "resample"))
                page.wait_for_timeout(60_000 * options.minutes / options.edits)
                if number % 20 == 19:
                    sizes.append(round(process.memory_info().rss / 2**20))
                if options.tabs and number % max(1, options.edits // options.tabs) == 0:
                    other = browser.new_page()
                    other.goto(address)
                    other.click("[data-do=drawn]")
                    other.close()
            found["seconds of an edit, median"] = statistics.median(seconds)
            found["seconds of an edit, 95 %"] = sorted(seconds)[int(0.95 * len(seconds))]
            found["MiB after each 20 edits"] = sizes
            found["an edit"] = five(page, process, "resample")
            found["codes for this site"] = five(page, process, "choices")
            page.click("text=whole map")
            found["the whole map"] = five(page, process, "resample")
            found["MiB after all"] = process.memory_info().rss / 2**20
    finally:
        server.terminate()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    run_command(main)
