"""Generate: samples with their bits, blends of two images level by level, variations from each level."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from nicegui import events, ui

from vqstack.conditions import ConditionSettings
from vqstack.edited import Edited
from vqstack.explorer.desk import Desk
from vqstack.explorer.fields import Class, Number, Upload, sent
from vqstack.explorer.look import small
from vqstack.explorer.other import Other
from vqstack.explorer.pictures import noun, of_input
from vqstack.explorer.player import listen
from vqstack.model_settings import COLDEST, SamplingSettings
from vqstack.phases import read_condition
from vqstack.shapes import Floats, by_axis
from vqstack.texts import encode_texts

MOST = 64  # images of a gallery
TOGETHER = 8  # of them are drawn at once: those that are done are kept where one stops

Made: TypeAlias = tuple[int, Edited, float]
"""Its number, an image, and its bits."""


def condition_lines(source: str, rows: Floats | None) -> list[str]:
    """Lines of Python that read what an image is given."""
    if rows is None:
        return ["import torch", "from vqstack.texts import encode_texts", f"condition = torch.from_numpy({source})"]
    shape = tuple(rows.shape)
    read = (
        f"condition = torch.from_numpy({source}.astype(np.float32).reshape(-1, {', '.join(map(str, shape[1:]))})[:1])"
    )
    return ["import numpy as np", "import torch", read]


class Create:
    """The part of the page that draws images.

    Args:
        desk: of the tab.
        opening: called when an image of the gallery has been put on the desk.
    """

    def __init__(self, desk: Desk, opening: Callable[[], object]) -> None:
        self.desk, self.opening, self.model = desk, opening, desk.opened.model
        with ui.row().classes("items-start"):
            with ui.card():
                ui.label("Samples").classes("font-medium")
                self._samples()
            with ui.card():
                ui.label(f"Variations of the {noun(self.model)} that is open").classes("font-medium")
                self._variations()
            with ui.card():
                ui.label(f"Blend: the layout of the {noun(self.model)} that is open, the texture of another").classes(
                    "font-medium"
                )
                self._blends()
        ui.label("Click an image to look at it and edit it.").classes("note")
        self.gallery = ui.row().props('data-gallery=""')

    def _samples(self) -> None:
        self.label = Class(self.desk.opened.classes).classes("wide")
        with ui.row():
            self.num, self.seed = Number("images", 8, 1, MOST), Number("seed", 0)
        self.condition: Floats | None = None
        self.given: list[str] = []
        if self.model.condition is not None:
            self._conditions(self.model.condition)
        self._how_drawn()
        ui.button("draw", on_click=self._draw).props('data-do="sample"')

    def _how_drawn(self) -> None:
        """Fields for each part of the model, but for those that would change nothing."""
        settings, own = self.model.settings, self.model.settings.draws()
        names = ["prior", *(f"level {number}" for number in range(self.desk.opened.levels, 0, -1))]
        heads = ["", "temperature", "top-k (0: all)", *["guidance (1: none)"] * any(settings.guided)]
        self.draws = list[dict[str, Number]]()
        with ui.grid(columns=len(heads)).classes("draws"):
            for head in heads:
                ui.label(head)
            for name, draw, guided in zip(names, own, settings.guided, strict=True):
                ui.label(name)
                fields, fixed = dict[str, Number](), "the mean" if draw.mean else "the mode" if draw.mode else ""
                for what, value, least, inert in (
                    ("temperature", draw.temperature, COLDEST, fixed),
                    ("top-k", draw.top_k or 0, 0, fixed),
                    ("guidance", draw.guidance, 0, "" if guided else "–"),
                )[: len(heads) - 1]:
                    if inert:
                        ui.label(inert).props(f'aria-label="{what}, {name}: has no effect"').classes("inert")
                    else:
                        fields[what] = Number(f"{what}, {name}", value, least, whole=what == "top-k", shown=False)
                self.draws.append(fields)
        if any(settings.guided) and not all(settings.guided):
            ui.label("–: without a label, or trained without label_dropout: nothing to guide").classes("note")

    def _conditions(self, wanted: ConditionSettings) -> None:
        """Fields for what the model is given: a text, where it was trained with an encoder of texts, or a file."""
        if wanted.text is not None:
            text = ui.input("text").classes("wide").props("debounce=600")
            text.on_value_change(lambda event: self._text_written(event.value or ""))
        shape = by_axis(wanted.shape)
        field = Upload(f".npy of {shape} floats", self._condition_file, self._large, max_file_size=2**20)
        field.props('flat bordered data-condition=""')
        self.told = ui.label("nothing is given yet").props('aria-live=polite data-given=""')

    def _large(self, _: events.UiEventArguments) -> None:
        self.desk.say("that file is larger than 1 MB: give the floats of one image", "warning")

    async def _condition_file(self, event: events.UploadEventArguments) -> None:
        event.sender.reset()  # type: ignore[attr-defined]
        async with sent([event.file]) as (path,):
            found = await self.desk.run(lambda: read_condition(self.model, path)[:1])
        if found is not None:
            self.condition, self.given = found, condition_lines(f"np.load({path.name!r})", found)
            self.told.set_text(f"given: {path.name}")

    async def _text_written(self, text: str) -> None:
        """A text takes the place of what was given before; without it nothing is given."""
        settings = self.model.condition
        assert settings is not None and settings.text is not None
        encoder = settings.text
        self.condition, self.given = None, []
        self.told.set_text("nothing is given yet")
        if not text:
            return
        self.condition = await self.desk.run(lambda: torch.from_numpy(encode_texts(encoder, [text])))
        if self.condition is not None:
            self.given = condition_lines(f"encode_texts(model.settings.condition.text, [{text!r}])", None)
            self.told.set_text(f"given: {text}")

    def sampling(self) -> SamplingSettings:
        """What the fields say, beside what else the model's own settings have."""
        own, columns = self.model.settings.draws(), dict[str, tuple]()
        for column in ("temperature", "top_k", "guidance"):
            written = [row.get(column.replace("_", "-")) for row in self.draws]
            unchanged = [getattr(draw, column) or 0 for draw in own]
            columns[column] = tuple(o if w is None else w.number for w, o in zip(written, unchanged, strict=True))
        kept = {name: tuple(getattr(draw, name) for draw in own) for name in ("top_p", "mode", "mean", "confidence")}
        return SamplingSettings(**columns, **kept)

    async def _draw(self) -> None:
        numbers = self.desk.read(self.num, self.seed, *(field for row in self.draws for field in row.values()))
        if numbers is None:
            return
        label, (num, seed), sampling = self.label.number, map(int, numbers[:2]), self.sampling()
        condition, given, by = self.condition, self.given, self.desk.decoder

        def drawn(numbers: range) -> list[Edited]:
            images = Edited.gallery(
                self.model, len(numbers), seed, numbers.start, label, condition, sampling, decoder=by
            )
            return [image.after(given) for image in images]

        await self._make(f"sample, seed {seed}", num, drawn, TOGETHER)

    def _variations(self) -> None:
        levels = {level: f"keep level {level}, draw what lies below" for level in range(self.desk.opened.levels, 0, -1)}
        self.from_level = ui.select(levels, value=1, label="which level stays").classes("wide")
        self.varied = Number("seed", 0)
        ui.button("vary", on_click=self._vary).props('data-do="vary"')

    async def _vary(self) -> None:
        image, level, numbers = self.desk.opened_image(), int(self.from_level.value), self.desk.read(self.varied)
        if image is not None and numbers is not None:
            seed, name, image = int(numbers[0]), f"variation of {self.desk.name}", image.by(self.desk.decoder)
            await self._make(name, 8, lambda numbers: [image.varied(level, seed=seed, number=n) for n in numbers])

    def _blends(self) -> None:
        self.other = Other(self.desk)
        self.shares = []
        for level in range(1, self.desk.opened.levels + 1):
            ui.label(f"share of level {level} that is the other's")
            self.shares.append(ui.slider(min=0, max=1, step=0.05, value=0.5 if level == 1 else 0.0))
            self.shares[-1].props(f'label aria-label="share of level {level}"')
        ui.button("blend", on_click=self._blend).props('data-do="blend"')

    async def _blend(self) -> None:
        image, other = self.desk.opened_image(), self.other.image()
        shares = [float(slider.value) for slider in self.shares]
        if image is not None and other is not None:
            name, image = f"blend of {self.desk.name}", image.by(self.desk.decoder)
            await self._make(name, 4, lambda seeds: [image.blended(other(), shares, seed=seed) for seed in seeds])

    async def _make(self, kind: str, num: int, make: Callable[[range], list[Edited]], together: int = 1) -> None:
        """Fill the gallery with images 0 … num - 1, each with its bits, some ``together`` at a time."""

        def counted(numbers: range) -> list[Made]:
            return [
                (number, image, sum(image.bits.values())) for number, image in zip(numbers, make(numbers), strict=True)
            ]

        def kept(found: list[list[Made]]) -> str:
            done = sum(map(len, found))
            return f"{done} of {num} images are made and shown" if done else "the gallery is as it was"

        every = range(num)
        works = [partial(counted, every[first : first + together]) for first in range(0, num, together)]
        await self.desk.each(works, partial(self._show, kind), kept)

    def _show(self, kind: str, found: list[Made]) -> None:
        """Images in the gallery; the first takes the place of those from before."""
        if found[0][0] == 0:
            self.gallery.clear()
        with self.gallery:
            for number, image, bits in found:
                name = "" if image.labels is None else f"{self.desk.opened.classes.get(int(image.labels), '')}, "
                take = partial(self._take, f"{kind}, number {number}", image)
                told = f"{noun(self.model)} {number}, {name}{bits:,.0f} bits"
                with ui.column().classes("items-center gap-0"):
                    with ui.button(on_click=take).props("flat no-caps") as button:
                        button.props(f"data-made={number}").props["aria-label"] = told  # it may hold quotes
                        with ui.column().classes("items-center gap-0"):
                            small(of_input(self.model, image.pixels))
                            ui.label(f"{name}{bits:,.0f} bits")
                    listen(self.model, image.pixels, told)

    def _take(self, name: str, image: Edited) -> None:
        self.desk.begin(name, image)
        self.opening()
