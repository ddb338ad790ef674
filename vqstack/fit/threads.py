"""With how many threads a phase trains on the CPU: chosen before its first step, and then kept."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from vqstack import threads
from vqstack.disk import make_folder, on_main, write_text
from vqstack.reading import opened
from vqstack.terminal import lines


def choose_threads(name: str, accelerator: Accelerator, note: Path, work: Callable[[], object] | None) -> None:
    """The number of threads of a phase that begins on the CPU; noted, and measured if nobody named one.

    Args:
        name: of the phase.
        accelerator: its processes.
        note: lies beside the checkpoints: a phase stopped before the first one begins again with as many.
        work: one step, of which nothing is learned, to be timed; none: as many as torch has.
    """
    most, asked = threads.cores(threads.beside(accelerator.num_processes)), threads.asked_for()
    if not asked and accelerator.num_processes > 1:  # all of them on all cores would wait for each other
        torch.set_num_threads(min(most, torch.get_num_threads()))
    free = None if accelerator.num_processes > 1 or most == 1 or asked else work

    def noted() -> int:
        text = ""
        if note.exists():
            with opened(note) as file:
                text = file.read(100).decode(errors="replace")
        if not re.fullmatch("[1-9][0-9]{0,3}\n", text):
            text = f"{threads.quickest(free, most) if free else torch.get_num_threads()}\n"
            make_folder(note.parent)
            write_text(note, text)
        return int(text)

    number = on_main(accelerator, noted)
    if free:
        torch.set_num_threads(number)
        accelerator.print(lines(f"{name}: {number} of {most} threads, by a measurement of its first steps"))
    else:
        threads.keep(name, number, accelerator)
