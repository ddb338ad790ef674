"""Train a recipe of the digits over seeds, and with every kind of quantizer, and tabulate what comes out.

    python benchmarks/digits_runs.py --out runs/benchmarks [--recipe recipes/digits.yaml] [--seeds 0 1 2]
        [--kinds cosine fsq lfq simvq]

Writes OUT/digits.json. A run that is there already is not trained again.
"""

import argparse
import json
import time
from pathlib import Path

from accelerate import Accelerator
from digits import judge

from vqstack.config import RunConfig, read_yaml
from vqstack.model import HierarchicalModel
from vqstack.model_settings import SamplingSettings
from vqstack.phases import Run

RECIPE = Path(__file__).parent.parent / "recipes" / "digits.yaml"


def train(config: RunConfig, folder: Path) -> None:
    """The recipe's algorithm."""
    started = time.perf_counter()
    run = Run(config, folder, Accelerator())
    for phase in run.phases.values():
        run.train(phase)
    run.release()
    (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - started))


def summary(folder: Path) -> dict:
    """Ledger, usage, and samples judged at the default settings and at temperature 1."""
    model = HierarchicalModel.from_pretrained(folder / "model")
    return {
        "seconds": json.loads((folder / "seconds.json").read_text()),
        "ledger": json.loads((folder / "ledger.json").read_text()),
        "default_sampling": judge(model, folder, None, 0),
        "temperature_1": judge(model, folder, SamplingSettings(), 0),
    }


def with_quantizer(config: RunConfig, kind: str) -> RunConfig:
    """The recipe with another quantizer on every level."""
    levels = tuple(
        level.model_copy(update={"quantizer": level.quantizer.model_copy(update={"kind": kind})})
        for level in config.levels
    )
    return RunConfig.model_validate(config.model_copy(update={"levels": levels}).model_dump())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the runs")
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds of the recipe and of its variants"
    )
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="whose levels, refiners and prior are trained")
    parser.add_argument("--kinds", nargs="*", default=["cosine", "fsq", "lfq", "simvq"], help="other quantizers")
    options = parser.parse_args()
    recipe = read_yaml(options.recipe, RunConfig)
    seeded = [recipe.model_copy(update={"seed": seed}) for seed in options.seeds]
    runs = {f"seed-{config.seed}": config for config in seeded}
    runs |= {f"{kind}-{config.seed}": with_quantizer(config, kind) for config in seeded for kind in options.kinds}
    path = options.out / "digits.json"
    for name, config in runs.items():
        folder = options.out / name
        if not (folder / "seconds.json").exists():
            train(config, folder)
        done = json.loads(path.read_text()) if path.exists() else {}
        done[name] = summary(folder)
        path.write_text(json.dumps(done, indent=1) + "\n")
        print(name, json.dumps(done[name]["default_sampling"]), flush=True)


if __name__ == "__main__":
    main()
