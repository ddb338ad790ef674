"""Show what each level keeps of images: vqstack reconstruct RUN IMAGES… --out FOLDER [--level N] [--own-size].

Images are encoded up to a level and decoded again. Without --level every level is shown, beside the images. With
--own-size images are not fitted to the model: level 1 takes them by tiles that overlap.
"""

from functools import partial

from pydantic import Field, model_validator

from vqstack.codec.pictures import pictures_of_files, reader_of
from vqstack.commands.editing import Editing, opened, opened_model, shown, write
from vqstack.config import parse
from vqstack.images import saver
from vqstack.output import Output, saved
from vqstack.terminal import Progress, say
from vqstack.tokenizer import Tokenizer


class Command(Editing):
    """Show what each level keeps of images."""

    own_size: bool = Field(default=False, description="Images keep their size, whatever it is; only level 1 is shown.")
    tile: tuple[int, ...] | None = Field(
        default=None, description="With --own-size: rows and columns of a tile, pixels; default: the model's own size."
    )

    @model_validator(mode="after")
    def check_tiles(self) -> "Command":
        if self.tile is not None and not self.own_size:
            raise ValueError("tile: images are fitted to the model without --own-size: add it, or leave --tile out")
        if self.own_size and (self.sample or self.level not in (None, 1)):
            raise ValueError("own_size: shows level 1 as it decodes: leave --sample and --level out")
        return self


def main(arguments: list[str]) -> None:
    command = parse(Command, arguments)
    if command.own_size:
        return of_any_size(command)
    model, level, pixels = opened(command)
    levels = [level] if command.level else range(1, len(model.stack) + 1)
    codes = model.encode(pixels)
    kept = [(f"level-{number}", shown(command, model, codes[number - 1], number)) for number in levels]
    write(command, "reconstruct", model, [("image", pixels), *kept])


def of_any_size(command: Command) -> None:
    """A picture of every image, as large as that, under the same name."""
    model = opened_model(command)
    tokenizer = Tokenizer(model, command.tile)
    pictures = pictures_of_files({path: path.stem for path in command.images}, reader_of(model))
    ending, save = saver(**model.settings.stored(), asked=command.format)
    output = Output(command.out, "reconstruct")
    for number, entry in enumerate(Progress(pictures.entries, desc="reconstruct", unit="img", disable=None)):
        pixels = pictures.load(number)[None]
        codes = tokenizer.encode(pixels)
        picture = tokenizer.decode(codes, pixels.shape[2:], command.decoder)[0]
        output.write(f"{entry.stem}{ending}", saved(partial(save, picture)))
    output.finish()
    say(f"{len(pictures.entries)} images in {command.out}")
