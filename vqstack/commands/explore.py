"""Look at codes and edit them in the browser: vqstack explore RUN [--port PORT] [--open].

Opens a page on this machine, which nobody else can reach unless --host or --share says so.
"""

from pathlib import Path

from pydantic import Field

from vqstack import threads
from vqstack.config import Positional, parse
from vqstack.errors import extra
from vqstack.settings import Settings


class Command(Settings):
    """Look at codes and edit them in the browser."""

    run: Positional[Path] = Field(description="Folder of a run or of a released model, or OWNER/NAME on the hub.")
    port: int = Field(default=8321, ge=0, le=65535, description="Port of the page, no unit; 0: any that is free.")
    host: str = Field(
        default="127.0.0.1", description="Address to listen at; 0.0.0.0 lets everybody in the network in."
    )
    open: bool = Field(default=False, description="Open the page in this machine's browser.")
    share: bool = Field(
        default=False,
        description="Let others in through NiceGUI's relay on the internet, for an hour: whoever has the address that "
        "is printed can use the model and send files. Without a relay: ssh -L 8321:localhost:8321 THIS_MACHINE.",
    )


def main(arguments: list[str]) -> None:
    command = parse(Command, arguments)
    missing = "explore: nicegui is not installed: install it with pip install 'vqstack[explore]'"
    page = extra("vqstack.explorer.page", missing)
    from vqstack.explorer.opened import Opened

    port = page.free_port(command.host, command.port)
    opened = Opened(command.run)
    threads.share_cores()
    page.serve(opened, command.host, port, show=command.open, share=command.share)
