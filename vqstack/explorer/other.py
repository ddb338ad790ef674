"""The other image: what codes are copied from, and what an image is blended with."""

from collections.abc import Callable

from nicegui import ui

from vqstack.edited import Edited
from vqstack.explorer.desk import Desk
from vqstack.explorer.fields import Number


class Other:
    """A test image by its number, or the image that was kept, which is named here as long as it is."""

    def __init__(self, desk: Desk) -> None:
        self.desk, split = desk, desk.opened.split
        self.number = Number("test image", 1 if split and len(split) > 1 else 0, 0, len(split) - 1 if split else 0)
        with ui.row().classes("items-center") as self.kept:
            self.name = ui.label("").props('aria-live=polite data-other=""')
            ui.button("forget it", on_click=self._forget).props('flat dense data-do="forget"')
        desk.watching.append(self._fresh)
        self._fresh()

    def image(self) -> Callable[[], Edited] | None:
        """What gives the image; None where there is none, which is said."""
        kept = self.desk.history.other
        if kept is not None:
            return lambda: kept[1]
        if self.desk.opened.split is None:
            self.desk.say("keep an image as the other one first", "warning")
            return None
        numbers = self.desk.read(self.number)
        return None if numbers is None else lambda: self.desk.opened.image(int(numbers[0]))

    def _forget(self) -> None:
        self.desk.keep(None)

    def _fresh(self) -> None:
        kept = self.desk.history.other
        self.kept.set_visibility(kept is not None)
        self.number.set_visibility(kept is None and self.desk.opened.split is not None)
        if kept is not None:
            self.name.set_text(f"the other image: {kept[0]}")
