"""The configuration of a run, from YAML and the command line.

Values come from the recipe's YAML file, then from the command line; both are strict, both end in one line when wrong.
"""

from vqstack.config.command_line import parse
from vqstack.config.options import Positional, Unprefixed, options_of
from vqstack.config.run import SEAL, RunConfig, changed, read_recipe, read_yaml, to_yaml
from vqstack.config.unused import without_unused

__all__ = [
    "SEAL",
    "Positional",
    "RunConfig",
    "Unprefixed",
    "changed",
    "options_of",
    "parse",
    "read_recipe",
    "read_yaml",
    "to_yaml",
    "without_unused",
]
