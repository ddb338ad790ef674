"""Look: an image and every level of it, its codes as colours, what each keeps, the bits of every site, the ledger."""

from functools import cache, partial

import numpy as np
import torch
from nicegui import ui
from numpy.typing import NDArray
from PIL import Image

from vqstack.code_use import colours
from vqstack.edited import Edited
from vqstack.explorer.board import Board
from vqstack.explorer.desk import Desk
from vqstack.explorer.fields import table
from vqstack.explorer.pictures import address, laid_out, noun, of_input, of_patch, of_sites, over
from vqstack.explorer.player import Player
from vqstack.images import heat
from vqstack.ledger import BITS
from vqstack.model import Decoder
from vqstack.quantizer import Codebook
from vqstack.shapes import by_axis


def title_of(desk: Desk, level: int) -> str:
    """What the page calls a map."""
    upper = desk.opened.model.stack.variables[level]
    return f"z_{level}, {by_axis(upper.shape)} of {upper.size} codes" if level else noun(desk.opened.model)


@cache
def _colours(quantizer: Codebook) -> NDArray[np.uint8]:
    """Of each code; a model that is open does not change."""
    return colours(quantizer).numpy()


def map_picture(image: Edited, level: int) -> Image.Image:
    """The codes of a level in the colours of its codebook."""
    quantizer, codes = image.model.stack.level(level).quantizer, image.map(level)
    rows, columns = laid_out(tuple(codes.shape[1:]), bool(quantizer.chain))
    return of_sites(_colours(quantizer)[quantizer.rows(codes).flatten().cpu()], rows, columns)


def bits_picture(image: Edited, level: int, bits: torch.Tensor) -> Image.Image:
    """The bits of every site of a map over the image."""
    if level == 0 or image.model.stack.level(level).quantizer.chain:  # all channels, or codes, of a site together
        bits = bits.sum(1)
    shape = tuple(bits.shape[1:])
    rows, columns = (1, shape[0]) if len(shape) == 1 else laid_out(shape)
    shown = of_sites(heat(bits.flatten().cpu()), rows, columns)
    return shown if len(shape) > 2 else over(of_input(image.model, image.pixels), shown)


def small(picture: Image.Image) -> ui.image:
    """A small picture; it has its room before it is there, so that nothing moves under the mouse when it comes."""
    return ui.image(address(picture)).classes("thumb").props(f"ratio={picture.width / picture.height}")


