"""Edit: sites of a map drawn again, codes chosen by hand, copied or exchanged; undo and redo; what to take along."""

from functools import partial
from math import prod

import numpy as np
import torch
from nicegui import events, ui

from vqstack.edited import Choice, Edited, Site
from vqstack.explorer.board import Board
from vqstack.explorer.desk import Desk
from vqstack.explorer.fields import Number
from vqstack.explorer.files import code_data_set
from vqstack.explorer.look import map_picture, small, title_of
from vqstack.explorer.other import Other
from vqstack.explorer.pictures import address, noun, of_input, stored
from vqstack.explorer.player import Player, listen

FOLLOW = {"mean": "the likeliest codes, the mean of pixels", "draw": "drawn as the model draws"}
PIXELS = 2**14  # of an image whose single pixels can be chosen
UNDO = """<script>document.addEventListener("keydown", (event) => {
    const writing = ["INPUT", "TEXTAREA"].includes(document.activeElement?.tagName);
    if ((event.ctrlKey || event.metaKey) && "zy".includes(event.key.toLowerCase()) && !writing) event.preventDefault();
});</script>"""
"""Outside fields these keys are the page's, not the browser's, which would undo what was written in a field before."""
WHERE = {"near": "under the chosen sites", "all": "everywhere"}


class Edit:
    """The part of the page that changes codes."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.level, self.tool = desk, desk.opened.levels, "brush"
        self._choose_map()
        with ui.row().classes("items-start"):
            with ui.column():
                self.place = ui.column()
                self.here = ui.label("").props("aria-live=polite data-here=''")
                self.count = ui.label("no site chosen").props("aria-live=polite data-count=''")
                self._tools()
            with ui.column():
                name = noun(desk.opened.model)
                ui.label(f"the {name}").classes("font-medium")
                self.picture = ui.image("").classes("shown").props(f'alt="the edited {name}" data-edited=""')
                self.player = Player(desk.opened.model, f"the edited {name}")
                self._history()
            with ui.column().classes("actions"):
                self._actions()
        ui.label("Every map, with the sites outlined that the last change has reached:")
        with ui.row():
            self.overview = {level: self._small(level) for level in range(desk.opened.levels, 0, -1)}
        self._take_along()
        desk.watching.append(self.fresh)
        self._board()

    # --- which sites --------------------------------------------------------------------------------------------------

    def _choose_map(self) -> None:
        model = self.desk.opened.model
        lowest = 0 if len(model.stack.shape) == 3 and prod(model.stack.shape[1:]) <= PIXELS else 1
        names = {level: title_of(self.desk, level) for level in range(self.desk.opened.levels, lowest - 1, -1)}
        ui.toggle(names, value=self.level, on_change=lambda event: self._to(event.value)).props('aria-label="map"')

    def _to(self, level: int) -> None:
        self.level = level
        self._board()
        if self.desk.image is not None:
            self.fresh()

    def _board(self) -> None:
        """A board for the level."""
        shape, chain = self._shape()
        self.place.clear()
        with self.place:
            ui.label(title_of(self.desk, self.level)).classes("font-medium")
            self.board = Board(f"edit {title_of(self.desk, self.level)}", shape, chain, self._tell, self._counted)
        self.board.tool = self.tool
        self._counted()

    def _shape(self) -> tuple[tuple[int, ...], bool]:
        """Of the board: of pixels their sites, all channels together."""
        model = self.desk.opened.model
        shape = model.stack.variables[self.level].shape
        return (shape, bool(model.stack.level(self.level).quantizer.chain)) if self.level else (shape[1:], False)

    async def _tell(self, site: int) -> None:
        """What the site that is pointed at holds."""
        image, (shape, _) = self.desk.image, self._shape()
        place = " ".join(str(int(n)) for n in np.unravel_index(site, shape))
        held = image.map(self.level).flatten()[site] if image is not None and self.level else None
        self.here.set_text(f"site {place}" + ("" if held is None else f": code {int(held)}"))

    def _counted(self) -> None:
        self.offered.clear()  # they were another site's
        found = len(self.board.selected)
        self.count.set_text(f"{found} of {self.board.sites} sites chosen" if found else "no site chosen")

    @property
    def sites(self) -> list[Site] | None:
        """What is chosen; None where all of it is."""
        if len(self.board.selected) == self.board.sites:
            return None
        shape, _ = self._shape()
        places = [tuple(int(n) for n in np.unravel_index(site, shape)) for site in sorted(self.board.selected)]
        if self.level:
            return places
        channels = self.desk.opened.model.stack.shape[0]
        return [(channel, *place) for channel in range(channels) for place in places]

    def _tools(self) -> None:
        with ui.row():
            tools = ui.toggle({"brush": "brush", "rectangle": "rectangle"}, value="brush")
            tools.props('aria-label="how dragging chooses"')
            tools.on_value_change(lambda event: self._with(event.value))
            ui.button("whole map", on_click=lambda: self.board.choose(set(range(self.board.sites)))).props("flat")
            ui.button("none", on_click=lambda: self.board.choose(set())).props("flat")

    def _with(self, tool: str) -> None:
        self.tool = self.board.tool = tool

    # --- what is done to them -----------------------------------------------------------------------------------------

    def _actions(self) -> None:
        desk = self.desk
        with ui.row():
            self.seed = Number("seed", 0)
            ui.button("draw again", on_click=self._resample).props('data-do="resample"')
        ui.label("given all else, by the model's own conditionals").classes("note")
        self.follow = ui.select(FOLLOW, value="mean", label="maps below are")
        self.where = ui.select(WHERE, value="near", label="and change")
        ui.button("codes for this site …", on_click=self._choices).props('data-do="choices" outline')
        self.offered = ui.row().classes("offered")
        with ui.row():
            self.other = Other(desk)
            ui.button("copy its codes here", on_click=self._copy).props('data-do="copy" outline')
        with ui.row():
            self.old, self.new = Number("code", 0), Number("becomes", 1)
            ui.button("everywhere", on_click=self._exchange).props('data-do="exchange" outline')

    @property
    def _how(self) -> dict[str, bool]:
        return {"near": self.where.value == "near", "draw": self.follow.value == "draw"}

    def _something(self) -> bool:
        if not self.board.selected:
            self.desk.say("choose sites first: drag over the map, or move with arrow keys and press space", "warning")
        return bool(self.board.selected)

    async def _resample(self) -> None:
        if not self._something() or (numbers := self.desk.read(self.seed)) is None:
            return
        level, sites, seed, how = self.level, self.sites, int(numbers[0]), self._how
        if await self.desk.change(lambda image: image.resampled(level, sites, seed=seed, **how)):
            self.seed.set_value(seed + 1)

    async def _choices(self) -> None:
        """The likeliest codes of the chosen site, each with the picture that it makes."""
        if (image := self.desk.opened_image()) is None:
            return
        sites, level, how, image = self.sites or [], self.level, self._how, image.by(self.desk.decoder)
        if not level or len(self.board.selected) != 1:
            self.desk.say("choose one site of a map of codes", "warning")
            return
        site = sites[0] if sites else (0,) * len(image.map(level)[0].shape)

        def work() -> list[tuple[Choice, Edited]]:
            return [(c, image.placed(level, {site: c.code}, **how)) for c in image.choices(level, site)]

        if (found := await self.desk.run(work)) is None:
            return
        self.offered.clear()
        with self.offered:
            for choice, made in found:
                name, place = f"code {choice.code}, {choice.probability:.1%}", partial(self._place, level, site)
                with ui.column().classes("items-center gap-0"):
                    with ui.button(on_click=partial(place, choice.code)).props("flat no-caps") as button:
                        button.props(f'data-code={choice.code} aria-label="{name}"')
                        with ui.column().classes("items-center gap-0"):
                            small(of_input(image.model, made.pixels))
                            ui.label(f"{choice.code}: {choice.probability:.1%}")
                    listen(image.model, made.pixels, f"what {name}, makes")

    async def _place(self, level: int, site: Site, code: int) -> None:
        how = self._how
        await self.desk.change(lambda image: image.placed(level, {site: code}, **how))

    async def _copy(self) -> None:
        if not self._something():
            return
        if not self.level:
            self.desk.say("pixels are not copied: choose a map of codes", "warning")
            return
        if (other := self.other.image()) is None:
            return
        level, sites, how = self.level, self.sites, self._how
        await self.desk.change(lambda image: image.copied(level, other().map(level), sites, **how))

    async def _exchange(self) -> None:
        if not self.level:
            self.desk.say("pixels are not exchanged: choose a map of codes", "warning")
            return
        if (numbers := self.desk.read(self.old, self.new)) is None:
            return
        level, (old, new), how = self.level, map(int, numbers), self._how
        await self.desk.change(lambda image: image.exchanged(level, old, new, **how))

    # --- what came of it ----------------------------------------------------------------------------------------------

    def _history(self) -> None:
        with ui.row():
            ui.add_head_html(UNDO)
            ui.keyboard(self._key, repeating=False, ignore=["input", "textarea", "select"])
            ui.button("undo", on_click=self.desk.undo).props('data-do="undo" flat')
            ui.button("redo", on_click=self.desk.redo).props('data-do="redo" flat')
        ui.label("or Ctrl-Z and Ctrl-Shift-Z").classes("note")
        ui.button("keep it as the other image", on_click=self._keep).props('data-do="keep" flat')
        ui.label("to copy codes from, and to blend with, in place of a test image").classes("note")

    def _key(self, event: events.KeyEventArguments) -> None:
        held = event.modifiers
        if event.action.keydown and (held.ctrl or held.meta) and event.key.name.lower() in ("z", "y"):
            (self.desk.redo if held.shift or event.key.name.lower() == "y" else self.desk.undo)()

    def _keep(self) -> None:
        if (image := self.desk.opened_image()) is not None:
            self.desk.keep(image)

    def _small(self, level: int) -> Board:
        variable = self.desk.opened.model.stack.variables[level]
        with ui.column().classes("small"):
            ui.label(title_of(self.desk, level))
            chain = bool(self.desk.opened.model.stack.level(level).quantizer.chain)
            return Board(f"overview of level {level}", variable.shape, chain)

    def fresh(self) -> None:
        """Show another image."""
        image, before = self.desk.image, self.desk.before
        if image is None:
            return
        self.offered.clear()
        picture = of_input(image.model, image.pixels)
        self.picture.set_source(address(picture))
        self.player.play(image.pixels)
        self.board.show(map_picture(image, self.level) if self.level else picture)
        for level, board in self.overview.items():
            board.show(map_picture(image, level))
            changed = (image.map(level) != before.map(level)).flatten() if before else torch.zeros(1, dtype=torch.bool)
            board.mark(set(changed.nonzero().flatten().tolist()))
        self.code.set_text(self.desk.opened.script(image))

    def _take_along(self) -> None:
        with ui.row():
            ui.button("image", on_click=self._image).props('data-do="image" icon=download outline')
            ui.button("codes", on_click=self._codes).props('data-do="codes" icon=download outline')
            ui.button("Python", on_click=self._lines).props('data-do="python" icon=download outline')
        ui.label("The lines of Python that make this image again, exactly:")
        self.code = ui.label("").classes("lines").props('data-lines=""')

    def _image(self) -> None:
        if (image := self.desk.opened_image()) is not None:
            ending, content = stored(image.model, image.pixels)
            ui.download.content(content, f"edited{ending}")

    def _codes(self) -> None:
        if (image := self.desk.opened_image()) is not None:
            ui.download.content(code_data_set(image, "edited"), "edited-codes.zip")

    def _lines(self) -> None:
        if (image := self.desk.opened_image()) is not None:
            ui.download.content(self.desk.opened.script(image), "edited.py")
