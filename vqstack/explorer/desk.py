"""What one tab of the browser works on: an image with its maps, what it was before, and what it may become again."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from nicegui import Client, app, events, ui

from vqstack.edited import Edited
from vqstack.errors import InputError
from vqstack.explorer.fields import Number
from vqstack.explorer.opened import Opened, Stopped
from vqstack.model import Decoder

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
KEPT = 50  # steps that undo goes back
GONE = 5.0  # seconds without a connection after which nobody waits any more: the tab was closed


@dataclass(frozen=True)
class Step:
    """An image, what it was called when it was opened, and how often it has been changed since."""

    name: str
    image: Edited
    changes: int = 0


@dataclass
class History:
    """What a tab keeps when its page is loaded again.

    Attributes:
        now: what is open.
        past, future: what undo and redo lead to, images that were open before among them.
        other: the name of an image to copy codes from, and to blend with, and the image.
        decoder: what makes pixels of codes that are drawn, looked at or changed.
        part, dark: of the page the part that is seen, and whether it is dark; None: as the system.
    """

    now: Step | None = None
    past: list[Step] = field(default_factory=list)
    future: list[Step] = field(default_factory=list)
    other: tuple[str, Edited] | None = None
    decoder: Decoder = "likelihood"
    part: str = ""
    dark: bool | None = None

    def copy(self) -> "History":
        """Another one with the same images: a tab that is doubled goes its own way."""
        return replace(self, past=[*self.past], future=[*self.future])


class Desk:
    """The image of a tab, and its computations.

    Args:
        opened: what all tabs share.
        client: the tab.
    """

    def __init__(self, opened: Opened, client: Client) -> None:
        self.opened, self.client = opened, client
        self.history = History()
        self.returned: Callable[[], object] = lambda: None  # told of a history from before
        self.watching = list[Callable[[], None]]()
        self.busy = ui.linear_progress(show_value=False, color="orange").props(
            'indeterminate aria-label="computing" data-done=0'
        )
        self.busy.classes("absolute-bottom").set_visibility(False)
        self._stopped, self._seen, self._aside, self._done = False, 0.0, False, 0

    @property
    def image(self) -> Edited | None:
        """What is open."""
        return None if self.history.now is None else self.history.now.image

    @property
    def name(self) -> str:
        """What it was called when it was opened."""
        return "" if self.history.now is None else self.history.now.name

    @property
    def title(self) -> str:
        """What is open, by its name, its class and the number of its changes."""
        now, said = self.history.now, [self.name]
        if now is not None and now.image.labels is not None:
            said.append(f"class {self.opened.classes.get(int(now.image.labels), '?')}")
        if now is not None and now.image.decoder == "renderer":
            said.append("pixels by the renderer")
        if now is not None and now.changes:
            said.append(f"{now.changes} change{'s' * (now.changes > 1)}")
        return ", ".join(said)

    @property
    def decoder(self) -> Decoder:
        """What makes pixels of codes."""
        return self.history.decoder

    def decode_by(self, decoder: Decoder) -> None:
        """Choose it; what is open stays as it is until its codes change."""
        self.history.decoder = decoder
        self._changed()

    @property
    def before(self) -> Edited | None:
        """The image before its last change; None where it has not been changed."""
        now, past = self.history.now, self.history.past
        return past[-1].image if now is not None and now.changes and past else None

    async def remember(self) -> None:
        """Go on with what this tab of the browser had before its page was loaded again."""
        await self.client.connected()
        if not self.client.has_socket_connection:  # it was closed before it was there
            return
        kept = app.storage.tab.get("history")
        if isinstance(kept, History) and self.image is None:
            self.history = kept.copy()
            self.returned()
            if kept.now is not None:
                self._changed()
        app.storage.tab["history"] = self.history

    async def run(self, work: Callable[[], Result], *, wait: bool = False, aside: bool = False) -> Result | None:
        """A computation; None where it came to nothing. See :meth:`each`."""
        found = await self.each([work], wait=wait, aside=aside)
        return found[0] if found else None

    async def each(
        self,
        works: Sequence[Callable[[], Result]],
        came: Callable[[Result], object] = lambda _: None,
        kept: Callable[[list[Result]], str] = lambda _: "all is as it was",
        *,
        wait: bool = False,
        aside: bool = False,
    ) -> list[Result]:
        """Computations one after the other, while which the tab shows that it waits.

        What a person asks for while something else is computed is refused, or with ``wait`` done after it. So it is
        after what was computed ``aside``, because nobody has asked for that.

        Args:
            works: what each computes.
            came: receives what came of one.
            kept: says what is left when they are stopped after some.

        Returns what came of them until one was stopped or refused, which is said.
        """
        found, problem = list[Result](), ""
        while self.busy.visible and (wait or self._aside):
            await asyncio.sleep(0.05)
        if not self.free():
            return found
        self._stopped, self._seen, self._aside = False, time.monotonic(), aside
        self.busy.set_visibility(True)
        if self.opened.computing:
            self.say("another tab is computing: this one waits for it")
        try:
            for work in works:
                found.append(await self.opened.compute(work, self._wanted))
                came(found[-1])
        except Stopped:
            self.say(f"stopped: {kept(found)}")
        except InputError as error:
            problem = str(error)
        except Exception as error:
            logger.exception("the page could not do what was asked")
            problem = f"this should not have happened: {error!r}; what it was stands where vqstack explore runs"
        if self.client.is_deleted:  # the tab was closed meanwhile
            return []
        self._done += 1
        self.busy.props(f"data-done={self._done}").set_visibility(False)
        if problem:
            self.say(problem, "negative")
        return found

    def stop(self) -> None:
        """End what is computed, before the next pass of a network."""
        self._stopped = True

    def key(self, event: events.KeyEventArguments) -> None:
        """Escape stops, too."""
        if event.key.escape and event.action.keydown:
            self.stop()

    def _wanted(self) -> bool:
        """Whether somebody waits for what is computed; asked by its thread."""
        if self.client.has_socket_connection:
            self._seen = time.monotonic()
        return not self._stopped and time.monotonic() < self._seen + GONE

    def free(self) -> bool:
        """Whether nothing is computed; a word otherwise."""
        if self.busy.visible:
            self.say("still computing: wait until the line at the top is gone")
        return not self.busy.visible

    def read(self, *fields: Number) -> list[float] | None:
        """The numbers of fields; None where one does not fit, which is said."""
        for one in fields:
            if one.problem:
                self.say(one.problem, "warning")
                return None
        return [one.number for one in fields]

    def say(self, text: str, kind: Literal["info", "warning", "negative"] = "info") -> None:
        """A word to the person, which stays for ten seconds or until it is closed."""
        with self.client:
            ui.notify(text, type=kind, multi_line=True, timeout=10_000, close_button="close")

    async def change(self, work: Callable[[Edited], Edited]) -> bool:
        """Another image made of this one; whether that went well."""
        now = self.history.now
        if self.opened_image() is None or now is None:
            return False
        by = self.decoder
        made = await self.run(lambda: work(now.image.by(by)))
        if made is None:
            return False
        if self.history.now is not now:  # one of the gallery
            self.say("another image was opened meanwhile: the change is dropped", "warning")
            return False
        self._put(Step(now.name, made, now.changes + 1))
        return True

    async def start(self, name: str, make: Callable[[], Edited]) -> bool:
        """Another image, undo leads back to this one; whether that went well."""
        made = await self.run(make, wait=True)
        if made is not None:
            self.begin(name, made)
        return made is not None

    def begin(self, name: str, image: Edited) -> None:
        """Put another image here; undo leads back to this one."""
        self._put(Step(name, image))

    async def quietly(self, work: Callable[[], Result]) -> Result | None:
        """A computation that is over in a moment, beside others; None where it came to nothing, which is said."""
        try:
            return await self.opened.compute(work)
        except InputError as error:
            self.say(str(error), "negative")
            return None

    def keep(self, image: Edited | None) -> None:
        """Keep an image as the other one; None: forget it."""
        self.history.other = None if image is None else (self.title, image)
        self._changed()

    def opened_image(self) -> Edited | None:
        """The image, or a word that there is none."""
        if self.image is None:
            self.say("choose an image first: a test image, a file or a sample", "warning")
        return self.image

    def _put(self, step: Step) -> None:
        history = self.history
        history.past, history.future = [*history.past, *([] if history.now is None else [history.now])][-KEPT:], []
        history.now = step
        self._changed()

    def _changed(self) -> None:
        for changed in self.watching:
            changed()

    def undo(self) -> None:
        """Back to what was before the last change, or to the image that was open before."""
        self._step(self.history.past, self.history.future, "undo")

    def redo(self) -> None:
        """What was undone."""
        self._step(self.history.future, self.history.past, "redo")

    def _step(self, there: list[Step], here: list[Step], name: str) -> None:
        if not there:
            self.say(f"there is nothing to {name}")
        elif self.history.now is not None and self.free():
            here.append(self.history.now)
            self.history.now = there.pop()
            self._changed()
