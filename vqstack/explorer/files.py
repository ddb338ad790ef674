"""What can be taken from the page: codes as a data set, files of the codec, and pictures back from their beginnings."""

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vqstack.codec.archive import Report, Restored, check_container, compress, restore, storing
from vqstack.codec.blocks import BlockCodec
from vqstack.codec.container import open_container
from vqstack.codec.layout import SUFFIX
from vqstack.codec.pictures import NumberFile, Pictures, Read, pictures_of_files, reader_of, tile_count
from vqstack.codes import CodeDatasetWriter, Contents, StoredCodes, fingerprint
from vqstack.edited import Edited
from vqstack.errors import InputError
from vqstack.explorer.pictures import is_video, stored
from vqstack.images import video
from vqstack.images.volumes import as_npy
from vqstack.shapes import Pixels, by_axis


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
        clip: reads a video as the run would.
    """

    def __init__(self, codec: BlockCodec, files: dict[Path, str], clip: Callable[[Path], Pixels]) -> None:
        made = dict[str, bytes]()
        self.codec, self.clip = codec, clip
        self.clips = {s for path, s in files.items() if is_video(codec.model) and video.is_video(str(path))}
        with own_threads():
            pictures = self._pictures(files)
            tiles = sum(tile_count(entry, codec.tile) for entry in pictures.entries)
            if tiles > MOST:
                raise InputError(
                    f"that is {tiles:,} times an input of the model, the page takes {MOST}: vqstack compress"
                )
            self.report: Report = compress(codec, pictures, made.__setitem__, name="explored")
        self.given = sum(path.stat().st_size for path in files)
        self.content = made[f"explored{SUFFIX}"]

    def _pictures(self, files: dict[Path, str]) -> Pictures:
        """What to compress: of files, or all that a compressed file holds, which must stand alone."""
        codec, packed = self.codec, [path for path in files if path.suffix == SUFFIX]
        channels = codec.model.stack.shape[0]
        if not packed:
            read = reader_of(codec.model)
            return pictures_of_files(
                files, lambda path: self._frames(path) if files[path] in self.clips else read(path)
            )
        if len(files) > 1:
            raise InputError(f"{packed[0].name} is compressed already: give it alone, or the files that are not")
        file = open_container(packed[0], codec.tile)
        problem = check_container(codec, file)
        found = list(restore(codec, file, range(len(file.entries))))
        exact = [image.pixels for image in found if image.pixels is not None and not image.level]
        if len(exact) < len(file.entries):
            raise InputError(problem or f"{packed[0].name} is damaged: vqstack decompress reads what is left")
        return Pictures(
            file.entries, lambda i: exact[i].expand(channels, -1, -1) if file.entries[i].mode == "L" else exact[i]
        )

    def _frames(self, path: Path) -> Read:
        """A video that holds its frames as the page itself stores them: others would not come back."""
        model, clip = self.codec.model, self.clip(path)
        shape, values = model.stack.shape, model.stack.values
        if stored(model, clip)[1] != path.read_bytes():
            raise InputError(
                f"{path}: of videos only those come back that this page or vqstack generate wrote: give a .npy of "
                f"{by_axis(shape)} whole numbers below {values}"
            )
        return NumberFile(shape[1:], as_npy(shape, values, None)), clip[0]

    def beginning(self, size: int) -> list[Restored]:
        """The pictures as far as the first bytes of the file tell them."""
        with own_threads():
            file = open_container(Path(f"explored{SUFFIX}"), self.codec.tile, self.content[:size])
            check_container(self.codec, file)
            return list(restore(self.codec, file, range(len(file.entries))))

    def back(self) -> dict[str, bytes]:
        """The files again, by their names."""
        found, model = dict[str, bytes](), self.codec.model
        for image in self.beginning(len(self.content)):
            assert image.pixels is not None  # they have been read back when they were compressed
            if image.entry.stem in self.clips:
                ending, content = stored(model, image.pixels[None])
            else:
                (ending, save), stream = storing(image, model), io.BytesIO()
                save(image.pixels, stream)
                content = stream.getvalue()
            found[f"{image.entry.stem}{ending}"] = content
        return found
