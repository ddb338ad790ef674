"""Go from one image to another: vqstack interpolate RUN FIRST SECOND --out FOLDER [--level N] [--num N].

The vectors of their codes at a level are mixed, each mixture is quantized again, and the codes are decoded.
"""

from pydantic import Field

from vqstack.commands.editing import Editing, opened, shown, write
from vqstack.config import parse
from vqstack.editing import interpolate


class Command(Editing):
    """Go from one image to another by mixing the vectors of their codes."""

    num: int = Field(default=8, ge=2, le=1000, description="Count of images on the way, both ends included.")


def main(arguments: list[str]) -> None:
    command = parse(Command, arguments)
    model, level, pixels = opened(command, count=2)
    codes = model.encode(pixels)[level - 1]
    images = shown(command, model, interpolate(model, codes[:1], codes[1:], level, command.num), level)
    write(command, "interpolate", model, [(str(step), images[step : step + 1]) for step in range(command.num)])
