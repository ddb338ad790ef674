"""A discriminator of patches, and the game between it and the renderer."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from vqstack.errors import InputError
from vqstack.nets import convolution, norm_layer
from vqstack.renderer.perceptual import Pictures
from vqstack.renderer.settings import AdversarySettings
from vqstack.shapes import by_axis

KEPT = 0.99
"""Share of the averages of the discriminator's answers that a step keeps (LeCAM)."""
LARGEST = 1e4
"""Adaptive weight at most, as in VQGAN."""


class Discriminator(nn.Module):
    """Pictures to numbers of their patches, large for real ones (Isola et al. 2017, PatchGAN).

    It normalises each image by itself: an answer does not depend on what else is in the batch.

    Args:
        settings: see :class:`AdversarySettings`.
        channels: of the pictures.
        sides: sites of the pictures along each axis.

    Attributes:
        rate: its learning rate as a multiple of the renderer's; read by the training loop.
    """

    def __init__(self, settings: AdversarySettings, channels: int, sides: tuple[int, ...]) -> None:
        super().__init__()
        if min(sides) < 2**settings.layers:
            raise InputError(
                f"renderer.adversary.layers: {settings.layers} halvings leave nothing of {by_axis(sides)} pixels: "
                "choose fewer"
            )
        self.rate = settings.rate
        convolve, width = convolution(len(sides)), settings.width
        body = [convolve(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for _ in range(settings.layers - 1):
            body += [convolve(width, 2 * width, 4, stride=2, padding=1), norm_layer(2 * width), nn.LeakyReLU(0.2)]
            width *= 2
        self.body = nn.Sequential(*body, convolve(width, 1, 3, padding=1))

    def forward(self, pictures: Pictures) -> Float[Tensor, "b 1 *patches"]:
        return self.body(pictures)

    def floats(self, sites: int) -> int:
        """Numbers that a backward pass keeps of a picture of so many sites: what each layer after the first reads."""
        kept, width = 0, 0
        for layer in list(self.body)[:-1]:
            if isinstance(layer, nn.modules.conv._ConvNd):
                sites, width = sites // math.prod(layer.stride), layer.out_channels
            kept += sites * width
        return kept


@dataclass(frozen=True)
class Play:
    """What a batch gives: the renderer's term, already weighted, the discriminator's loss, and numbers to report."""

    renderer: Tensor
    discriminator: Tensor
    metrics: dict[str, Tensor]


class Adversary(nn.Module):
    """The game, one backward pass for both sides.

    Discriminator: ``E[max(0, 1 - D(x))] / 2 + E[max(0, 1 + D(g(z)))] / 2``, the hinge loss, plus LeCAM (Tseng et al.
    2021), ``w (E[(D(x) - a_g)²] + E[(D(g(z)) - a_x)²])``, a_x and a_g moving averages of its answers, plus R1
    (Mescheder et al. 2018), ``r/2 E[|∇_x D(x)|²]``, D(x) a picture's mean answer: it grows slowly around real ones.
    Renderer: ``-w λ E[D(g(z))]`` with ``λ = |∇ distance| / (|∇ adversarial| + 1e-4)``, gradients of the last layer
    (Esser et al. 2021, VQGAN).

    Pictures reach the discriminator's loss, and its weights the renderer's, as constants: each side's gradient is that
    of its own loss. λ and the averages are those of the step before, and gradients and answers are gathered over all
    micro-batches and processes of a step: however a batch is divided, the step is the same. Step number, λ and averages
    are buffers, so that checkpoints hold them and a bad step leaves no trace in them.

    Args:
        settings: see :class:`AdversarySettings`.
        channels, sides: of the pictures.
        last: shape of the weight of the renderer's last layer.

    Attributes:
        accumulating: whether more micro-batches of this step follow; set by the training loop.
    """

    steps: Tensor
    balance: Tensor
    answers: Tensor

    def __init__(self, settings: AdversarySettings, channels: int, sides: tuple[int, ...], last: torch.Size) -> None:
        super().__init__()
        self.settings, self.accumulating = settings, False
        self.discriminator = Discriminator(settings, channels, sides)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("balance", torch.zeros(()))  # λ
        self.register_buffer("answers", torch.zeros(2))  # averages of D(x), D(g(z))
        self._gathered = torch.zeros(2 * last.numel() + 2)  # of the micro-batches of a step: two gradients, two answers
        self._parts = 0

    def floats(self, sites: int) -> int:
        """Numbers that a step keeps of an image: the renderer's look at its picture, the discriminator's at both."""
        return (3 + (self.settings.r1 > 0)) * self.discriminator.floats(sites)  # R1 keeps its gradient's way, too

    def forward(self, real: Pictures, drawn: Pictures, distance: Tensor, last: nn.Parameter) -> Play:
        """One micro-batch of a training step.

        Args:
            real, drawn: pictures, and what the renderer makes of their codes.
            distance: the renderer's other loss, whose gradient λ is measured by.
            last: weight of its last layer.
        """
        if self.steps < self.settings.start:
            found = self._waiting(drawn)
        else:
            found = self._playing(real, drawn, distance, last)
        if not self.accumulating:
            self._end_step()
        return found

    def _waiting(self, drawn: Pictures) -> Play:
        """Nothing yet: a loss of zero, whose gradient is zero, since several processes expect one of each weight."""
        nothing = 0 * torch.stack([p.sum() for p in self.discriminator.parameters()]).sum()
        zero = drawn.new_zeros(())
        return Play(zero, nothing, {"adversarial": zero, "discriminator": zero, "balance": zero})

    def _playing(self, real: Pictures, drawn: Pictures, distance: Tensor, last: nn.Parameter) -> Play:
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        adversarial = -functional_call(self.discriminator, frozen, (drawn,)).float().mean()
        seen = real.detach().requires_grad_(self.settings.r1 > 0)
        of_real, of_drawn = (self.discriminator(x).float() for x in (seen, drawn.detach()))
        hinge = (F.relu(1 - of_real).mean() + F.relu(1 + of_drawn).mean()) / 2
        answers = self.answers.clone()  # the buffer moves before the backward pass
        lecam = (of_real - answers[1]).square().mean() + (of_drawn - answers[0]).square().mean()
        gradients = [torch.autograd.grad(x, last, retain_graph=True)[0].flatten() for x in (distance, adversarial)]
        means = torch.stack([of_real.mean(), of_drawn.mean()]).detach()
        self._gathered = self._gathered.to(means.device) + torch.cat([*gradients, means]).float()
        self._parts += 1
        metrics = {
            "adversarial": adversarial.detach(),
            "discriminator": hinge.detach(),
            "balance": self.balance.clone(),
        }
        weight = self.settings.weight * metrics["balance"]
        return Play(weight * adversarial, hinge + self.settings.lecam * lecam + self._steepness(of_real, seen), metrics)

    def _steepness(self, answers: Float[Tensor, "b 1 *patches"], seen: Pictures) -> Tensor | float:
        """R1, weighted."""
        if not self.settings.r1:
            return 0.0
        (slope,) = torch.autograd.grad(answers.flatten(1).mean(1).sum(), seen, create_graph=True)
        return self.settings.r1 / 2 * slope.float().square().flatten(1).sum(1).mean()

    @torch.no_grad()
    def _end_step(self) -> None:
        """Count the step; λ and the averages for the next one, from all parts of this one."""
        self.steps += 1
        if not self._parts:
            return
        gathered = self._gathered / self._parts
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(gathered)
            gathered /= torch.distributed.get_world_size()
        of_distance, of_adversarial = gathered[:-2].chunk(2)
        self.balance.copy_((of_distance.norm() / (of_adversarial.norm() + 1e-4)).clamp(max=LARGEST))
        self.answers.lerp_(gathered[-2:], 1 - KEPT)
        self._gathered, self._parts = torch.zeros_like(self._gathered), 0
