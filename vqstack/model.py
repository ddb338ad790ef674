"""The whole model: stack and prior, one likelihood for pixels and all codes, one sampler from label to pixels."""

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vqstack.code_model import AutoregressiveCodeModel, CodeModelSettings
from vqstack.errors import InputError
from vqstack.ledger import Ledger
from vqstack.likelihood import Distribution, Draw, noise
from vqstack.pretrained import Pretrained
from vqstack.shapes import AnyCodes, Codes, Labels, Nats, Pixels, finest
from vqstack.stack import Stack, StackSettings


class SamplingSettings(BaseModel):
    """How images are drawn: one value for the prior and all levels, or one each, prior first, level 1 last."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: tuple[float, ...] = Field((1.0,), description="Temperature; one, or one a level, prior first.")
    top_k: tuple[int, ...] = Field(
        (0,), description="Draw among the k most likely values; 0: all. One, or one a level."
    )
    top_p: tuple[float, ...] = Field((1.0,), description="Nucleus probability in (0, 1]. One, or one a level.")
    mode: tuple[bool, ...] = Field((False,), description="Most likely value instead of drawing. One, or one a level.")

    def draws(self, levels: int) -> list[Draw]:
        """One :class:`Draw` for the prior, level L, …, level 1; wrong numbers or values are errors."""
        columns: dict[str, list] = {}
        for name in ("temperature", "top_k", "top_p", "mode"):
            given = getattr(self, name)
            if len(given) not in (1, levels + 1):
                raise InputError(
                    f"{name} takes one value or {levels + 1} (prior, level {levels} … level 1), not {len(given)}"
                )
            columns[name] = list(given) * (levels + 1 if len(given) == 1 else 1)
        for t in columns["temperature"]:
            if not 1e-3 <= t < float("inf"):
                raise InputError(
                    f"temperature {t} is not above 0 and finite (0.001 at least): for the likeliest image use mode"
                )
        for k in columns["top_k"]:
            if k < 0:
                raise InputError(f"top_k {k} is negative: use 0 for all values")
        for p in columns["top_p"]:
            if not 0 < p <= 1:
                raise InputError(f"top_p {p} is outside (0, 1]")
        return [
            Draw(temperature=t, top_k=k or None, top_p=p, mode=m) for t, k, p, m in zip(*columns.values(), strict=True)
        ]


class ModelSettings(BaseModel):
    """Everything that is needed to build the model again: the ``config.json`` of an artefact."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stack: StackSettings = Field(StackSettings(), description="The levels.")
    prior: CodeModelSettings = Field(CodeModelSettings(), description="The transformer over the top map.")
    sampling: SamplingSettings = Field(SamplingSettings(), description="Default settings of generation.")
    image_shape: tuple[int, int, int] = Field(description="Channels, rows and columns of the images.")
    values: int = Field(256, ge=2, le=256, description="V, grey values a channel: pixels are 0 … V-1.")
    classes: int = Field(0, ge=0, description="Number of class labels; 0: none.")


@dataclass(frozen=True)
class Sample:
    """Generated images, the code maps they came from (z_1 … z_L, those that were drawn or given), and their labels."""

    pixels: Pixels
    codes: dict[int, AnyCodes]
    labels: Labels | None


