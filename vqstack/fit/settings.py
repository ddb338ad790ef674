"""Settings of the training of one phase."""

from pydantic import Field

from vqstack.settings import Settings


class FitSettings(Settings):
    """Settings of the training of one phase."""

    steps: int = Field(default=2000, ge=1, description="Optimiser steps, count.")
    batch_size: int = Field(
        default=64, ge=1, description="Images a step, count over all processes and accumulated micro-batches."
    )
    accumulate: int = Field(default=1, ge=1, description="Micro-batches a step, count.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Peak learning rate of AdamW, no unit.")
    warmup: int = Field(default=100, ge=0, description="Steps of linear warm-up; cosine decay to a hundredth follows.")
    weight_decay: float = Field(
        default=0.01, ge=0, description="Decoupled weight decay of matrices (not of vectors and tables), no unit."
    )
    clip: float = Field(
        default=1.0, gt=0, description="Largest norm of the gradient, nats per site per unit of weight."
    )
    ema: float = Field(
        default=0.999, ge=0, lt=1, description="Share of the weight average kept at each step; 0 switches it off."
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Keep of each block its input alone for the backward pass, and compute the rest again: the same "
        "gradients for less memory and about a third more time.",
    )
    fused: bool = Field(default=True, description="AdamW in one kernel, where the device has it.")
    augmented: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of the training images changed as augment says; the others stay as they are.",
    )
    evaluate_every: int = Field(
        default=250, ge=1, description="Steps between evaluations on the validation split; each writes a checkpoint."
    )
    checkpoint_every: int = Field(default=0, ge=0, description="Steps between further checkpoints; 0: none by steps.")
    checkpoint_minutes: float = Field(default=10.0, gt=0, description="Longest time without a checkpoint, minutes.")
    keep: int = Field(
        default=2, ge=1, description="Newest checkpoints that are kept, count; the best one is kept besides."
    )
    max_bad_steps: int = Field(
        default=10,
        ge=1,
        description="Steps in a row with a loss or gradient that is not finite after which training ends.",
    )
    collapse: float = Field(
        default=0.02,
        ge=0,
        lt=1,
        description="Share of its codes: a book of K is warned about where its perplexity of an epoch is below "
        "1 + collapse (K-1).",
    )
