"""Train a stack of levels and a prior: vqstack train [--config RECIPE] [--out FOLDER].

Without arguments it trains the digits recipe. Run the same command again to go on where it stopped. Several processes:
``accelerate launch -m vqstack train …``.
"""

from contextlib import closing
from pathlib import Path

from accelerate import Accelerator
from pydantic import Field

from vqstack.config import RunConfig, parse, read_recipe, to_yaml
from vqstack.images import num_classes
from vqstack.library import prepare
from vqstack.phases import Run, check_processes
from vqstack.recipes import find_recipe
from vqstack.report import describe
from vqstack.reuse import check_sources
from vqstack.run_report import REPORT
from vqstack.terminal import lines, warn


class Command(RunConfig):
    """Train a stack of levels and a prior."""

    config: Path | None = Field(None, description="YAML file, or a name of vqstack recipes; default: digits.")
    out: Path | None = Field(None, description="Folder of the run; default: runs/NAME, after the recipe.")
    override_config: bool = Field(False, description="Go on with other settings than the run began with; recorded.")
    dry_run: bool = Field(
        False,
        description="Check everything but the images, print configuration, maps, parameters and memory, and leave.",
    )


def config_path(arguments: list[str]) -> Path:
    """The value of --config, which is needed before the other arguments make sense."""
    for i, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return find_recipe(argument.removeprefix("--config="))
        if argument == "--config" and i + 1 < len(arguments):
            return find_recipe(arguments[i + 1])
    return find_recipe("digits")


def warn_of_done(command: Command, folder: Path, accelerator: Accelerator) -> None:
    """Say which phases other settings come too late for."""
    done = ", ".join(sorted(path.parent.name for path in folder.glob("phases/*/DONE")))
    if command.override_config and done and accelerator.is_main_process:
        warn(f"phases that are done stay as they are, whatever the settings: {done}")


def main(arguments: list[str]) -> None:
    path = config_path(arguments)
    recipe = read_recipe(path)
    command = parse(Command, arguments, Command(**dict(recipe)))
    config = RunConfig(**{name: getattr(command, name) for name in RunConfig.model_fields})
    folder = command.out or Path("runs") / path.stem
    settings, accelerator = prepare(config, folder, command.override_config)
    if command.dry_run:
        warn_of_done(command, folder, accelerator)
        check_processes(config, accelerator)
        missing = check_sources(config, settings, folder)
        accelerator.print(lines(to_yaml(config)))
        # Labels are counted in the data, which a dry run leaves alone where the recipe says enough without them.
        known = config.data.source == "digits" or config.data.size is None
        classes = num_classes(config.data) if known else 0
        accelerator.print(lines(describe(config, config.model_settings(settings.image_shape, classes))))
        if not known:
            unknown = "labels   not counted: a prior with labels has one row of its dim more for each class"
            accelerator.print(lines(unknown))
        if config.data.condition:
            accelerator.print(
                lines(f"{config.data.condition} not looked at: what reads it adds parameters to those above")
            )
        for line in missing:
            accelerator.print(lines(line))
        return

    with closing(Run(config, folder, accelerator, command.override_config)) as run:
        warn_of_done(command, folder, accelerator)
        run.train_all()
    if (folder / REPORT).exists():
        accelerator.print(lines(f"\n{folder / REPORT}: the ledger, curves, pictures, and how to use the model"))
