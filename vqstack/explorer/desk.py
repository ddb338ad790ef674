"""What one tab of the browser works on: an image with its maps, what it was before, and what it may become again."""

import logging
from collections.abc import Callable
from typing import Literal, TypeVar

from nicegui import Client, ui

from vqstack.edited import Edited
from vqstack.errors import InputError
from vqstack.explorer.opened import Opened

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
KEPT = 50  # images that undo goes back to


class Desk:
    """The image of a tab, and its computations.

    Args:
        opened: what all tabs share.
        client: the tab.
    """

    def __init__(self, opened: Opened, client: Client) -> None:
        self.opened, self.client = opened, client
        self.past, self.future = list[Edited](), list[Edited]()
        self.image: Edited | None = None
        self.other: Edited | None = None  # kept to copy from, and to blend with
        self.watching = list[Callable[[], None]]()
        self.busy = ui.linear_progress(show_value=False).props('indeterminate aria-label="computing"')
        self.busy.set_visibility(False)

    @property
    def before(self) -> Edited | None:
        """The image before the last change."""
        return self.past[-1] if self.past else None

    async def run(self, work: Callable[[], Result]) -> Result | None:
        """A computation while which the tab shows that it waits; None where it came to nothing, which is said."""
        if not self.free():
            return None
        self.busy.set_visibility(True)
        problem, found = "", None
        try:
            found = await self.opened.compute(work)
        except InputError as error:
            problem = str(error)
        except Exception as error:
            logger.exception("the page could not do what was asked")
            problem = f"this should not have happened: {error!r}; what it was stands where vqstack explore runs"
        if self.client.is_deleted:  # the tab was closed meanwhile
            return None
        self.busy.set_visibility(False)
        if problem:
            self.say(problem, "negative")
        return found

    def free(self) -> bool:
        """Whether nothing is computed; a word otherwise."""
        if self.busy.visible:
            self.say("still computing: wait until the line at the top is gone")
        return not self.busy.visible

    def say(self, text: str, kind: Literal["info", "warning", "negative"] = "info") -> None:
        """A word to the person, which stays for ten seconds or until it is closed."""
        with self.client:
            ui.notify(text, type=kind, multi_line=True, timeout=10_000, close_button="close")

    async def change(self, work: Callable[[Edited], Edited]) -> bool:
        """Another image made of this one; whether that went well."""
        image = self.opened_image()
        if image is None:
            return False
        made = await self.run(lambda: work(image))
        if made is not None:
            self.past, self.future = [*self.past, image][-KEPT:], []
            self.put(made)
        return made is not None

    async def start(self, make: Callable[[], Edited]) -> bool:
        """A new image, without a past; whether that went well."""
        made = await self.run(make)
        if made is not None:
            self.begin(made)
        return made is not None

    def begin(self, image: Edited) -> None:
        """Put a new image here, without a past."""
        self.past, self.future = [], []
        self.put(image)

    async def quietly(self, work: Callable[[], Result]) -> Result | None:
        """A computation that is over in a moment, beside others; None where it came to nothing, which is said."""
        try:
            return await self.opened.compute(work)
        except InputError as error:
            self.say(str(error), "negative")
            return None

    def second(self, number: float | None) -> Callable[[], Edited]:
        """The image that is kept as the other one, else a test image."""
        other = self.other
        return (lambda: other) if other is not None else (lambda: self.opened.image(int(number or 0)))

    def opened_image(self) -> Edited | None:
        """The image, or a word that there is none."""
        if self.image is None:
            self.say("choose an image first: a test image, a file or a sample", "warning")
        return self.image

    def put(self, image: Edited) -> None:
        """Show an image."""
        self.image = image
        for changed in self.watching:
            changed()

    def undo(self) -> None:
        """Back to what was before the last change."""
        if self.past and self.image is not None and self.free():
            self.future.append(self.image)
            self.put(self.past.pop())

    def redo(self) -> None:
        """The change that was undone."""
        if self.future and self.image is not None and self.free():
            self.past.append(self.image)
            self.put(self.future.pop())
