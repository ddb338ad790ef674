"""Compress: a file becomes one of the codec; its bits by row, its beginning decoded, and all of it back."""

from pathlib import Path

from nicegui import events, ui

from vqstack.codec.archive import Restored
from vqstack.codec.blocks import BlockCodec
from vqstack.codec.pictures import safe_stem, stem_of
from vqstack.errors import InputError
from vqstack.explorer.desk import Desk
from vqstack.explorer.fields import Upload, sent, table
from vqstack.explorer.files import Compressed, zipped
from vqstack.explorer.look import title_of
from vqstack.explorer.pictures import address, of_input
from vqstack.explorer.player import listen
from vqstack.phases import read_images

LARGEST = 16 * 2**20  # bytes of what is dropped at once
SHOWN = 16  # images
NAMED = 3  # files


class Compressing:
    """The part of the page that compresses."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.made: Compressed | None = None
        ui.label("Drop files here. All their numbers come back exactly, and cost what the ledger says, and a header.")
        ui.label("Of pictures it is the pixels that come back, as PNG, whatever kind of file they were.").classes(
            "note"
        )
        what = "images, or what else the model knows; or a compressed file"
        dropped = Upload(what, self._take, self._large, multiple=True, max_total_size=LARGEST)
        dropped.props('data-drop=""')
        self.said = ui.label("").props('aria-live=polite data-size=""')
        self.table = table("bytes by row", "row", "ledger bytes", "coded bytes")
        with ui.column() as self.result:
            ui.label("the first bytes of the file, and the images as far as these tell them")
            self.slider = ui.slider(min=0, max=1, step=1, value=1, on_change=self._moved).classes("wide")
            self.slider.props('label aria-label="bytes that are decoded" data-bytes=""')
            self.pictures = ui.row()
            self.level = ui.label("").props('aria-live=polite data-level=""')
            with ui.row():
                ui.button("compressed", on_click=self._file).props('icon=download outline data-do="compressed"')
                ui.button("back again", on_click=self._back).props('icon=download outline data-do="back"')
        self.result.set_visibility(False)

    def _large(self, _: events.UiEventArguments) -> None:
        too_large(self.desk, "use vqstack compress")

    async def _take(self, event: events.MultiUploadEventArguments) -> None:
        event.sender.reset()  # type: ignore[attr-defined]
        async with sent(event.files) as paths:
            stems = {p: stem_of(p) if safe_stem(stem_of(p)) else f"image{n}" for n, p in enumerate(paths)}
            made = await self.desk.run(lambda: self._compressed(stems), wait=True)
        if made is None:
            return
        self.made, report = made, made.report.to_json()
        size, per = report["bytes"], report["bits_per_dim"]
        names = listed([path.name for path in paths])
        self.said.set_text(
            f"{names}: {made.given:,} bytes as given, {size:,} compressed ({per:.3f} bits/dim); "
            f"the ledger says {report['ledger_bytes']:,.1f}"
        )
        coded = {row: (f"{bits['ledger_bits'] / 8:,.1f}", bits["coded_bits"]) for row, bits in report["rows"].items()}
        coded["header and checks"] = ("", 8 * size - sum(bits or 0 for _, bits in coded.values()))
        self.table.rows = [
            {"row": row, "ledger bytes": ledger, "coded bytes": "" if bits is None else f"{bits / 8:,.1f}"}
            for row, (ledger, bits) in coded.items()
        ]
        self.result.set_visibility(True)
        self.slider.props(f"max={size}")
        self.slider.set_value(size)
        await self._decode(size)

    def _compressed(self, files: dict[Path, str]) -> Compressed:
        """InputError by the names that a person knows."""
        try:
            opened = self.desk.opened
            if opened.model.condition is not None:
                raise InputError("this model is given floats: vqstack compress takes them, as --condition")
            return Compressed(BlockCodec(opened.model), files, lambda path: read_images(opened.run, [path]))
        except InputError as error:
            said = str(error)
            for path in files:
                said = said.replace(str(path), path.name)
            raise InputError(said) from error

    async def _moved(self) -> None:
        if self.made is not None and not self.desk.busy.visible:
            await self._decode(int(self.slider.value))

    async def _decode(self, size: int) -> None:
        """The pictures of the first bytes; once more, where the slider has moved on meanwhile."""
        made = self.made
        assert made is not None

        def work() -> list[Restored]:
            try:
                return made.beginning(size)
            except InputError:  # not even its header
                return []

        while (found := await self.desk.run(work)) is not None:
            self._shown(size, [image for image in found if image.pixels is not None])
            if int(self.slider.value) == size:
                return
            size = int(self.slider.value)

    def _shown(self, size: int, found: list[Restored]) -> None:
        self.pictures.clear()
        level = max((image.level for image in found), default=None)
        said = f"all below {title_of(self.desk, level)} guessed" if level else "all that was given, exact"
        self.level.set_text(f"{size:,} bytes: {'too few for the top map' if level is None else said}")
        with self.pictures:
            for number, image in enumerate(found[:SHOWN]):
                assert image.pixels is not None
                with ui.column().classes("gap-0"):
                    picture = ui.image(address(of_input(self.desk.opened.model, image.pixels[None]))).classes("shown")
                    picture.props(f"data-decoded={number}").props["alt"] = image.entry.stem  # it may hold quotes
                    ui.label(image.entry.stem).classes("note")
                    listen(self.desk.opened.model, image.pixels[None], image.entry.stem)
            if len(found) > SHOWN:
                ui.label(f"and {len(found) - SHOWN} more, which are not shown").classes("note")

    def _file(self) -> None:
        if self.made is not None:
            ui.download.content(self.made.content, "explored.vqs")

    async def _back(self) -> None:
        if self.made is None or (named := await self.desk.run(self.made.back)) is None:
            return
        if len(named) == 1:
            ((name, content),) = named.items()
            ui.download.content(content, name)
        else:
            ui.download.content(zipped(named), "back.zip")


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def too_large(desk: Desk, remedy: str) -> None:
    """What is said of files that are not taken; their names are not told."""
    desk.say(f"files of more than {LARGEST // 2**20} MB are not taken here: {remedy}", "warning")
