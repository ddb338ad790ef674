"""What tiles cost in bits: the window decoder of level 1 with its map cut into tiles, the weights as they are.

    python benchmarks/tiles.py RUN … [--tiles 8 16] [--images 1000]

A tile's border sees nothing of its neighbours, so the number of sequential steps does not grow with the image. Printed
for each run and tile: steps, and bits of the pixels given z_1 on the first test images. A network that was trained on
the whole map meets borders only at its edge: what tiles cost when they are trained, runs with decoder.tile show.
"""

import argparse
from pathlib import Path

from refiners import row_bits

from vqstack.ending import run_command
from vqstack.images import load_splits
from vqstack.model import HierarchicalModel
from vqstack.phases import data_of_run


def with_tile(model: HierarchicalModel, side: int) -> HierarchicalModel:
    """The same weights, the pixels drawn in square tiles of this side; 0: in one."""
    first, *others = model.settings.stack.levels
    decoder = first.decoder.model_copy(update={"tile": (side, side)})
    stack = model.settings.stack.model_copy(update={"levels": (first.model_copy(update={"decoder": decoder}), *others)})
    changed = HierarchicalModel(model.settings.model_copy(update={"stack": stack})).to(model.device)
    changed.load_state_dict(model.state_dict())
    return changed.eval()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs on the same images")
    parser.add_argument("--tiles", type=int, nargs="+", default=[8, 16], help="sides of tiles, pixels")
    parser.add_argument("--images", type=int, default=1000, help="of the test split")
    options = parser.parse_args(arguments)
    for run in options.runs:
        model: HierarchicalModel = HierarchicalModel.from_pretrained(run)
        test = load_splits(data_of_run(run), ["test"])["test"]
        trained = model.settings.stack.levels[0].decoder.tile[0]
        for side in dict.fromkeys([trained, 0, *options.tiles]):
            tiled = with_tile(model, side)
            bits = row_bits(tiled, test, min(options.images, len(test)), refined=False)["level-1"]
            steps = len(tiled.stack.level(1).decoder.window.schedule)
            where = f"{run.name}  tile {side or 'none'}"
            print(f"{where}: {steps} steps, {bits:.1f} bits of the pixels given z_1", flush=True)


if __name__ == "__main__":
    run_command(main)
