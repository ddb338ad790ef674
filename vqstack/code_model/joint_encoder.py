"""A level whose encoder is trained with its masked refiner as well as with its feed-forward decoder.

Masked self-prediction: the refiner predicts hidden sites of ``z_{l-1}`` from visible ones and ``z_l``. What a site's
neighbours tell need not be in the code, so the encoder learns to put there what they cannot tell.
"""

import torch
from torch import nn

from vqstack.code_model.base import CodeModel
from vqstack.level import Level
from vqstack.shapes import AnyCodes, Objective, Pixels


class JointEncoder(nn.Module):
    """``argmin E[-ln P_dec_l(z_{l-1} | z_l) - w ln P_ref_l(z_{l-1} | z_l)]`` over encoder, codebook, decoder, refiner.

    Both read the quantized vectors, through which gradients pass straight to the encoder.

    Args:
        level: l.
        refiner: of the level.
        weight: w.
    """

    def __init__(self, level: Level, refiner: CodeModel, weight: float) -> None:
        super().__init__()
        self.level, self.refiner, self.weight = level, refiner, weight

    @property
    def networks(self) -> list[nn.Module]:
        """The plain networks, which can be compiled."""
        return self.level.networks + self.refiner.networks

    def forward(self, below: Pixels | AnyCodes) -> Objective:
        """The level's objective plus w times the refiner's, both nats per site.

        Metrics: nats per image of both (``decoder``, ``refiner``) and ``nats``, their mean by weight, by which the best
        weights are chosen.
        """
        quantized = self.level.quantize(below)
        parameters, features = self.level.base_and_context(quantized.vectors, quantized.codes)
        assert isinstance(parameters, torch.Tensor)  # settings with a window decoder are refused
        alone = self.level.objective(below, quantized, self.level.head(parameters))
        genuine = torch.zeros(len(below), device=parameters.device)
        refined = self.refiner(below, parameters, features, genuine)
        parts = {"decoder": alone.metrics["nats"], "refiner": refined.metrics["nats"]}
        nats = (parts["decoder"] + self.weight * parts["refiner"]) / (1 + self.weight)
        return Objective(
            alone.loss + self.weight * refined.loss, {**alone.metrics, **parts, "nats": nats}, alone.histograms
        )
