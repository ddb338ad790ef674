"""Which quantizer a level has, and its settings."""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from vqstack.registry import Registry
from vqstack.settings import Settings

QUANTIZERS = Registry[Any](
    "quantizer", dict.fromkeys(("vq", "cosine", "fsq", "lfq", "simvq", "residual", "product", "cluster"))
)
"""Classes of quantizers by their names; ``build.py`` fills in the project's own."""
_AVERAGED = ("vq", "cosine", "residual", "product")
READ_BY = {
    "commitment": (*_AVERAGED, "lfq", "simvq"),
    "decay": _AVERAGED,
    "revival": _AVERAGED,
    "kmeans": _AVERAGED,
    "stochastic": ("vq", "cosine"),
    "gradient": ("vq", "cosine", "simvq"),
    "fsq_levels": ("fsq",),
    "merge": ("cluster",),
    "entropy": ("lfq",),
}
"""Settings that mean nothing to some of the project's own kinds, and the kinds that read them."""


class QuantizerSettings(Settings):
    """Settings of one level's quantizer."""

    kind: Annotated[str, AfterValidator(QUANTIZERS.check)] = Field(
        default="vq",
        max_length=80,
        description="vq: nearest code, codebook by moving average; cosine: the same on the unit sphere; fsq: finite "
        "scalar quantization; lfq: lookup-free, one bit a dimension; simvq: a linear map of a frozen codebook; "
        "residual, product: several codes a site, of what those before left over, or of a part of the vector each; "
        "cluster (above level 1): a table from each code of the same map below to one of codebook_size clusters; or "
        "the name under which a class of yours is registered (register_quantizer).",
    )
    options: dict[str, int | float | str | bool] = Field(
        default={}, description="What a class of yours is given beside the other settings; any unit."
    )
    codebook_size: int = Field(default=64, ge=2, le=2**20, description="K, count of codes.")
    codes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="D, count of codes a site, from a codebook of codebook_size each (residual, product).",
    )
    dim: int = Field(default=32, ge=1, description="d, count of features of a code vector.")
    commitment: float = Field(
        default=0.25,
        ge=0,
        description="Weight of the commitment loss (not of fsq), nats per site per mean squared error of a feature.",
    )
    decay: float = Field(
        default=0.99,
        ge=0,
        lt=1,
        description="Share of the codebook's moving average kept at each step (vq, cosine, residual, product).",
    )
    revival: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="A code whose average use falls below this share of the mean use is moved to an encoder output "
        "(vq, cosine, residual, product); 0 switches revival off.",
    )
    kmeans: bool = Field(
        default=True,
        description="Start the codebook by k-means on the first training batch (vq, cosine, residual, product).",
    )
    stochastic: float = Field(
        default=0.0,
        ge=0,
        description="Temperature T at which training draws codes, P(k) ~ exp(-|x - c_k| / T), in units of a feature "
        "(vq; cosine: exp(x·c_k / T), no unit); 0: always the nearest, as in everything but training.",
    )
    gradient: Literal["identity", "rotation"] = Field(
        default="identity",
        description="How gradients pass the quantizer: copied, or rotated and scaled (vq, cosine, simvq).",
    )
    fsq_levels: tuple[int, ...] | None = Field(
        default=None,
        description="Values of each dimension, count (fsq); their product is codebook_size. Default: balanced.",
    )
    merge: Literal["neighbours", "vectors"] = Field(
        default="neighbours",
        description="Which codes come into one cluster (cluster): those found beside the same codes, or those whose "
        "vectors are near.",
    )
    entropy: float = Field(
        default=0.1, ge=0, description="Weight of the entropy loss, which is in nats per site (lfq), no unit."
    )

    def unused(self) -> dict[str, str]:
        """Name of each field that this kind does not read -> why, and what to do."""
        return {
            name: f"of {', '.join(kinds)} alone, and kind is {self.kind}: leave one of them out"
            for name, kinds in READ_BY.items()
            if self.kind in QUANTIZERS.own and self.kind not in kinds
        }

    @model_validator(mode="after")
    def check(self) -> "QuantizerSettings":
        if self.kind == "lfq" and self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"codebook_size {self.codebook_size} is no power of two, which lfq needs: choose one")
        if self.kind == "fsq" and math.prod(fsq_levels(self)) != self.codebook_size:
            raise ValueError(
                f"codebook_size {self.codebook_size} must be the product of fsq_levels, each at least 3: set fsq_levels"
            )
        if self.fsq_levels is not None and min(self.fsq_levels, default=0) < 3:
            raise ValueError("fsq_levels has a value below 3: give 3 or more for each dimension")
        several = self.kind in ("residual", "product")
        if self.codes > 1 and not several and self.kind in QUANTIZERS.own:
            raise ValueError(f"codes: {self.kind} has one code a site: set kind to residual or product, or codes to 1")
        if several and self.codes == 1:
            raise ValueError(f"codes: {self.kind} with one code a site is vq: set kind to vq, or codes to 2 or more")
        if several and self.gradient != "identity":
            raise ValueError(f"gradient: {self.gradient} means nothing for {self.kind}: leave it at identity")
        if self.kind == "product" and self.dim % self.codes:
            raise ValueError(f"dim {self.dim} does not divide into {self.codes} codes (product): choose a multiple")
        if self.stochastic and self.kind not in ("vq", "cosine"):
            raise ValueError(f"stochastic means nothing for {self.kind}, whose codes are never drawn: leave it at 0")
        return self


def fsq_levels(settings: QuantizerSettings) -> tuple[int, ...]:
    """Values per dimension for FSQ: as given, else ``codebook_size`` in factors of 8 at most (3 at least).

    The original paper finds five or more values a dimension best, so few large factors are preferred.
    """
    if settings.fsq_levels is not None:
        return settings.fsq_levels
    rest, levels = settings.codebook_size, list[int]()
    while rest > 8:
        factor = next((f for f in (8, 7, 6, 5, 4, 3) if rest % f == 0 and rest // f >= 3), 0)
        if not factor:
            return (0,)
        levels.append(factor)
        rest //= factor
    return tuple(sorted([*levels, rest], reverse=True)) if rest >= 3 else (0,)
