"""How values are drawn: settings, noise that belongs to the image, inverse CDF."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from vqstack.settings import Settings
from vqstack.shapes import Noise, finest


class Draw(Settings):
    """How values are drawn from a table of probabilities. The defaults draw from the distribution as it is."""

    temperature: float = Field(
        default=1.0, gt=0, description="Log-probabilities are divided by it, no unit; 1 draws true samples."
    )
    top_k: int | None = Field(default=None, ge=1, description="Draw among the k most likely values, count; none: all.")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Nucleus: the fewest values whose probability together reaches this share."
    )
    mode: bool = Field(default=False, description="Take the most likely value instead of drawing.")
    mean: bool = Field(default=False, description="Pixels: take the mean grey value, rounded; goes before mode.")
    guidance: float = Field(
        default=1.0,
        ge=0,
        description="Classifier-free guidance, no unit: 1 none, 0 without the label, above 1 away from it.",
    )
    confidence: bool = Field(
        default=False,
        description="Masked models: keep what was drawn with most confidence, in place of the schedule's sites.",
    )

    @property
    def plain(self) -> bool:
        """Whether values come with their own probabilities, so that no table has to be changed."""
        return not self.mode and not self.mean and self.temperature == 1.0 and self.top_k is None and self.top_p == 1.0


def noise(seed: int, indices: list[int] | range, level: int, sites: int) -> Noise:
    """The uniforms that draw map ``level`` (0: pixels) of samples number ``indices``: [len(indices), sites], float64.

    Counter-based (Philox keyed by seed and level, counter set by the sample's number), so sample i is the same in any
    batch and on any number of processes.
    """
    key = np.array([seed % 2**64, level], dtype=np.uint64)  # a list with a number past 2**63 would pass through float64
    rows = [np.random.Generator(np.random.Philox(key=key, counter=[0, 0, i, 0])).random(sites) for i in indices]
    return torch.from_numpy(np.stack(rows) if rows else np.empty((0, sites)))


def draw_values(
    log_probs: Float[Tensor, "b n V"], noise: Float[Tensor, "b n"] | None, draw: Draw
) -> Int64[Tensor, "b n"]:
    """Inverse CDF: the first value whose cumulated probability passes the noise. Values of probability 0 never come."""
    if draw.mode or noise is None:
        return log_probs.argmax(-1)
    if draw.temperature != 1.0:
        log_probs = log_probs / draw.temperature
    if draw.top_k is not None and draw.top_k < log_probs.shape[-1]:
        kept = log_probs.topk(draw.top_k, -1)
        log_probs = torch.full_like(log_probs, -torch.inf).scatter(-1, kept.indices, kept.values)
    probs = log_probs.to(finest(log_probs.device)).softmax(-1)
    if draw.top_p < 1.0:
        ordered, order = probs.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= draw.top_p  # the mass before a value already reaches top_p
        probs = probs.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)
    cdf = probs.cumsum(-1)
    total = cdf[..., -1:]
    threshold = noise.to(probs).unsqueeze(-1) * total
    threshold = torch.minimum(threshold, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, threshold, right=True).squeeze(-1)
