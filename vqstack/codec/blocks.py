"""A block of images of the model's size <-> sections of bytes, each with its check.

Section 0 holds the labels (of a conditional model) and z_L under the prior, the next ones z_{L-1} … z_1 under the
decoders, the last one the pixels under the likelihood of level 1. The sections of a block are one stream of the range
coder, cut where everything so far can be decoded. A check is the CRC-32 of the check before, the bytes of the section
and what they decode to, so that a machine that decodes them to something else notices.

The encoder and the decoder run the same walk: the networks on batches of one fixed shape (filled up with zeros), on the
CPU in float32, with one number of threads, factor by factor. Portable ones (``portable.py``) in float64, as it comes.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from vqstack.codec.coder import Coder, Damaged, Decoder, Encoder, Probe, code
from vqstack.codec.portable import LEANS, Rounding, in_float64
from vqstack.codes import fingerprint
from vqstack.conditions import GIVEN
from vqstack.errors import InputError
from vqstack.ledger import Ledger
from vqstack.likelihood import walked_log_prob
from vqstack.model import HierarchicalModel
from vqstack.shapes import AnyCodes, Floats, Labels, Pixels, value_dtype
from vqstack.terms import Values, code_lengths
from vqstack.variables import Variable

Section = list[Tensor]
"""What a section decodes to: one map for each image, in section 0 after the labels, if there are any."""

Padding: TypeAlias = tuple[Tensor, Tensor]
r"""Values that both sides know of images, and where, both [b, c, \*map]: what lies beyond the end of a sound."""

BATCH = 32
"""Images that the networks see at a time; a block of one image goes through them alone."""


def batch_of(count: int) -> int:
    """Batch shape for a block that is a file of its own."""
    return 1 if count == 1 else BATCH


def plausible(count: int, size: int) -> bool:
    """Whether ``count`` images can be coded in ``size`` bytes; by definition: blocks that are shorter are stored raw.

    With :func:`worthwhile` it keeps a small damaged file from asking for hours of decoding.
    """
    return count <= 64 + size


def worthwhile(count: int, present: int) -> bool:
    """Whether the ``present`` bytes of a block of ``count`` images, maybe cut short, hold a bit an image or more."""
    return count <= 64 + 8 * present


@dataclass(frozen=True)
class Block:
    """A coded block.

    Attributes:
        sections: bytes; of a raw block one, the pixels compressed by zlib.
        checks: one each.
        raw: whether the model was given up, because what it coded did not come back.
        bits: information by row of the ledger, nothing for a raw block.
        ledger: what the model says about the same images and labels.
    """

    sections: list[bytes]
    checks: list[int]
    raw: bool
    bits: dict[str, float]
    ledger: Ledger


class BlockCodec:
    """Codes blocks with a model. Leaves torch's number of threads at what was asked for last.

    Args:
        model: on the CPU, in eval mode.
        portable: with tables that come out equal on every machine.
        condition: floats that the model is given, a row for all pictures or one for each. No file holds them; they are
            part of the fingerprint, so that others are refused.
    """

    def __init__(self, model: HierarchicalModel, portable: bool = False, condition: Floats | None = None) -> None:
        model.check_condition(condition, None)
        self.model, self.portable, self.condition = model, portable, condition
        given = {} if condition is None else {GIVEN: condition}
        self.fingerprint = fingerprint({**model.likelihood_state(), **given})
        self._walked = in_float64(model) if portable else model
        self._probes: dict[tuple[int, int], str] = {}
        self._other: BlockCodec | None = None

    def reading(self, portable: bool) -> "BlockCodec":
        """The codec of the same model for files that are portable, or are not."""
        if portable == self.portable:
            return self
        self._other = self._other or BlockCodec(self.model, portable, self.condition)
        return self._other

    def given(self, numbers: range, tiles: Sequence[int]) -> Floats | None:
        """What the tiles of pictures ``numbers`` are given, so many of each; none where the model reads nothing.

        InputError where there is neither one row for all nor one for each of them.
        """
        if self.condition is None:
            return None
        rows, last = self.condition, numbers.stop
        rows = rows.expand(last, *rows.shape[1:]) if len(rows) == 1 else rows
        if last > len(rows):
            raise InputError(f"condition: {len(rows)} rows for {last} pictures or more: give one for all, or for each")
        return rows[numbers.start : numbers.stop].repeat_interleave(torch.tensor(tiles), 0)

    @property
    def sections(self) -> int:
        """Sections of a block that is not raw."""
        return len(self.model.stack) + 1

    @property
    def tile(self) -> tuple[int, ...]:
        """Sites of an image along each axis; of a sound channels and numbers."""
        shape = self.model.stack.shape
        return shape if self.model.settings.sound else shape[1:]

    @torch.inference_mode()
    def probe(self, threads: int, batch: int) -> str:
        """64 hexadecimal digits: a hash of all tables that coding a fixed batch goes through. Sets the threads."""
        torch.set_num_threads(threads)
        if (threads, batch) not in self._probes:
            coder = Probe()
            zeros = None if self.condition is None else torch.zeros(batch, *self.condition.shape[1:])
            for _ in self._walk(coder, batch, batch, self._fixed(batch), condition=zeros):
                pass
            self._probes[threads, batch] = coder.hashed().hex()
        return self._probes[threads, batch]

    def _fixed(self, count: int) -> Values:
        """Values of all variables that depend on their shape and number of values only."""

        def pattern(variable: Variable) -> Tensor:
            numbers = torch.arange(count * variable.sites) * 2654435761 % 2**32 >> 16
            return numbers.remainder(variable.size).view(count, *variable.shape).to(variable.dtype)

        return {term.target.name: pattern(term.target) for term in self.model.terms()}

    @torch.inference_mode()
    def encode(
        self,
        pixels: Pixels,
        label: int | None,
        *,
        batch: int,
        seed: int,
        padding: Padding | None = None,
        condition: Floats | None = None,
    ) -> Block:
        """Code images. Whether they come back is for :func:`vqstack.codec.archive.compress` to see.

        Args:
            pixels: any number of images.
            label: of all images; none: for each the one with the shortest label and prior rows.
            batch: batch shape of the networks.
            seed: starts the chain of checks; the decoder must know it.
            padding: what both sides know of the images.
            condition: what they are given, as :meth:`given` has it.
        """
        codes = [torch.cat(maps) for maps in zip(*map(self.model.encode, pixels.split(batch)), strict=True)]
        labels = self._choose(pixels, codes, label, condition) if self.model.classes else None
        truth = self.model.values(pixels, codes, labels, condition)
        ledger = self._ledger(truth, batch, padding)
        coded = self._coded(len(pixels), batch, truth, padding, condition)
        if coded is None:
            return self.store(pixels, ledger, seed=seed)
        encoder, contents = coded
        sections, checks = encoder.sections(), list[int]()
        for section, tensors in zip(sections, contents, strict=True):
            checks.append(_check(section, tensors, checks[-1] if checks else seed))
        if plausible(len(pixels), sum(map(len, sections))):
            return Block(sections, checks, False, encoder.bits, ledger)
        return self.store(pixels, ledger, seed=seed)

    def _coded(
        self, count: int, batch: int, truth: Values, padding: Padding | None = None, condition: Floats | None = None
    ) -> tuple[Encoder, list[Section]] | None:
        """An encoder that has coded the sections, and these; nothing where every rounding leaves tables unsure."""
        for lean in range(LEANS if self.portable else 1):
            encoder, contents = Encoder(), list[Section]()
            for tensors in self._walk(encoder, count, batch, truth, lean, padding, condition):
                contents.append(tensors)
                encoder.cut()
                if encoder.rounding is not None and encoder.rounding.unsure:
                    break
            else:
                return encoder, contents
        return None

    def store(self, pixels: Pixels, ledger: Ledger, *, seed: int) -> Block:
        """A raw block."""
        packed = zlib.compress(pixels.contiguous().numpy().tobytes(), 9)
        return Block([packed], [_check(packed, [pixels], seed)], True, {}, ledger)

    @torch.inference_mode()
    def decode(
        self,
        sections: list[tuple[bytes, int]],
        count: int,
        *,
        batch: int,
        seed: int,
        padding: Padding | None = None,
        condition: Floats | None = None,
    ) -> list[Section]:
        """What the first sections of a block hold, up to the first that is damaged; see :meth:`encode`."""
        decoder = Decoder(b"".join(section for section, _ in sections))
        walk = self._walk(decoder, count, batch, None, padding=padding, condition=condition)
        found, check = list[Section](), seed
        for section, expected in sections:
            try:
                tensors = next(walk)
            except Damaged:
                break
            check = _check(section, tensors, check)
            if check != expected:
                break
            found.append(tensors)
        return found

    def decode_raw(self, section: bytes, expected: int, count: int, *, seed: int) -> Pixels | None:
        """The images of a raw block, or nothing if it is damaged."""
        shape, dtype = (count, *self.model.stack.shape), value_dtype(self.model.stack.values)
        size = int(torch.tensor(shape).prod()) * dtype.itemsize
        inflate = zlib.decompressobj()
        try:
            content = inflate.decompress(section, size + 1)
        except zlib.error:
            return None
        if len(content) != size or not inflate.eof or inflate.unused_data:
            return None
        pixels = torch.frombuffer(bytearray(content), dtype=dtype).view(shape)
        return pixels if _check(section, [pixels], seed) == expected else None

    def _walk(
        self,
        coder: Coder,
        count: int,
        batch: int,
        truth: Values | None,
        lean: int = 0,
        padding: Padding | None = None,
        condition: Floats | None = None,
    ) -> Iterator[Section]:
        """Code the terms in order and yield the sections; with an encoder ``truth`` has the values of all variables.

        A section ends with each map: labels lie in that of the top one. ``lean`` is how an encoder rounds portable
        tables; it is the first symbol of a portable block.
        """
        if self.portable:
            chosen = coder.step(torch.ones(1, 1, LEANS).double(), None if truth is None else torch.tensor([[lean]]))
            coder.rounding = Rounding(int(chosen))
        values, section = dict[str, Tensor](), Section()
        if condition is not None:
            values[GIVEN] = condition.double() if self.portable else condition

        def filled(tensor: Tensor, first: int, rows: int) -> Tensor:
            padding = [0, 0] * (tensor.ndim - 1) + [0, batch - rows]
            return F.pad(tensor[first : first + rows], padding)

        for term in self._walked.terms():
            target, maps = term.target, []
            for first in range(0, count, batch):
                rows = min(batch, count - first)
                given = {name: filled(tensor, first, rows) for name, tensor in values.items()}
                part, known = slice(first, first + rows), None
                wanted = None if truth is None else truth[target.name][part].reshape(rows, -1).long()
                if padding is not None and target.number == 0:
                    known = padding[0][part].flatten(1).long(), padding[1][part].flatten(1)
                maps.append(code(coder, term.distribution(given, batch), rows, wanted, known))
            values[target.name] = torch.cat(maps).view(count, *target.shape)
            coder.mark(term.row)
            section.append(values[target.name].to(target.dtype))
            if target.shape:
                yield section
                section = Section()

    def _choose(
        self, pixels: Pixels, codes: list[AnyCodes], label: int | None, condition: Floats | None = None
    ) -> Labels:
        """The label given for all images, or for each the one that makes the rows which read it shortest."""
        if label is not None:
            return torch.full((len(pixels),), label)
        found = list[Labels]()
        for first in range(0, len(pixels), BATCH):
            part = slice(first, first + BATCH)
            given = None if condition is None else condition[part]
            found.append(self.model.likeliest_labels(pixels[part], [z[part] for z in codes], given))
        return torch.cat(found)

    def _ledger(self, truth: Values, batch: int, padding: Padding | None) -> Ledger:
        """Of the images of a block; what both sides know of them costs nothing."""
        ledger, terms = None, self.model.terms()
        for first in range(0, len(truth["pixels"]), batch):
            part = slice(first, first + batch)
            values = {name: value[part] for name, value in truth.items()}
            count = len(values["pixels"])
            lengths = code_lengths(terms if padding is None else terms[:-1], values, count)
            if padding is not None:
                distribution, counted = terms[-1].distribution(values, count), ~padding[1][part].flatten(1)
                lengths[terms[-1].row] = -walked_log_prob(distribution, values["pixels"], counted)
            one = Ledger.of(lengths, self.model.dims)
            ledger = one if ledger is None else ledger.merge(one)
        assert ledger is not None
        return ledger


def _check(section: bytes, tensors: Section, before: int) -> int:
    check = zlib.crc32(section, before)
    for tensor in tensors:
        stored = tensor if tensor.dtype == torch.uint8 else tensor.to(torch.int32)
        check = zlib.crc32(stored.contiguous().numpy().tobytes(), check)
    return check


def given_label(model: HierarchicalModel, label: str | None) -> int | None:
    """The number of a class that may be given to a conditional model only, and must be one that it knows."""
    if label is not None and not model.classes:
        raise InputError("--label: this model knows no classes; leave it out")
    return None if label is None else model.settings.class_number(label)
