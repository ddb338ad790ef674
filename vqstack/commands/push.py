"""Put a model or codes on the hub: vqstack push FOLDER OWNER/NAME [--revision BRANCH] [--private] [--licence NAME].

It goes to huggingface.co, or where HF_ENDPOINT says, with the token of ``hf auth login``.
"""

from pathlib import Path

from pydantic import Field

from vqstack.config import Positional, parse
from vqstack.publish import push
from vqstack.settings import Settings
from vqstack.terminal import say


class Command(Settings):
    """Put a model or a code data set on the hub."""

    folder: Positional[Path] = Field(description="Folder of a finished run, a released model or a code data set.")
    name: Positional[str] = Field(description="OWNER/NAME on the hub; made where it is missing.")
    revision: str | None = Field(default=None, description="Branch, made where it is missing; default: main.")
    private: bool = Field(default=False, description="Only its owner can see it.")
    licence: str | None = Field(
        default=None,
        description="Its name on the hub, which refuses what it does not know; default: apache-2.0 for a model, for "
        "codes what their card says.",
    )


def main(arguments: list[str]) -> None:
    command = parse(Command, arguments)
    folder, name = command.folder, command.name
    address = push(folder, name, revision=command.revision, private=command.private, licence=command.licence)
    say(f"{folder} is {name if command.revision is None else f'{name}@{command.revision}'} on the hub: {address}")
