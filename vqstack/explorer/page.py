"""The page: what is open, its parts, and the server on this machine."""

import gc
import socket
from contextlib import suppress
from functools import partial

from nicegui import Client, app, events, ui
from nicegui.client import ClientConnectionTimeout

from vqstack.edited import Edited
from vqstack.errors import InputError
from vqstack.explorer.codebooks import Codebooks
from vqstack.explorer.compressing import LARGEST, Compressing, too_large
from vqstack.explorer.create import Create
from vqstack.explorer.desk import Desk
from vqstack.explorer.edit import Edit
from vqstack.explorer.fields import Class, Number, Upload, sent
from vqstack.explorer.look import Look
from vqstack.explorer.opened import Opened
from vqstack.shapes import by_axis
from vqstack.terminal import say

KEPT = 12 * 60 * 60  # seconds after which a closed tab is forgotten
DARK = (False, True, None)  # light, dark, as the system
PARTS = ("Look", "Edit", "Generate", "Codebooks", "Compress")
BLUE = "#2c6aa8"  # white on it and it on white are read by most: 5.6 to 1
STYLE = """
.q-btn, .q-tab__label { text-transform: none !important; }
.small .board { max-width: 9rem; }
.board { max-width: 18rem; width: 100%; image-rendering: pixelated; cursor: crosshair; }
.board, .board img { -webkit-user-drag: none; user-select: none; }
.board:focus { outline: 3px solid #ff9800; outline-offset: 2px; }
.shown { width: 16rem; max-width: 100%; image-rendering: pixelated; }
.shown img { max-height: 40rem; object-fit: contain !important; }
.chosen { touch-action: none; }
.draws { gap: 0.5rem !important; } .draws .number { width: 4.2rem; }
.q-card { max-width: calc(100vw - 3rem); overflow-x: auto; }
.heard { width: 12rem; height: 2rem; }
.thumb { width: 7rem; image-rendering: pixelated; }
.patch { width: 4rem; image-rendering: pixelated; }
.chart { width: 26rem; max-width: 90vw; height: 10rem; }
.about { flex: 1 1 20rem; min-width: 0; }
.number { width: 7rem; } .wide { width: 18rem; max-width: 90vw; } .actions { max-width: 26rem; }
.lines { width: 44rem; max-width: 90vw; overflow-x: auto; white-space: pre; font-family: monospace; }
.note { font-size: 0.85rem; opacity: 0.8; }
.q-notification .q-btn { color: inherit !important; }
.told { max-width: 18rem; min-height: 4rem; }
.q-uploader__subtitle { display: none; }  /* how much is sent: it is there at once */
.body--dark .q-page-container .text-primary { color: #8ab8e6 !important; }  /* read on dark, too */
@media (max-width: 700px) {  /* what is said of a site stays in sight, where maps stand below each other */
    .q-tab-panels, .q-tab-panels > .q-panel, .q-tab-panel { overflow: visible !important; }
    .pointed { position: sticky; bottom: 0; z-index: 1; width: 100%; padding: 0.25rem 0; background: white; }
    .body--dark .pointed { background: #1d1d1d; } .pointed .told { max-width: none; min-height: 0; }
}
@keyframes appear { from { visibility: hidden; } }
.stop { animation: appear 0.5s step-end backwards; }  /* not for what is over in a moment */
"""


class Chooser:
    """Where an image comes from: the test split, a file, a sample."""

    def __init__(self, desk: Desk) -> None:
        self.desk, opened = desk, desk.opened
        with ui.row().classes("items-end"):
            if opened.split is not None:
                self.number = Number("test image", 0, 0, len(opened.split) - 1)
                ui.button("open", on_click=self._test).props('data-do="test"')
            self.seed, self.label = Number("seed", 0), Class(opened.classes).classes("number")
            ui.button("draw one", on_click=self._sample).props('data-do="drawn"')
            self.decoder = ui.select(["likelihood", "renderer"], value=desk.decoder, label="pixels by")
            self.decoder.on_value_change(lambda event: desk.decode_by(event.value))
            self.decoder.set_visibility(opened.model.renderer is not None)
            own = Upload("own file", self._file, self._large, max_file_size=LARGEST)
            own.props('flat bordered data-own=""')
        self.said = ui.label("No image is open yet: open one of the test split, draw one, or drop a file of your own.")
        self.said.props('aria-live=polite data-open=""')
        desk.watching.append(self.fresh)

    def fresh(self) -> None:
        """Say what is open."""
        if self.desk.image is not None:
            self.said.set_text(f"open: {self.desk.title}")

    async def _test(self) -> None:
        if numbers := self.desk.read(self.number):
            number = int(numbers[0])
            await self.desk.start(f"test image {number}", lambda: self.desk.opened.image(number))

    async def _sample(self) -> None:
        if numbers := self.desk.read(self.seed):
            seed, label = int(numbers[0]), self.label.number
            draw = partial(Edited.drawn, self.desk.opened.model, seed, label=label, decoder=self.desk.decoder)
            await self.desk.start(f"sample, seed {seed}", draw)

    def _large(self, _: events.UiEventArguments) -> None:
        too_large(self.desk, "make it smaller")

    async def _file(self, event: events.UploadEventArguments) -> None:
        event.sender.reset()  # type: ignore[attr-defined]
        async with sent([event.file]) as (path,):
            sides = by_axis(self.desk.opened.model.stack.shape[1:])
            name = f"{path.name}, as the run would read it, {sides}"
            await self.desk.start(name, lambda: self.desk.opened.file(path, path.name))


