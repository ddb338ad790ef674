"""A map on the page whose sites one can point at and choose, with a mouse or with keys."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass

import numpy as np
from nicegui import background_tasks, events, ui
from PIL import Image

from vqstack.explorer.pictures import COLUMNS, address, laid_out, scale_of

KEYS = {"ArrowUp": (-1, 0), "ArrowDown": (1, 0), "ArrowLeft": (0, -1), "ArrowRight": (0, 1)}
TAKEN = f"""(event) => {{
    if ({[*KEYS, " ", "Enter"]}.includes(event.key)) {{
        event.preventDefault();
        emit([event.key, event.shiftKey]);
    }}
}}"""
"""Keys that the board takes; Tab and all others stay the browser's."""


@dataclass
class Drag:
    """Where a drag began, whether it chooses or gives up sites, and what was chosen before."""

    start: tuple[int, int]
    adding: bool
    before: set[int]


class Board:
    """A picture of a map with a square for each site.

    Args:
        name: for screen readers, and what the tests find it by.
        shape: of the map, see :func:`vqstack.explorer.pictures.laid_out`.
        chain: whether the first axis counts the codes of a site.
        told: called with the number of a site that is pointed at.
        chosen: called when other sites are chosen; None: none can be.
        columns, cell: in which sites are laid out, and pixels of one; default: so that it is as large as others.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        chain: bool = False,
        told: Callable[[int], Coroutine] | None = None,
        chosen: Callable[[], None] | None = None,
        columns: int = COLUMNS,
        cell: int = 0,
    ) -> None:
        self.name, self.told, self.chosen = name, told, chosen
        self.sites = int(np.prod(shape))
        self.rows, self.columns = laid_out(shape, chain, columns)
        self.cell = cell or scale_of((self.rows, self.columns))
        self.selected, self.marked, self.cursor, self.tool = set[int](), set[int](), 0, "brush"
        self.focused, self.pointed = False, -1
        self._drag: Drag | None = None
        blank = Image.new("RGB", (self.columns * self.cell, self.rows * self.cell))
        doings = ["pointerdown", "pointermove", "pointerup", "pointerleave"]  # of mouse, finger or pen
        self.image = ui.interactive_image(address(blank), on_mouse=self._mouse, events=doings)
        self.image.classes("board chosen" if chosen else "board").props(f'data-board="{name}"')
        if told is None and chosen is None:  # a picture: nothing to do here
            self.image.props(f'role=img aria-label="{name}"')
            return
        how = "arrow keys move" + (", space chooses a site, with shift a rectangle" if chosen else "")
        self.image.props(f'tabindex=0 role=application aria-label="{name}; {how}"')
        self.image.on("keydown", self._key, js_handler=TAKEN)
        self.image.on("focus", lambda: self._focus(True))
        self.image.on("blur", lambda: self._focus(False))

    def show(self, picture: Image.Image) -> None:
        """Another picture, stretched over the sites."""
        size = (self.columns * self.cell, self.rows * self.cell)
        self.image.set_source(address(picture.resize(size, Image.Resampling.NEAREST)))

    def choose(self, sites: set[int]) -> None:
        """Let these sites be chosen."""
        if sites != self.selected:
            self.selected = sites
            self._draw()
            if self.chosen is not None:
                self.chosen()

    def mark(self, sites: set[int]) -> None:
        """Outline these sites, which a change has reached."""
        self.marked = sites
        self._draw()

    def _focus(self, focused: bool) -> None:
        """Show where the keys are; a rectangle that they began ends with them."""
        self.focused, self._drag = focused, self._drag if focused else None
        self._draw()

    def _place(self, site: int) -> tuple[int, int]:
        return divmod(site, self.columns)

    def _draw(self) -> None:
        """What lies over the picture: marked, chosen, and the site of the keys."""

        def square(site: int, style: str) -> str:
            row, column = self._place(site)
            x, y = column * self.cell, row * self.cell
            return f'<rect x="{x}" y="{y}" width="{self.cell}" height="{self.cell}" {style}/>'

        thick = max(1, self.cell // 16)
        marked = [square(n, f'fill="none" stroke="#ff9800" stroke-width="{thick}"') for n in sorted(self.marked)]
        style = f'fill="white" fill-opacity="0.35" stroke="white" stroke-width="{thick}"'
        chosen = [square(n, style) for n in sorted(self.selected)]
        style = f'fill="none" stroke="black" stroke-dasharray="4" stroke-width="{thick}"'
        keys = [square(self.cursor, style)] * self.focused
        self.image.set_content("".join([*marked, *chosen, *keys]))

    def _site(self, x: float, y: float) -> tuple[int, int]:
        row = min(self.rows - 1, max(0, int(y // self.cell)))
        return row, min(self.columns - 1, max(0, int(x // self.cell)))

    def _mouse(self, event: events.MouseEventArguments) -> None:
        place = self._site(event.image_x, event.image_y)
        site = place[0] * self.columns + place[1]
        down = event.type == "pointerdown"
        if event.type == "pointerup" or not (event.buttons or down):
            self._drag = None
        if event.type in ("pointerup", "pointerleave") or site >= self.sites:
            self.pointed = -1
            return
        if down:
            self._drag = Drag(place, site not in self.selected, set(self.selected))
        if down or site != self.pointed:
            before, self.cursor, self.pointed = self._place(self.cursor), site, site
            if self._drag is not None and self.chosen is not None:
                for between in [place] if down else self._line(before, place):
                    self._paint(between, self.tool == "rectangle")
            self._tell()

    @staticmethod
    def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
        """Places from one to another: a quick drag leaves none out."""
        steps = max(1, *(abs(b - a) for a, b in zip(start, end, strict=True)))
        return [
            (round(start[0] + n * (end[0] - start[0]) / steps), round(start[1] + n * (end[1] - start[1]) / steps))
            for n in range(1, steps + 1)
        ]

    def _tell(self) -> None:
        if self.told is not None:
            background_tasks.create(self.told(self.cursor))

    def _paint(self, place: tuple[int, int], rectangle: bool) -> None:
        assert self._drag is not None
        if rectangle:
            rows, columns = (sorted(pair) for pair in zip(self._drag.start, place, strict=True))
            area = {
                r * self.columns + c
                for r in range(rows[0], rows[1] + 1)
                for c in range(columns[0], columns[1] + 1)
                if r * self.columns + c < self.sites
            }
            base = self._drag.before
        else:
            area, base = {place[0] * self.columns + place[1]}, self.selected
        self.choose(base | area if self._drag.adding else base - area)

    def _key(self, event: events.GenericEventArguments) -> None:
        key, shift = event.args
        if key in KEYS:
            if not shift:
                self._drag = None
            elif self._drag is None:
                self._drag = Drag(self._place(self.cursor), True, set(self.selected))
            row, column = (a + b for a, b in zip(self._place(self.cursor), KEYS[key], strict=True))
            site = row * self.columns + column
            if 0 <= row < self.rows and 0 <= column < self.columns and site < self.sites:
                self.cursor = site
                self._draw()
            if shift and self.chosen is not None:
                self._paint(self._place(self.cursor), True)
        elif self.chosen is not None:
            self.choose(self.selected ^ {self.cursor})
        self._tell()
