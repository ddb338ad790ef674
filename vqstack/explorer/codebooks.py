"""Codebooks: every code of a level, how often it is used, what it looks like, where it occurs, which are near it."""

from collections.abc import Callable
from functools import partial

import numpy as np
from nicegui import ui
from PIL import Image

from vqstack.code_use import CodeUse, neighbours, patch_shape
from vqstack.explorer.board import Board
from vqstack.explorer.desk import Desk
from vqstack.explorer.look import small, title_of
from vqstack.explorer.pictures import address, of_input, of_patch
from vqstack.quantizer import usage

COLUMNS, MANY = 16, 128  # codes of a row of the sheet; codes from which on they are shown smaller


class Codebooks:
    """The part of the page that shows the codes of a level.

    Args:
        desk: of the tab.
        opening: called when an image in which a code occurs has been opened.
    """

    def __init__(self, desk: Desk, opening: Callable[[], object]) -> None:
        self.desk, self.opening = desk, opening
        self.use: CodeUse | None = None
        self.row = -1  # of the code that is told of
        names = {level: title_of(desk, level) for level in range(1, desk.opened.levels + 1)}
        with ui.row():
            self.level = ui.toggle(names, value=1).props('aria-label="level"')
            self.level.on_value_change(self._count)
            ui.button("count codes", on_click=self._count).props('data-do="count"')
        self.said = ui.label("").props('aria-live=polite data-use=""')
        with ui.row().classes("items-start w-full"):
            self.sheet = ui.column()
            self.about = ui.column().classes("about")
        self.uses = ui.column()

    async def _count(self) -> None:
        use = await self.desk.run(lambda: self.desk.opened.use(int(self.level.value)), wait=True)
        if use is None:
            return
        self.use, self.row, level = use, -1, use.level
        self.about.clear()  # of a code of the level before
        share = usage(use.counts)
        images = "test images" if self.desk.opened.split is not None else "drawn images"
        self.said.set_text(
            f"z_{level}: {len(use.rows)} {images}: {share.share:.1%} of {len(use.counts)} codes used, perplexity "
            f"{share.perplexity:.1f}. Dead codes are crossed out. Choose one with a click, or arrow keys."
        )
        self.sheet.clear()
        with self.sheet:
            name, shape, cell = f"codebook of level {level}", (len(use.counts),), 24 if len(use.counts) > MANY else 48
            self.board = Board(name, shape, told=self._tell, columns=COLUMNS, cell=cell)
            self.board.image.style(f"max-width: {self.board.columns * cell}px")
            self.board.show(self._sheet(use))
        self.uses.clear()
        with self.uses:
            self._table(use)

    def _code(self, row: int) -> str:
        """What the other parts call the code of a row: where a site has several, each codebook counts from 0."""
        quantizer = self.desk.opened.model.stack.level(self.use.level if self.use else 1).quantizer
        return f"{row % quantizer.size} of codebook {row // quantizer.size}" if quantizer.chain else str(row)

    def _table(self, use: CodeUse) -> None:
        """How often each code is used; a click on a head sorts."""
        every = int(use.counts.sum())
        columns = [
            {"name": name, "label": name, "field": name, "sortable": True, "align": "right"}
            for name in ("code", "uses", "share, %")
        ]
        rows = [
            {"row": row, "code": self._code(row), "uses": count, "share, %": round(100 * count / every, 2)}
            for row, count in enumerate(use.counts.tolist())
        ]
        table = ui.table(columns=columns, rows=rows, row_key="row", pagination=8)
        table.props('dense aria-label="uses of each code" data-uses=""')

    def _sheet(self, use: CodeUse) -> Image.Image:
        """The mean pixels of every code, dead ones crossed out, in the places of the board."""
        cell, columns = self.board.cell, self.board.columns
        sheet = Image.new("RGB", (columns * cell, self.board.rows * cell))
        for row, patch in enumerate(use.patches):
            tile = of_patch(self.desk.opened.model, patch).convert("RGB").resize((cell, cell), Image.Resampling.NEAREST)
            if not use.counts[row]:
                pixels = np.array(tile)
                pixels[np.eye(cell, dtype=bool) | np.eye(cell, dtype=bool)[::-1]] = (255, 0, 0)
                tile = Image.fromarray(pixels)
            tile = tile.resize((cell - 1, cell - 1), Image.Resampling.NEAREST)  # a line between it and the next
            sheet.paste(tile, (row % columns * cell, row // columns * cell))
        return sheet

    async def _tell(self, row: int) -> None:
        """All about one code."""
        use, opened = self.use, self.desk.opened
        if use is None or row == self.row:  # a press after pointing would put new buttons under the mouse
            return
        self.row = row
        near = await self.desk.quietly(lambda: neighbours(opened.model, use.level, row))
        if near is None or self.use is not use or self.row != row:  # others are meant by now
            return
        self.about.clear()
        with self.about:
            count, every = int(use.counts[row]), int(use.counts.sum())
            dead = "" if count else ", dead"
            ui.label(f"code {self._code(row)}: {count} of {every}, {count / every:.2%}{dead}").props('data-code-use=""')
            ui.image(address(of_patch(opened.model, use.patches[row]))).classes("patch").props('alt="mean pixels"')
            ui.label("nearest codes")
            with ui.row():
                for other in near:
                    with ui.column().classes("items-center gap-0"):
                        picture = address(of_patch(opened.model, use.patches[other]))
                        ui.image(picture).classes("patch").props(f'alt="code {self._code(other)}"')
                        ui.label(self._code(other))
            ui.label("images where it occurs")
            with ui.row():
                for image, site in use.places(row, 6):
                    self._occurrence(use, image, site)

    def _occurrence(self, use: CodeUse, image: int, site: int) -> None:
        """An image with the site outlined; a click opens it, where it is a test image."""
        opened = self.desk.opened
        model, shape = opened.model, opened.model.stack.level(use.level).map_shape
        picture = of_input(model, opened.counted[image : image + 1]).convert("RGB")
        if len(shape) == 2:
            pixels, factor = np.array(picture), picture.height // model.stack.shape[-2]
            height, width = (n * factor for n in patch_shape(model, use.level))
            row, column = divmod(site, shape[1])
            frame = np.zeros(pixels.shape[:2], bool)
            frame[row * height : (row + 1) * height, column * width : (column + 1) * width] = True
            frame[row * height + 2 : (row + 1) * height - 2, column * width + 2 : (column + 1) * width - 2] = False
            pixels[frame] = (255, 152, 0)
            picture = Image.fromarray(pixels)
        if opened.split is None:  # drawn ones have no number to open them by
            small(picture).props(f'alt="drawn image {image}"')
            return
        with ui.button(on_click=partial(self._open, image)).props(f'flat no-caps aria-label="image {image}"'):
            small(picture)

    async def _open(self, image: int) -> None:
        if await self.desk.start(f"test image {image}", lambda: self.desk.opened.image(image)):
            self.opening()
