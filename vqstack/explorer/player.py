"""An input as one hears it, or as it moves: below its picture, where it is a sound or a video."""

from nicegui import ui

from vqstack.explorer.pictures import heard, is_video, moving
from vqstack.model import HierarchicalModel
from vqstack.shapes import Pixels


class Player:
    """Nothing, where inputs of the model have no time.

    Args:
        model: whose inputs these are.
        name: for screen readers.
    """

    def __init__(self, model: HierarchicalModel, name: str) -> None:
        self.model = model
        self.sound = ui.audio("").props(f'aria-label="{name}"') if model.settings.sound else None
        self.clip = ui.image("").classes("shown").props(f'alt="{name}" data-clip="{name}"') if is_video(model) else None

    def clear(self) -> None:
        """Nothing, until there is another input."""
        for part in (self.sound, self.clip):
            if part is not None:
                part.set_source("")

    def play(self, pixels: Pixels) -> None:
        """Another input."""
        if self.sound is not None:
            self.sound.set_source(heard(self.model, pixels))
        if self.clip is not None:
            self.clip.set_source(moving(self.model, pixels))


def listen(model: HierarchicalModel, pixels: Pixels, name: str) -> None:
    """A player below a small picture of a sound; of other inputs the picture is all."""
    if model.settings.sound:
        ui.audio(heard(model, pixels)).classes("heard").props["aria-label"] = name
