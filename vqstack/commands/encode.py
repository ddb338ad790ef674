"""Encode a data set to code maps: vqstack encode RUN --out FOLDER [--data.* …].

Writes every split of the run's own data set, or of another one that fits the model, as Parquet shards with a manifest
and a card; ``datasets.load_dataset(FOLDER)`` reads them. A stream is read to its end, and its images are kept nowhere.
``accelerate launch -m vqstack encode …`` shares the shards among processes. A killed command, given again, goes
on where it stopped; the bytes are the same either way. With ``--shared`` many hosts give the same command, each for
itself, and share the shards through the folder, which may be an address of an object store.
"""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object
from pydantic import Field

from vqstack import threads
from vqstack.codes import (
    LEASE,
    SHARD_SIZE,
    CodeDatasetWriter,
    Contents,
    Shard,
    SharedWriter,
    StoredCodes,
    fingerprint,
    source_of,
)
from vqstack.config import Positional, parse
from vqstack.disk import on_main
from vqstack.hub import parsed
from vqstack.images import ImageSettings, ImageSplit, WholeSplit, load_splits, split_names, survey, whole_splits
from vqstack.model import HierarchicalModel
from vqstack.paths import remote
from vqstack.phases import check_images, in_classes_of, named_run, run_of, warn_of_changes
from vqstack.precision import Precision, autocast
from vqstack.settings import Settings
from vqstack.terminal import Progress, lines, say


class Command(Settings):
    """Encode a data set to code maps."""

    run: Positional[Path] = Field(description="Folder of a run or of a released model, or OWNER/NAME on the hub.")
    out: str = Field(
        description="Folder that receives the codes; new, empty, or unfinished output of the same. An address that "
        "fsspec knows (s3://…) is shared."
    )
    data: ImageSettings = Field(default=ImageSettings(), description="The images; default: those of the run.")
    batch_size: int = Field(default=256, ge=1, description="Images at a time, count on each process.")
    shard_size: int = Field(default=SHARD_SIZE, ge=1, description="Images a file, count.")
    shared: bool = Field(
        default=False,
        description="The same command on other hosts writes there too; each takes files that no other has.",
    )
    lease: float = Field(
        default=LEASE / 60,
        gt=0,
        description="With --shared, how long a lost host is waited for, minutes.",
    )
    mixed_precision: Precision = Field(
        default="no",
        description="Number format of the networks; distances to codes stay in float32. bf16 and fp16 are quicker on "
        "many devices, and some codes come out as near ones.",
    )
    cpu: bool = Field(default=False, description="Stay on the CPU even where there is an accelerator.")

    @property
    def together(self) -> bool:
        """Whether other hosts may write there, too."""
        return self.shared or remote(self.out)

    def unused(self) -> dict[str, str]:
        """Options that are read by nothing, as the others are -> why, and what to do."""
        return {} if self.together else {"lease": "nothing is shared with other hosts: add --shared, or leave it out"}


@torch.no_grad()
def encoded(
    shard: Shard, split: ImageSplit | WholeSplit, model: HierarchicalModel, batch_size: int, precision: Precision
) -> Iterator[StoredCodes]:
    """The images of a shard, encoded batch by batch. Batches begin with the shard, so no other shard changes them."""
    end = shard.start + shard.rows
    for start in range(shard.start, end, batch_size):
        part = split.part(slice(start, min(start + batch_size, end)))
        with autocast(precision, model.device):
            maps = model.encode(part.pixels.to(model.device))
        yield StoredCodes(part.index, part.labels, maps)


def name_of(model: Path) -> str:
    """What a model is called: OWNER/NAME on the hub, or its folder, without the way there."""
    run = run_of(model)
    return str(model) if parsed(model) is not None else (run or model).resolve().name


def every_split(settings: ImageSettings, accelerator: Accelerator) -> Mapping[str, ImageSplit | WholeSplit]:
    """The images, read first by one process for all (a stream), or by one process of each host."""
    if settings.streaming:
        found = [survey(settings) if accelerator.is_main_process else None]
        return whole_splits(settings, broadcast_object_list(found)[0])
    with accelerator.local_main_process_first():
        return load_splits(settings, split_names(settings))


def main(arguments: list[str]) -> None:
    run = named_run(arguments)  # its own data set is the default
    default = None
    if run is not None:  # a run keeps `limit` images of a stream for scoring; here all are meant
        data = run[1].model_copy(update={"limit": None}) if run[1].streaming else run[1]
        default = {"run": run[0], "data": data}
    command = parse(Command, arguments, default)
    model = HierarchicalModel.from_pretrained(command.run)
    # Others wait while the first process of each host reads the images, and for the last shard.
    accelerator = Accelerator(cpu=command.cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])
    threads.share_cores(accelerator.num_processes)
    splits = every_split(command.data, accelerator)
    check_images(splits, command.data, model)
    if accelerator.is_main_process:
        warn_of_changes(command.run, command.data, splits)
    splits = in_classes_of(model, splits)
    labelled = [split for split in splits.values() if split.labelled]
    contents = Contents(
        map_shapes=[list(shape) for shape in model.stack.map_shapes],
        vocabularies=model.stack.codebook_sizes,
        fingerprint=fingerprint(model.stack.encoder_state()),
        source=source_of({name: split.source for name, split in splits.items()}),
        labelled=bool(labelled),
        class_names=labelled[0].class_names if labelled else [],
        model=name_of(command.run),
    )
    # What was encoded before a kill, or is encoded by another process, must have been the same images.
    settings = {"images": {n: s.fingerprint for n, s in splits.items()}, "batch_size": command.batch_size}
    settings |= {"mixed_precision": command.mixed_precision} if command.mixed_precision != "no" else {}
    counts = {name: len(split) for name, split in splits.items()}
    model.to(accelerator.device)

    def encode(shard: Shard) -> Iterator[StoredCodes]:
        return encoded(shard, splits[shard.split], model, command.batch_size, command.mixed_precision)

    limit = command.data.limit
    only = f"; no more than {limit} of each split, as data.limit says" if limit else ""
    described = ", ".join(f"{name} {n}" for name, n in counts.items())
    if command.together:
        together = SharedWriter(
            command.out, contents, counts, shard_size=command.shard_size, settings=settings, lease=60 * command.lease
        )
        with Progress(together.work(encode), desc="encode", unit="shard", disable=None) as mine:
            written = sum(1 for _ in mine)  # no process waits for another one from here on
        say(f"{command.out}: {described} images as codes{only}; {written} of {len(together.shards)} files written here")
        return
    writer = CodeDatasetWriter(Path(command.out), contents, counts, shard_size=command.shard_size, settings=settings)
    accelerator.wait_for_everyone()  # all have checked the folder before one changes it
    on_main(accelerator, writer.claim)
    missing = [shard for shard in writer.shards if not writer.complete(shard)]
    accelerator.wait_for_everyone()  # all have the same list before one of them makes it shorter
    rank, world = accelerator.process_index, accelerator.num_processes
    with Progress(missing[rank::world], desc="encode", unit="shard", disable=None) as mine:
        for shard in mine:
            writer.write(shard, encode(shard))
    accelerator.wait_for_everyone()
    found = gather_object([(shard.file, writer.checksum(shard)) for shard in writer.shards[rank::world]])
    on_main(accelerator, lambda: writer.finish(dict(found)))
    accelerator.print(lines(f"{command.out}: {described} images as codes{only}"))
