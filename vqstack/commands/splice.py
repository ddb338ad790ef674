"""Put a part of one image into another: vqstack splice RUN FIRST SECOND --box TOP LEFT BOTTOM RIGHT --out FOLDER.

The codes of the second image inside the box take the place of those of the first, at one level. The box counts sites of
that level's map, from 0; its end is not inside.
"""

from pydantic import Field

from vqstack.commands.editing import Editing, opened, shown, write
from vqstack.config import parse
from vqstack.editing import splice
from vqstack.errors import InputError
from vqstack.shapes import by_axis


class Command(Editing):
    """Put a part of the codes of one image into those of another."""

    box: tuple[int, ...] = Field(
        default=(),
        description="Where the second image begins along each axis, then where it ends, sites; must be given.",
    )


def main(arguments: list[str]) -> None:
    command = parse(Command, arguments)
    model, level, pixels = opened(command, count=2)
    axes = model.stack.map_shapes[level - 1]
    if len(command.box) != 2 * len(axes):
        quarter = " ".join(map(str, [*(n // 2 for n in axes), *axes]))
        raise InputError(
            f"--box: {len(command.box)} numbers for a map of {by_axis(axes)} sites: give {2 * len(axes)}, where the "
            f"second image begins along each axis, then where it ends, as --box {quarter} for the last of each"
        )
    codes = model.encode(pixels)[level - 1]
    spliced = splice(codes[:1], codes[1:], command.box)
    images = [("first", pixels[:1]), ("second", pixels[1:]), ("spliced", shown(command, model, spliced, level))]
    write(command, "splice", model, images)
