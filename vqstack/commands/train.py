"""Train a stack of levels and a prior: vqstack train [--config RECIPE] [--out FOLDER].

Without arguments it trains the digits recipe. Run the same command again to go on where it stopped. Several processes:
``accelerate launch -m vqstack train …``.
"""

from contextlib import closing
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from pydantic import Field

from vqstack.config import RunConfig, changed, parse, read_recipe, to_yaml
from vqstack.errors import InputError
from vqstack.fit import FitSettings
from vqstack.images import num_classes
from vqstack.library import prepare
from vqstack.model import HierarchicalModel
from vqstack.phases import Run, check_processes, sharding_for
from vqstack.recipes import find_recipe
from vqstack.report import describe
from vqstack.reuse import check_sources
from vqstack.run_report import REPORT, first_command
from vqstack.terminal import lines, warn

EVALUATIONS = 4  # of a phase at most, where --steps makes it short: each takes time, and draws a picture


class Command(RunConfig):
    """Train a stack of levels and a prior."""

    config: Path | None = Field(
        default=None, description="YAML file, or a name of vqstack recipes; default: digits, with --images folder."
    )
    images: Path | None = Field(
        default=None,
        description="Folder of images to train on, with a folder for each class or without; data.files in short.",
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        description="Steps of every phase, count; warm-up and evaluations in proportion. Default: the recipe's.",
    )
    out: Path | None = Field(default=None, description="Folder of the run; default: runs/NAME, after the recipe.")
    override_config: bool = Field(
        default=False, description="Go on with other settings than the run began with; recorded."
    )
    dry_run: bool = Field(
        default=False,
        description="Check everything but the images, print configuration, maps, parameters and memory, and leave.",
    )
    processes: int | None = Field(
        default=None, ge=1, description="Of --dry-run: processes to plan for, count; default: those that it runs in."
    )

    def unused(self) -> dict[str, str]:
        """Options that are read by nothing, as the others are -> why, and what to do."""
        why = "of --dry-run alone: leave it out, and start as many with accelerate launch"
        return super().unused() | ({} if self.dry_run else {"processes": why})


def value_of(option: str, arguments: list[str]) -> str | None:
    """The value of an option that is needed before the other arguments make sense."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
        if argument == option and i + 1 < len(arguments):
            return arguments[i + 1]
    return None


def recipe_of(arguments: list[str]) -> tuple[Path, RunConfig]:
    """The recipe that a command line names, and its settings with what --images and --steps say in short."""
    images, steps = value_of("--images", arguments), value_of("--steps", arguments)
    path = find_recipe(value_of("--config", arguments) or ("digits" if images is None else "folder"))
    config = read_recipe(path)
    if images is not None:
        if config.data.source != "imagefolder":
            raise InputError(f"--images: {path.stem} reads {config.data}: leave --config out, or set --data.source")
        config = changed(config, {"data": {"files": {"train": images}}})
    return path, config if steps is None or not steps.isdecimal() else shortened(config, int(steps))


def shortened(config: RunConfig, steps: int) -> RunConfig:
    """The settings with so many steps in every phase, and warm-up and evaluations where they were in proportion."""

    def short(fit: FitSettings) -> FitSettings:
        share = max(steps, 1) / fit.steps
        every = max(round(fit.evaluate_every * share), min(fit.evaluate_every, -(-steps // EVALUATIONS)))
        warmup = min(fit.warmup, round(fit.warmup * share))
        return fit.model_copy(update={"steps": steps, "warmup": warmup, "evaluate_every": every})

    unused = config.unused()
    names = {name.partition(".")[0] for name in config.every_training} - set(unused)
    changes = {name: getattr(config, name) for name in names}
    shorter: dict[str, Any] = {
        n: tuple(map(short, fit)) if isinstance(fit, tuple) else short(fit) for n, fit in changes.items()
    }
    if config.renderer is not None:  # the discriminator, too, begins in proportion
        game = config.renderer.adversary
        game = game.model_copy(update={"start": round(game.start * steps / config.train_renderer.steps)})
        shorter["renderer"] = config.renderer.model_copy(update={"adversary": game})
    return config.model_copy(update=shorter)


def farewell(folder: Path, model: HierarchicalModel) -> str:
    """Where the model is, and what to do with it first."""
    names = model.settings.class_names if model.classes else ()
    report = f"{folder / REPORT}: the ledger, curves, pictures, and how to use the model\n"
    return (
        f"\n{folder / 'model'}: the model\n{report if (folder / REPORT).exists() else ''}"
        f"next: {first_command(folder, names, model.renderer is not None)}"
    )


def warn_of_done(command: Command, folder: Path, accelerator: Accelerator) -> None:
    """Say which phases other settings come too late for."""
    done = ", ".join(sorted(path.parent.name for path in folder.glob("phases/*/DONE")))
    if command.override_config and done and accelerator.is_main_process:
        warn(f"phases that are done stay as they are, whatever the settings: {done}")


def main(arguments: list[str]) -> None:
    path, recipe = recipe_of(arguments)
    command = parse(Command, arguments, Command(**dict(recipe)))
    config = RunConfig(**{name: getattr(command, name) for name in RunConfig.model_fields})
    folder = command.out or Path("runs") / path.stem
    settings, accelerator = prepare(config, folder, command.override_config)
    if command.dry_run:
        warn_of_done(command, folder, accelerator)
        processes = command.processes or accelerator.num_processes
        check_processes(config, accelerator, processes)
        sharding = sharding_for(config, accelerator)
        shared = config.model_copy(update={"sharded": config.sharded or sharding is not None})
        missing = check_sources(config, settings, folder)
        accelerator.print(lines(to_yaml(config)))
        # Labels are counted in the data, which a dry run leaves alone where the recipe says enough without them.
        known = config.data.source == "digits" or config.data.size is None
        classes = num_classes(config.data) if known else 0
        accelerator.print(lines(describe(shared, config.model_settings(settings.image_shape, classes), processes)))
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
        run.announce()
        run.train_all()
    accelerator.print(lines(farewell(folder, run.model)))
