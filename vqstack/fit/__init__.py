"""The training loop. It knows no quantizers and no hierarchy: ``module(*batch)`` returns an :class:`Objective`.

A step depends on (state, seed, step) alone: which images it sees, how they are augmented and every random number
inside the network follow from the seed and the step's number. A run that is resumed therefore goes on as if it had not
stopped.
"""

from vqstack.fit.batches import Asked, Order, ReadingAhead, Source, own_batches
from vqstack.fit.callbacks import Callback
from vqstack.fit.journal import in_words
from vqstack.fit.loop import Fit
from vqstack.fit.optimisation import Average, learning_rate, networks, optimizer_for
from vqstack.fit.outcome import CHECKPOINTS, DONE, load_outcome, shapes_left, write_outcome
from vqstack.fit.seeds import any_algorithms, deterministic_algorithms
from vqstack.fit.settings import FitSettings
from vqstack.fit.sharding import Sharding, sharding_of
from vqstack.fit.totals import Totals, evaluate

__all__ = [
    "CHECKPOINTS",
    "DONE",
    "Asked",
    "Average",
    "Callback",
    "Fit",
    "FitSettings",
    "Order",
    "ReadingAhead",
    "Sharding",
    "Source",
    "Totals",
    "any_algorithms",
    "deterministic_algorithms",
    "evaluate",
    "in_words",
    "learning_rate",
    "load_outcome",
    "networks",
    "optimizer_for",
    "own_batches",
    "shapes_left",
    "sharding_of",
    "write_outcome",
]
