"""What trains a renderer: alone on frozen codes, or together with the encoder of level 1; with a game or without.

Neither is a likelihood: the weights of a renderer are chosen by ``distance``, how far its pictures are from the images,
or by ``frechet``, how far all of them are from all images.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from vqstack.errors import InputError
from vqstack.level import Level
from vqstack.metrics import Gaussian, gaussian_distance
from vqstack.renderer.adversary import Adversary, Play
from vqstack.renderer.network import Renderer
from vqstack.renderer.perceptual import Distance, Pictures, pictures_of
from vqstack.renderer.settings import RendererSettings
from vqstack.shapes import Objective, Pixels, Vectors


class RendererTraining(nn.Module):
    """``argmin E[p |x - g(z)| + q d(x, g(z))]``, and the game against a discriminator where there is one.

    Args:
        renderer: g, trained in place.
        settings: the weights p, q and those of the game.

    Attributes:
        perceptual: d; no part of the state. Given before training (see :meth:`compare_by`).
        opponent: the discriminator, which the training loop gives an optimiser of its own.
    """

    def __init__(self, renderer: Renderer, settings: RendererSettings) -> None:
        super().__init__()
        self.renderer, self.settings, self.chosen_by = renderer, settings, settings.chosen_by
        self.perceptual: Distance | None
        object.__setattr__(self, "perceptual", None)
        channels, *sides = renderer.pixels.shape
        against = settings.adversary
        self.adversary = (
            Adversary(against, channels, tuple(sides), renderer.last_weight.shape) if against.weight else None
        )

    @property
    def opponent(self) -> nn.Module | None:
        return None if self.adversary is None else self.adversary.discriminator

    @property
    def networks(self) -> list[nn.Module]:
        """The plain networks, which can be compiled."""
        return [self.renderer]

    def compare_by(self, perceptual: Distance) -> None:
        """Take d, which is frozen: no part of the module, of its checkpoints or of its averages."""
        if self.chosen_by == "frechet" and not hasattr(perceptual, "features"):
            kind = self.settings.perceptual
            raise InputError(f"renderer.choose: frechet compares features, {kind} has none: set it to distance")
        object.__setattr__(self, "perceptual", perceptual)  # also where it is a module

    def distance(self, real: Pictures, drawn: Pictures) -> tuple[Tensor, dict[str, Tensor]]:
        """``p |x - g| + q d(x, g)`` and its parts; the absolute error is a share of the range of a pixel."""
        assert self.perceptual is not None
        pixel = (real - drawn.float()).abs().mean() / 2
        perceptual = self.perceptual(real, drawn).mean()
        total = self.settings.pixel * pixel + self.settings.perceptual_weight * perceptual
        return total, {"pixel": pixel.detach(), "perceptual": perceptual.detach(), "distance": total.detach()}

    def forward(self, pixels: Pixels, vectors: Vectors) -> Objective:
        """The distance, in training with the game; metrics: its parts, and those of the game."""
        real, drawn = pictures_of(pixels, self.renderer.pixels.size), self.renderer(vectors)
        distance, metrics = self.distance(real, drawn)
        if not self.training:
            return Objective(distance, metrics, rows=self._rows(real, drawn))
        play = self.play(real, drawn, distance)
        return Objective(distance + play.renderer + play.discriminator, metrics | play.metrics)

    def play(self, real: Pictures, drawn: Pictures, distance: Tensor) -> Play:
        """The game, in training; nothing where there is none."""
        if self.adversary is None or not self.training:
            return Play(distance.new_zeros(()), distance.new_zeros(()), {})
        return self.adversary(real, drawn, distance, self.renderer.last_weight)

    def _rows(self, real: Pictures, drawn: Pictures) -> dict[str, Tensor]:
        """What a choice by Fréchet distance needs of each picture."""
        if self.chosen_by != "frechet":
            return {}
        features = self.perceptual.features  # type: ignore[union-attr]  # see compare_by
        return {"real": features(real), "drawn": features(drawn.clamp(-1, 1))}

    def summary(self, moments: Mapping[str, Tensor]) -> dict[str, float]:
        """Fréchet distance of all pictures to all images of a split, from the moments of their features."""
        if self.chosen_by != "frechet":
            return {}
        return {"frechet": gaussian_distance(*(Gaussian.of_moments(moments[name]) for name in ("real", "drawn")))}


class RenderedLevel(nn.Module):
    """``argmin E[-ln P_dec_1(y | z_1) / N + w distance(y, g(z_1))]`` over encoder, codebook, decoder and renderer.

    Decoder and renderer read the same quantized vectors, through which both gradients pass straight to the encoder: the
    codes come to hold what the eye asks for beside what the likelihood does. A discriminator, where there is one, adds
    its term to the distance, and is trained by its own loss, whatever w is.

    Args:
        level: level 1.
        rendering: see :class:`RendererTraining`.
        weight: w.
    """

    chosen_by = "both"

    def __init__(self, level: Level, rendering: RendererTraining, weight: float) -> None:
        super().__init__()
        self.level, self.rendering, self.weight = level, rendering, weight

    @property
    def networks(self) -> list[nn.Module]:
        """The plain networks, which can be compiled."""
        return self.level.networks + self.rendering.networks

    @property
    def opponent(self) -> nn.Module | None:
        return self.rendering.opponent

    def forward(self, below: Pixels) -> Objective:
        """Metrics: those of both, and ``both``, the two added up as in the loss, by which weights are chosen."""
        quantized = self.level.quantize(below)
        distribution = self.level.distribution(quantized.vectors, quantized.codes)
        alone = self.level.objective(below, quantized, distribution)
        real, drawn = pictures_of(below, self.level.lower.size), self.rendering.renderer(quantized.vectors)
        distance, metrics = self.rendering.distance(real, drawn)
        play = self.rendering.play(real, drawn, distance)
        both = alone.metrics["nats"] / distribution.sites + self.weight * metrics["distance"]
        loss = alone.loss + self.weight * (distance + play.renderer) + play.discriminator
        return Objective(loss, {**alone.metrics, **metrics, **play.metrics, "both": both}, alone.histograms)
