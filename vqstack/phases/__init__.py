"""What is trained in which order: levels, refiners, prior.

Files in reading order: ``checks`` (what cannot be trained), ``named`` (the run that a command is about), ``pictures``,
``data`` (where batches come from), ``order`` (the list of phases), ``forecast`` (how long it will take), ``opening``
(what is said before the first step) and ``run``.
"""

from vqstack.phases.checks import check_processes, check_trackers, sharding_for
from vqstack.phases.forecast import forecast
from vqstack.phases.named import (
    check_condition,
    check_images,
    config_of_run,
    data_of_run,
    given_condition,
    in_classes_of,
    named_run,
    read_condition,
    read_images,
    run_of,
    split_of_run,
    warn_of_changes,
)
from vqstack.phases.opening import duration
from vqstack.phases.run import Run

__all__ = [
    "Run",
    "check_condition",
    "check_images",
    "check_processes",
    "check_trackers",
    "config_of_run",
    "data_of_run",
    "duration",
    "forecast",
    "given_condition",
    "in_classes_of",
    "named_run",
    "read_condition",
    "read_images",
    "run_of",
    "sharding_for",
    "split_of_run",
    "warn_of_changes",
]
