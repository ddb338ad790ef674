"""An input as one hears it, or as it moves: beside its picture, where it is a sound or a video."""

from nicegui import ui

from vqstack.codec.pictures import is_of_sounds
from vqstack.explorer.pictures import heard, is_video, moving
from vqstack.model import HierarchicalModel
from vqstack.shapes import Pixels


class Player:
    """Nothing, where inputs of the model have no time."""

    def __init__(self, model: HierarchicalModel) -> None:
        self.model = model
        self.sound = ui.audio("") if is_of_sounds(model) else None
        self.clip = ui.image("").classes("shown").props('alt="the video" data-clip=""') if is_video(model) else None

    def play(self, pixels: Pixels) -> None:
        """Another input."""
        if self.sound is not None:
            self.sound.set_source(heard(self.model, pixels))
        if self.clip is not None:
            self.clip.set_source(moving(self.model, pixels))
