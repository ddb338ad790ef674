"""Show what each level keeps of images: vqstack reconstruct RUN IMAGES… --out FOLDER [--level N].

Images are encoded up to a level and decoded again. Without --level every level is shown, beside the images.
"""

from vqstack.commands.editing import Editing, opened, shown, write
from vqstack.config import parse


class Command(Editing):
    """Show what each level keeps of images."""


def main(arguments: list[str]) -> None:
    command = parse(Command, arguments)
    model, level, pixels = opened(command)
    levels = [level] if command.level else range(1, len(model.stack) + 1)
    codes = model.encode(pixels)
    kept = [(f"level-{number}", shown(command, model, codes[number - 1], number)) for number in levels]
    write(command, "reconstruct", model, [("image", pixels), *kept])
