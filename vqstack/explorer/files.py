"""What can be taken from the page: codes as a data set, files of the codec, and pictures back from their beginnings."""

import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vqstack.codec.archive import Report, Restored, check_container, compress, restore
from vqstack.codec.blocks import BlockCodec
from vqstack.codec.container import open_container
from vqstack.codec.layout import SUFFIX
from vqstack.codec.pictures import Pictures, pictures_of_files, reader_of, tile_count
from vqstack.codes import CodeDatasetWriter, Contents, StoredCodes, fingerprint
from vqstack.edited import Edited
from vqstack.errors import InputError


def code_data_set(image: Edited, name: str) -> bytes:
    """The codes of one image as a code data set of one row, the folder in a ZIP file."""
    model, labels = image.model, image.labels
    contents = Contents(
        map_shapes=[list(shape) for shape in model.stack.map_shapes],
        vocabularies=model.stack.codebook_sizes,
        fingerprint=fingerprint(model.stack.encoder_state()),
        source={"edited": image.script()},
        labelled=labels is not None,
        class_names=list(model.settings.class_names),
    )
    with TemporaryDirectory() as folder:
        out = Path(folder) / name
        writer = CodeDatasetWriter(out, contents, {"test": 1})
        writer.claim()
        (shard,) = writer.shards
        writer.write(shard, [StoredCodes(torch.zeros(1, dtype=torch.int64), labels, list(image.codes))])
        writer.finish({shard.file: writer.checksum(shard)})
        found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    return zipped(found)


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Files by their names as a ZIP file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


MOST = 64  # inputs of the model that are compressed at once: it takes seconds, and other tabs wait


@contextmanager
def own_threads() -> Iterator[None]:
    """The codec takes as many threads as its file says; the page has its own again afterwards."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Compressed:
    """A file of the codec, made of files of a person.

    Args:
        codec: of the model.
        files: what to compress, by the stems under which they come back.
    """

    def __init__(self, codec: BlockCodec, files: dict[Path, str]) -> None:
        made = dict[str, bytes]()
        with own_threads():
            pictures = self._pictures(codec, files)
            tiles = sum(tile_count(entry, codec.tile) for entry in pictures.entries)
            if tiles > MOST:
                raise InputError(
                    f"that is {tiles:,} times an input of the model, the page takes {MOST}: vqstack compress"
                )
            self.report: Report = compress(codec, pictures, made.__setitem__, name="explored")
        self.codec, self.given = codec, sum(path.stat().st_size for path in files)
        self.content = made[f"explored{SUFFIX}"]

    @staticmethod
    def _pictures(codec: BlockCodec, files: dict[Path, str]) -> Pictures:
        """What to compress: of files, or all that a compressed file holds, which must stand alone."""
        model, packed = codec.model, [path for path in files if path.suffix == SUFFIX]
        if not packed:
            read = partial(reader_of(model), channels=model.stack.shape[0], values=model.stack.values)
            return pictures_of_files(files, read)
        if len(files) > 1:
            raise InputError(f"{packed[0].name} is compressed already: give it alone, or the files that are not")
        file = open_container(packed[0], codec.tile)
        problem = check_container(codec, file)
        found = list(restore(codec, file, range(len(file.entries))))
        exact = [image.pixels for image in found if image.pixels is not None and not image.level]
        if len(exact) < len(file.entries):
            raise InputError(problem or f"{packed[0].name} is damaged: vqstack decompress reads what is left")
        channels = model.stack.shape[0]
        return Pictures(
            file.entries, lambda i: exact[i].expand(channels, -1, -1) if file.entries[i].mode == "L" else exact[i]
        )

    def beginning(self, size: int) -> list[Restored]:
        """The pictures as far as the first bytes of the file tell them."""
        with own_threads():
            file = open_container(Path(f"explored{SUFFIX}"), self.codec.tile, self.content[:size])
            check_container(self.codec, file)
            return list(restore(self.codec, file, range(len(file.entries))))