def build(opened: Opened, client: Client) -> Desk:
    """The page of one tab."""
    ui.add_css(STYLE)
    ui.colors(primary=BLUE)
    dark = ui.dark_mode(None)
    with ui.header().classes("items-center flex-wrap"):
        ui.label(f"vqstack explore: {opened.name}").classes("text-lg")
        ui.space()
        colours = ui.toggle({0: "light", 1: "dark", 2: "as the system"}, value=2).props("dense")
        colours.props('aria-label="colours of the page" toggle-color=white toggle-text-color=primary text-color=white')
        desk = Desk(opened, client)
    with ui.page_sticky("bottom-right", x_offset=16, y_offset=16).classes("z-top"):
        stop = (
            ui.button("stop", on_click=desk.stop)
            .props('data-do="stop" aria-label="stop what is computed" color=negative icon=stop')
            .classes("stop")
        )
        stop.bind_visibility_from(desk.busy)
        ui.keyboard(desk.key, ignore=[])
    chooser = Chooser(desk)
    with ui.tabs().classes("w-full") as tabs:
        for name in PARTS:
            ui.tab(name).props(f'data-tab="{name}"')
    with ui.tab_panels(tabs, value=PARTS[0], animated=False, keep_alive=True).classes("w-full"):
        with ui.tab_panel("Look"):
            look = Look(desk)
        with ui.tab_panel("Edit"):
            Edit(desk)
        with ui.tab_panel("Generate"):
            Create(desk, lambda: tabs.set_value("Edit"))
        with ui.tab_panel("Codebooks"):
            Codebooks(desk, lambda: tabs.set_value("Look"))
        with ui.tab_panel("Compress"):
            Compressing(desk)

    def see(part: str) -> None:
        desk.history.part = part
        look.see(part == PARTS[0])

    def paint(how: bool | None) -> None:
        desk.history.dark = how
        dark.set_value(how)

    def again() -> None:
        tabs.set_value(desk.history.part or PARTS[0])
        chooser.decoder.set_value(desk.decoder)
        colours.set_value(DARK.index(desk.history.dark))

    tabs.on_value_change(lambda event: see(event.value))
    colours.on_value_change(lambda event: paint(DARK[event.value]))
    desk.returned = again
    return desk


def free_port(host: str, port: int) -> int:
    """The port, or for 0 one that is free; InputError where it is taken."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
            return int(tried.getsockname()[1])
    except OSError as error:
        raise InputError(f"--port {port}: {error.strerror}: choose another, or 0 for any that is free") from error


def register(opened: Opened, place: str = "/") -> None:
    """Let the server have a page of what is opened."""

    @ui.page(place, title=f"vqstack: {opened.name}")
    async def page(client: Client) -> None:
        desk = build(opened, client)
        with suppress(ClientConnectionTimeout):  # what fetched the page was no browser
            await desk.remember()

    app.on_shutdown(opened.end)


def serve(opened: Opened, host: str, port: int, *, show: bool, share: bool) -> None:
    """Serve the page until it is stopped."""
    register(opened)
    app.storage.max_tab_storage_age = KEPT
    app.on_startup(settle)
    app.on_startup(lambda: say(f"http://{host}:{port}"))
    if share:
        app.urls.on_change(shared)
    ui.run(
        host=host,
        port=port,
        show=show,
        reload=False,
        show_welcome_message=False,
        on_air=share or None,
        reconnect_timeout=600,  # a laptop that slept finds its image again
        favicon="🧩",
    )


def settle() -> None:
    """Let what a tab leaves be collected soon: beside all that torch has loaded it would not seem worth the search."""
    gc.freeze()
    gc.collect()


def shared() -> None:
    """Print the address that the relay has given the page; the others are those of this machine."""
    for url in app.urls:
        if not url.startswith("http:"):
            say(f"{url}, for everybody who has this address")