class Look:
    """The part of the page that looks at an image."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.bits, self.seen = desk, dict[str, torch.Tensor](), True
        self.shown: tuple[Edited | None, Decoder] = desk.image, desk.decoder
        self.pointed = (0, 0)
        self.values = "pixels" if noun(desk.opened.model) in ("image", "video") else "values"
        self.boards = dict[int, Board]()
        self.kept, self.players = dict[int, ui.image](), dict[int, Player]()
        ui.label("Codes as colours: codes that are near each other look alike. Point at a site, or use the arrow keys.")
        with ui.row().classes("items-start"):
            for level in range(desk.opened.levels, -1, -1):
                self._column(level)
            with ui.column().classes("pointed"):
                self.told = ui.label("").props('aria-live=polite data-told=""').classes("told")
                self.patch = ui.image("").classes("patch").props(f'alt="mean {self.values} of the code"')
        rows = {level: title_of(desk, level) for level in range(desk.opened.levels, -1, -1)}
        with ui.row().classes("items-start"):
            with ui.column():
                self.which = ui.select(rows, label="bits of every site of", value=0, on_change=self._heat)
                self.which.props('data-which=""').classes("wide")
                self.heat = ui.column().props('data-heat=""')
                self.range = ui.label("")
            with ui.column():
                self.chart = ui.echart({"series": []}).classes("chart").props('role=img aria-label="ledger as a chart"')
                self.ledger = table("ledger", "row", "bits", "share")
        desk.watching.append(self.fresh)

    def _column(self, level: int) -> None:
        desk, variable = self.desk, self.desk.opened.model.stack.variables[level]
        with ui.column():
            ui.label(title_of(desk, level)).classes("font-medium")
            if not level:
                self.pixels = ui.image("").classes("shown").props('alt="the image" data-image=""')
                self.players[0] = Player(desk.opened.model, f"the {noun(desk.opened.model)}")
                return
            chain = bool(desk.opened.model.stack.level(level).quantizer.chain)
            told = partial(self._tell, level)
            self.boards[level] = Board(f"codes of level {level}", variable.shape, chain, told)
            ui.label("what it keeps").classes("note")
            kept = f"what level {level} keeps"
            self.kept[level] = ui.image("").classes("shown").props(f'alt="{kept}" data-kept={level}')
            self.players[level] = Player(desk.opened.model, kept)

    def see(self, seen: bool) -> None:
        """Whether this part is the one that is looked at: nothing is computed for others."""
        self.seen = seen
        self.fresh()

    def fresh(self) -> None:
        """Show another image; what takes computing comes after."""
        image = self.desk.image
        if not self.seen or image is None or (image is self.shown[0] and self.desk.decoder == self.shown[1]):
            return
        self.shown, self.bits = (image, self.desk.decoder), {}
        self.heat.clear()
        for shown in self.kept.values():
            shown.set_source("")
        for player in self.players.values():
            player.clear()
        self.ledger.rows = []
        self.told.set_text("")
        self.patch.set_source("")
        self.pixels.set_source(address(of_input(image.model, image.pixels)))
        self.players[0].play(image.pixels)
        for level, board in self.boards.items():
            board.show(map_picture(image, level))
        ui.timer(0.01, self._computed, once=True)

    async def _computed(self) -> None:
        image, by = self.desk.image, self.desk.decoder
        assert image is not None

        def work() -> tuple[dict[int, torch.Tensor], dict[str, torch.Tensor]]:
            kept = {level: image.model.decode(image.map(level), level, decoder=by) for level in self.boards}
            nats = image.model.code_lengths_by_site(image.pixels, list(image.codes), image.labels, image.condition)
            return kept, {row: found * BITS for row, found in nats.items()}

        found = await self.desk.run(work, wait=True, aside=True)
        if self.desk.image is not image or self.desk.decoder != by:
            return
        if found is None:  # once more when this part is seen again
            self.shown = None, by
            return
        kept, self.bits = found
        for level, pixels in kept.items():
            self.kept[level].set_source(address(of_input(image.model, pixels)))
            self.players[level].play(pixels)
        self._ledger()
        self._heat()

    def _row(self, level: int) -> str:
        """The ledger's row of a map."""
        return "prior" if level == self.desk.opened.levels else f"level-{level + 1}"

    def _ledger(self) -> None:
        bits = {row: float(found.sum()) for row, found in self.bits.items()}
        total = sum(bits.values())
        shown = [*bits.items(), ("total", total)]
        self.ledger.rows = [
            {"row": row, "bits": f"{count:,.2f}", "share": f"{count / total:.1%}"} for row, count in shown
        ]
        label = {"color": "#888"}  # seen on light and on dark
        self.chart.options.clear()
        self.chart.options.update(
            {
                "xAxis": {
                    "type": "value",
                    "name": "bits",
                    "axisLabel": label,
                    "splitLine": {"lineStyle": {"color": "#8886"}},
                },
                "yAxis": {"type": "category", "data": [*bits][::-1], "axisLabel": label},
                "grid": {"containLabel": True, "top": 8, "bottom": 8, "left": 8, "right": 48},
                "textStyle": {"color": "#888"},
                "series": [{"type": "bar", "data": [round(count, 2) for count in bits.values()][::-1]}],
            }
        )
        self.chart.update()

    def _heat(self) -> None:
        image, level = self.desk.image, int(self.which.value)
        if image is None or not self.bits:
            return
        bits = self.bits[self._row(level)]
        picture = bits_picture(image, level, bits)
        each = bits.sum(1) if level == 0 or image.model.stack.level(level).quantizer.chain else bits
        self.heat.clear()
        with self.heat:
            if each.ndim == 3:
                Board("bits of every site", tuple(each.shape[1:]), told=partial(self._tell_bits, each)).show(picture)
            else:
                ui.image(address(picture)).classes("shown").props('alt="bits of every site"')
        low, high = float(each.min()), float(each.max())
        self.range.set_text(f"dark {low:.2f} to yellow {high:.2f} bits, in all {float(bits.sum()):,.1f}")

    async def _tell_bits(self, bits: torch.Tensor, site: int) -> None:
        """What the site costs that is pointed at."""
        row, column = np.unravel_index(site, bits.shape[1:])
        self.range.set_text(f"site {row} {column}: {float(bits[0, row, column]):.2f} of {float(bits.sum()):,.1f} bits")

    async def _tell(self, level: int, site: int) -> None:
        """Code, bits, use and look of the site that is pointed at."""
        image = self.desk.image
        if image is None:
            return
        place = np.unravel_index(site, image.map(level).shape[1:])
        quantizer = image.model.stack.level(level).quantizer
        code = int(image.map(level).flatten()[site])
        row = int(quantizer.rows(image.map(level)).flatten()[site])
        bits = self.bits[self._row(level)].flatten()[site] if self.bits else None
        said = f"level {level}, site {' '.join(str(int(n)) for n in place)}: code {code}"
        said += "" if bits is None else f", {float(bits):.2f} bits"
        self.pointed = (level, site)
        self.told.set_text(said)
        self.patch.set_source("")
        if level not in self.desk.opened.uses and not self.desk.busy.visible:
            await self.desk.run(lambda: self.desk.opened.use(level), aside=True)
        use = self.desk.opened.uses.get(level)
        if use is None or self.pointed != (level, site):  # codes are not counted beside other work, or others are meant
            return
        self.told.set_text(
            f"{said}; {int(use.counts[row])} of {use.rows.numel()} codes looked at. Its mean {self.values}:"
        )
        self.patch.set_source(address(of_patch(image.model, use.patches[row])))
