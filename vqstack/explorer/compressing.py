"""Compress: a file becomes one of the codec; its bits by row, its beginning decoded, and all of it back."""

from pathlib import Path
from tempfile import TemporaryDirectory

from nicegui import events, ui

from vqstack.codec.blocks import BlockCodec
from vqstack.codec.pictures import safe_stem
from vqstack.errors import InputError
from vqstack.explorer.desk import Desk
from vqstack.explorer.files import Compressed
from vqstack.explorer.look import title_of
from vqstack.explorer.pictures import address, of_input, stored

LARGEST = 16 * 2**20  # bytes of a file


class Compressing:
    """The part of the page that compresses."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.made: Compressed | None = None
        ui.label("Drop a file here. It comes back exactly: what it costs is what the ledger says.")
        dropped = ui.upload(on_upload=self._take, on_rejected=lambda: too_large(desk), max_file_size=LARGEST)
        dropped.props('auto-upload data-drop=""').classes("wide")
        self.said = ui.label("").props('aria-live=polite data-size=""')
        columns = [
            {"name": name, "label": name, "field": name, "align": "left" if name == "row" else "right"}
            for name in ("row", "ledger bytes", "coded bytes")
        ]
        self.table = ui.table(columns=columns, rows=[], row_key="row").props('dense aria-label="bytes by row"')
        with ui.column() as self.result:
            ui.label("the first bytes of the file, and the first image as far as they tell it")
            self.slider = ui.slider(min=0, max=1, step=1, value=1, on_change=self._moved).classes("wide")
            self.slider.props('label aria-label="bytes that are decoded" data-bytes=""')
            self.shown = ui.image("").classes("shown").props('alt="decoded from the beginning" data-decoded=""')
            self.level = ui.label("").props('aria-live=polite data-level=""')
            with ui.row():
                ui.button("compressed", on_click=self._file).props('icon=download outline data-do="compressed"')
                ui.button("back again", on_click=self._back).props('icon=download outline data-do="back"')
        self.result.set_visibility(False)

    async def _take(self, event: events.UploadEventArguments) -> None:
        event.sender.reset()  # type: ignore[attr-defined]
        with TemporaryDirectory() as folder:
            path = Path(folder) / Path(event.file.name).name
            await event.file.save(path)
            stem = path.stem if safe_stem(path.stem) else "image"
            made = await self.desk.run(lambda: Compressed(BlockCodec(self.desk.opened.model), {path: stem}))
        if made is None:
            return
        self.made, report = made, made.report.to_json()
        size, per = report["bytes"], report["bits_per_dim"]
        self.said.set_text(
            f"{event.file.name}: {made.given:,} bytes as given, {size:,} compressed, {per:.3f} bits/dim; "
            f"{100 * report['over_ledger']:+.2f} % beside the ledger's {report['ledger_bytes']:,.1f}"
        )
        self.table.rows = [
            {"row": row, "ledger bytes": f"{bits['ledger_bits'] / 8:,.1f}", "coded bytes": self._bytes(bits)}
            for row, bits in report["rows"].items()
        ]
        self.result.set_visibility(True)
        self.slider.props(f"max={size}")
        self.slider.set_value(size)
        await self._decode(size)

    @staticmethod
    def _bytes(bits: dict) -> str:
        return "" if bits["coded_bits"] is None else f"{bits['coded_bits'] / 8:,.1f}"

    async def _moved(self) -> None:
        if self.made is not None and not self.desk.busy.visible:
            await self._decode(int(self.slider.value))

    async def _decode(self, size: int) -> None:
        """The picture of the first bytes; once more, where the slider has moved on meanwhile."""
        made = self.made
        assert made is not None

        def work() -> tuple:
            try:
                return made.beginning(size)
            except InputError:  # not even its header
                return None, None

        while (found := await self.desk.run(work)) is not None:
            pixels, level = found
            said = f"all below {title_of(self.desk, level)} guessed" if level else "the image itself, exact"
            said = "too few bytes for the top map" if pixels is None else said
            self.level.set_text(f"{size:,} bytes: {said}")
            self.shown.set_visibility(pixels is not None)
            if pixels is not None:
                self.shown.set_source(address(of_input(self.desk.opened.model, pixels)))
            if int(self.slider.value) == size:
                return
            size = int(self.slider.value)

    def _file(self) -> None:
        if self.made is not None:
            ui.download.content(self.made.content, "explored.vqs")

    async def _back(self) -> None:
        made = self.made
        if made is None:
            return
        found = await self.desk.run(lambda: made.beginning(len(made.content)))
        if found is not None and found[0] is not None:
            ending, content = stored(self.desk.opened.model, found[0])
            ui.download.content(content, f"back{ending}")


def too_large(desk: Desk) -> None:
    """What is said of a file that is not taken."""
    desk.say(f"that file is larger than {LARGEST // 2**20} MB: use vqstack compress", "warning")
