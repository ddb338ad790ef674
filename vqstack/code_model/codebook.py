"""Codes as places in their codebook: what is learned of a code holds for the codes near it, from the first step on.

Codes are names to a transformer; which of 512 resemble each other it would have to learn from what follows what. Their
codebook vectors ``c_k`` (standardised, not trained) say so beforehand:

    input of a value  += R c_z        logit of code k  += <W hidden, c_k>

``W`` starts at zero, so a model still starts exactly as its base.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class CodebookSpace(nn.Module):
    """Reads codes as vectors of their codebook, and scores them by their inner products with it.

    Args:
        size: K.
        vector_dim: numbers of a codebook vector.
        dim: features per site.

    Attributes:
        vectors: c_k, [K, vector_dim]; zero until :meth:`know` is called, stored with the weights.
    """

    vectors: Tensor

    def __init__(self, size: int, vector_dim: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, vector_dim))
        self.read = nn.Linear(vector_dim, dim, bias=False)
        self.write = nn.Linear(dim, vector_dim, bias=False)
        nn.init.normal_(self.read.weight, std=0.02 / vector_dim**0.5)  # as large as what else a site reads
        nn.init.zeros_(self.write.weight)

    @torch.no_grad()
    def know(self, codebook: Float[Tensor, "K v"]) -> None:
        """Take the vectors from a codebook, each of its axes brought to mean 0 and variance 1."""
        self.vectors.copy_((codebook - codebook.mean(0)) / codebook.std(0, correction=0).clamp(min=1e-6))

    def embed(self, codes: Int64[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """What is added to the input features of codes."""
        return self.read(self.vectors[codes])

    def logits(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n K"]:
        """What is added to the logits."""
        return self.write(hidden) @ self.vectors.T