class HierarchicalModel(nn.Module, Pretrained):
    """``P(y, z_1 … z_L, label)``: labels by their training frequency, prior, decoders.

    Args:
        settings: see :class:`ModelSettings`.
    """

    settings_class = ModelSettings

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.stack = Stack(settings.stack, settings.image_shape, settings.values)
        top = self.stack.levels[-1]
        self.prior = AutoregressiveCodeModel(settings.prior, top.map_shape, top.quantizer.size, settings.classes)
        uniform = torch.full((self.prior.classes,), 1 / max(self.prior.classes, 1))
        self.label_probs: Tensor
        self.register_buffer("label_probs", uniform)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.label_probs.device

    @property
    def classes(self) -> int:
        """Number of class labels that the prior is conditional on; 0: none."""
        return self.prior.classes

    @torch.no_grad()
    def count_labels(self, labels: Labels) -> None:
        """Set P(label) to the training frequencies, one count added to each class so that none is impossible."""
        counts = torch.bincount(labels, minlength=self.classes).to(self.label_probs) + 1
        self.label_probs.copy_(counts / counts.sum())

    def encode(self, pixels: Pixels) -> list[AnyCodes]:
        """``[z_1 … z_L]``."""
        return self.stack.encode(pixels)

    def decode(self, codes: Codes, level: int = 1) -> Pixels:
        """The most likely image given ``z_level`` (each map below by its mode)."""
        return self.stack.decode(codes, level)

    def conditional(self, level: int, codes: AnyCodes, labels: Labels | None = None) -> Distribution:
        """``P(z_{level-1} | z_level)``, over pixels for level 1; what scoring, sampling and coding all walk."""
        return self.stack.level(level).decode(codes)

    def code_lengths(self, pixels: Pixels, codes: list[AnyCodes], labels: Labels | None = None) -> dict[str, Nats]:
        """Nats of each image by row: label (if conditional), prior, level-L … level-1, for any codes z_1 … z_L."""
        self.check_labels(labels)
        given = labels if self.classes else None
        rows: dict[str, Nats] = {}
        if given is not None:
            rows["label"] = -self.label_probs[given].log()
        rows["prior"] = -self.prior.log_prob(codes[-1], given)
        for number in range(len(self.stack), 0, -1):
            below = codes[number - 2] if number > 1 else pixels
            rows[f"level-{number}"] = -self.conditional(number, codes[number - 1], given).log_prob(below)
        return rows

    def joint_log_prob(self, pixels: Pixels, codes: list[AnyCodes], labels: Labels | None = None) -> Nats:
        """``ln P(y, z_1 … z_L, label)``, nats; over all arguments the probabilities sum to one."""
        rows = self.code_lengths(pixels, codes, labels).values()
        return -torch.stack([nats.to(finest(self.device)) for nats in rows]).sum(0)

    @torch.no_grad()
    def ledger(self, pixels: Pixels, labels: Labels | None = None) -> Ledger:
        """The ledger of images: code lengths with z = enc(y)."""
        return Ledger.of(self.code_lengths(pixels, self.encode(pixels), labels), self.dims)

    @property
    def dims(self) -> dict[str, int]:
        """Sites that each row of the ledger describes."""
        maps = [rows * columns for rows, columns in self.stack.map_shapes]
        channels, rows, columns = self.stack.shape
        below = [channels * rows * columns, *maps[:-1]]
        levels = {f"level-{n}": below[n - 1] for n in range(len(maps), 0, -1)}
        return {"label": 1, "prior": maps[-1], **levels}

    def check_labels(self, labels: Labels | None) -> None:
        """Labels must be given to a conditional model and lie in 0 … classes-1."""
        if self.classes and labels is None:
            raise InputError(f"this model is conditional on the class: give labels 0 … {self.classes - 1}")
        if self.classes and labels is not None:
            wrong = labels[(labels < 0) | (labels >= self.classes)].tolist()
            if wrong:
                raise InputError(f"label {wrong[0]} is out of range: this model knows 0 … {self.classes - 1}")

    @torch.no_grad()
    def sample(
        self,
        num: int,
        labels: Labels | None = None,
        *,
        seed: int = 0,
        sampling: SamplingSettings | None = None,
        first: int = 0,
    ) -> Sample:
        """Images number ``first`` … ``first + num - 1`` of the seed, from the prior down to pixels.

        Args:
            num: how many.
            labels: one per image; drawn from P(label) when none are given and the model is conditional.
            seed: with the image's number it names all noise; batch size and device do not matter.
            sampling: default: the model's own settings.
            first: number of the first image.
        """
        indices = range(first, first + num)
        levels = len(self.stack)
        draws = (sampling or self.settings.sampling).draws(levels)
        if self.classes and labels is None:
            u = noise(seed, indices, levels + 1, 1)
            labels = torch.searchsorted(self.label_probs.cpu().double().cumsum(0), u[:, 0]).clamp(max=self.classes - 1)
        if self.classes and labels is not None:
            self.check_labels(labels)
            labels = labels.to(self.device)
        else:
            labels = None
        prior = self.prior.distribution(num, labels, self.device)
        top = prior.sample(noise(seed, indices, levels, prior.sites), draws[0])
        return self._finish(top, levels, draws[1:], seed, indices, labels)

    @torch.no_grad()
    def vary(
        self, codes: Codes, level: int, *, seed: int = 0, sampling: SamplingSettings | None = None, first: int = 0
    ) -> Sample:
        """Variations: keep ``z_level``, draw everything below it."""
        levels = len(self.stack)
        if not 1 <= level <= levels:
            raise InputError(f"level {level} does not exist: this model has levels 1 … {levels}")
        draws = (sampling or self.settings.sampling).draws(levels)[levels - level + 1 :]
        return self._finish(codes.to(self.device), level, draws, seed, range(first, first + len(codes)), None)

    def _finish(
        self, codes: Codes, level: int, draws: list[Draw], seed: int, indices: range, labels: Labels | None
    ) -> Sample:
        *maps, pixels = self.stack.descend(codes, level, draws, seed, indices)
        return Sample(pixels, {level - i: z for i, z in enumerate([codes, *maps])}, labels)
