"""Encode a data set to code maps: python tools/encode_dataset.py RUN --out FOLDER [--data.* …].

Writes every split of the run's own data set, or of another one that fits the model, as Parquet with a manifest and a
card; ``datasets.load_dataset(FOLDER)`` reads it.
"""

from pathlib import Path

import torch
import tyro
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from vqstack.codes import CodeDatasetWriter, fingerprint
from vqstack.config import parse, run_command
from vqstack.errors import InputError
from vqstack.images import ImageSettings, load_splits
from vqstack.model import HierarchicalModel
from vqstack.phases import data_of_run
from vqstack.pretrained import find_artefact, holds_artefact


class Command(BaseModel):
    """Encode a data set to code maps."""

    model_config = ConfigDict(extra="forbid")

    run: tyro.conf.Positional[Path] = Field(description="Folder of a run or of a released model.")
    out: Path = Field(description="Folder that receives the code data set; new or empty.")
    data: ImageSettings = Field(ImageSettings(), description="The images; default: those of the run.")
    batch_size: int = Field(256, ge=1, description="Images at a time.")
    cpu: bool = Field(False, description="Stay on the CPU even where there is an accelerator.")


def main(arguments: list[str]) -> None:
    run = next((Path(a) for a in arguments if holds_artefact(Path(a))), None)  # its data set is the default
    default = None if run is None else Command.model_construct(run=run, out=tyro.MISSING, data=data_of_run(run))
    command = parse(Command, arguments, default, prog="encode_dataset.py")
    model = HierarchicalModel.from_pretrained(find_artefact(command.run))
    splits = load_splits(command.data)
    for split in splits.values():
        shape = tuple(split.pixels.shape[1:])
        if shape != model.stack.shape or command.data.values != model.stack.values:
            raise InputError(
                f"images of {shape} with {command.data.values} values do not fit the model, which wants "
                f"{model.stack.shape} with {model.stack.values}: set --data.size, --data.channels and --data.values"
            )
    accelerator = Accelerator(cpu=command.cpu)
    model.to(accelerator.device)
    writer = CodeDatasetWriter(
        command.out,
        model.stack.map_shapes,
        model.stack.codebook_sizes,
        fingerprint(model.stack.encoder_state()),
        splits["train"].source,
    )
    for name, split in splits.items():
        batches = [
            [codes.cpu() for codes in model.encode(pixels.to(accelerator.device))]
            for pixels in tqdm(split.pixels.split(command.batch_size), desc=f"encode {name}", disable=None)
        ]
        maps = [torch.cat(level) for level in zip(*batches, strict=True)]
        writer.write_split(name, split.index, split.labels, maps)
    writer.finish()
    print(f"{command.out}: {', '.join(f'{name} {len(split)}' for name, split in splits.items())} images as codes")


if __name__ == "__main__":
    run_command(main)
