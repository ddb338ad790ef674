"""What all tabs of the page share: a model, images of its run, and one computation at a time."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch

from vqstack.code_use import CodeUse, use_of_codes
from vqstack.edited import Edited
from vqstack.errors import InputError
from vqstack.images import ImageSplit, numerals
from vqstack.model import HierarchicalModel
from vqstack.phases import config_of_run, read_images, split_of_run
from vqstack.pretrained import find_artefact
from vqstack.shapes import Pixels

LOOKED_AT = 1000  # images of which codes are counted
DRAWN = 64  # where the run has no images
Result = TypeVar("Result")
_wanted: ContextVar[Callable[[], bool]] = ContextVar("wanted", default=lambda: True)
"""Says whether what is computed here is still wanted."""


class Stopped(Exception):
    """A computation ended before it was done, because nobody wants it any more."""


def go_on(*_: object) -> None:
    """Called before each pass of a network: there, and nowhere else, a computation is stopped."""
    if not _wanted.get()():
        raise Stopped


class Opened:
    """A run or a released model, opened for looking at it.

    Args:
        run: its folder, or its name on the hub.
    """

    def __init__(self, run: Path) -> None:
        # The lines of Python run in any folder.
        self.run, self.artefact = run.resolve() if run.exists() else run, find_artefact(run)
        self.model: HierarchicalModel = HierarchicalModel.from_pretrained(self.artefact)
        for part in self.model.modules():
            part.register_forward_pre_hook(go_on)
        self._stamp = self._look()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1)  # each thread would keep memory, and threads of torch, of its own
        self.ended = False  # the server stops: nothing is wanted any more
        self.uses = dict[int, CodeUse]()  # of levels whose codes have been counted

    def _look(self) -> list[tuple[int, int]]:
        """Of the model's files when they were written, and how long they are."""
        try:
            found = [path.stat() for path in sorted(self.artefact.iterdir()) if path.is_file()]
        except OSError:
            return []
        return [(stat.st_mtime_ns, stat.st_size) for stat in found]

    @property
    def computing(self) -> bool:
        """Whether some tab computes."""
        return self._lock.locked()

    async def compute(self, work: Callable[[], Result], wanted: Callable[[], bool] = lambda: True) -> Result:
        """Run something outside the page's own thread, one computation after the other.

        Stopped where nobody wants it any more. InputError where the model's files are not those that were opened.
        """

        def computed() -> Result:
            with torch.inference_mode():
                return work()

        def alone() -> Result:
            _wanted.set(lambda: not self.ended and wanted())  # of this call: each has a context of its own
            while not self._lock.acquire(timeout=0.1):
                go_on()
            try:
                go_on()
                if self._look() != self._stamp:
                    raise InputError(f"the model in {self.artefact} has changed: start vqstack explore again")
                return self._thread.submit(copy_context().run, computed).result()
            finally:
                self._lock.release()

        return await asyncio.to_thread(alone)

    def end(self) -> None:
        """Stop what is computed: the server would wait for it."""
        self.ended = True

    @property
    def name(self) -> str:
        """What the page calls it."""
        return self.run.name

    @property
    def levels(self) -> int:
        """L."""
        return len(self.model.stack)

    @cached_property
    def classes(self) -> dict[int, str]:
        """Names of the classes by number; empty where the model knows none."""
        names = self.model.settings.class_names or numerals(self.model.classes)
        return dict(enumerate(names[: self.model.classes]))

    @cached_property
    def split(self) -> ImageSplit | None:
        """The test images of the run; None of a model without its run."""
        return None if config_of_run(self.run) is None else split_of_run(self.run)

    def image(self, number: int) -> Edited:
        """An image of the test split with its class."""
        split = self.split
        if split is None:
            raise InputError("this model came without its run, which names test images: give files or draw samples")
        if not 0 <= number < len(split):
            raise InputError(f"image {number}: the test split has images 0 … {len(split) - 1}")
        part = split.part(slice(number, number + 1))
        label = None if part.labels is None or not self.model.classes else int(part.labels[0])
        condition = None if self.model.condition is None else part.condition
        line = f'pixels = vqstack.split_of_run({str(self.run)!r}, "test").pixels[{number}:{number + 1}]'
        lines = [line]
        if condition is not None:
            given = f'vqstack.split_of_run({str(self.run)!r}, "test").condition[{number}:{number + 1}]'
            lines.append(f"condition = {given}")
        return self._from(part.pixels, label, condition, *lines)

    def file(self, path: Path, name: str) -> Edited:
        """An image of a file that a person calls ``name``; its class is the one that makes it shortest."""
        try:
            pixels = read_images(self.run, [path])
        except InputError as error:
            raise InputError(str(error).replace(str(path), name)) from error
        return self._from(pixels, None, None, f"pixels = vqstack.read_images({str(self.run)!r}, [{name!r}])")

    def _from(self, pixels: Pixels, label: int | None, condition: torch.Tensor | None, *lines: str) -> Edited:
        if self.model.condition is not None and condition is None:
            raise InputError(f"this model is given {self.model.condition.name} with each image: take a test image")
        return Edited.of(self.model, pixels, label, condition).after(lines)

    def use(self, level: int) -> CodeUse:
        """How the codes of a level are used, counted once; see :attr:`counted`."""
        if level not in self.uses:
            self.uses[level] = use_of_codes(self.model, self.counted, level)
        return self.uses[level]

    @cached_property
    def counted(self) -> Pixels:
        """The images in which codes are counted: of the test split, or drawn where there is none."""
        if self.split is not None:
            return self.split.part(slice(0, LOOKED_AT)).pixels
        labels = torch.arange(DRAWN) % self.model.classes if self.model.classes else None
        return self.model.sample(DRAWN, labels).pixels

    def script(self, image: Edited) -> str:
        """Lines of Python that make an image again, from the run's folder on."""
        imports, _, lines = image.script().partition("\n")
        return f"import vqstack\n{imports}\n\nmodel = vqstack.load({str(self.run)!r})\n{lines}"
