"""The released artefact: one folder with ``model.safetensors``, ``config.json`` and a model card.

Loading runs no code from the folder and unpickles nothing. ``push_to_hub`` comes from huggingface_hub's mixin.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from huggingface_hub import ModelHubMixin
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

from vqstack.disk import digest, make_folder, write_atomically
from vqstack.errors import InputError, explain
from vqstack.hub import fetched
from vqstack.paths import check_local
from vqstack.reading import opened, plain_file, read_json, reading
from vqstack.registry import Unregistered

FORMAT_VERSION = 2  # 1 had no checksums; it is still read
MAX_CONFIG, MAX_HEADER = 2**20, 2**24  # bytes; those of a model of a thousand layers are far smaller
LARGE = 2**16  # numbers in a table that is only described
LARGEST = 1e9  # of a weight or an average: a layer or two of larger ones, and float32 ends
SPARE = 2**28  # bytes of memory that a model may take besides what its file holds: tables that are computed, not stored
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
LICENCE = "apache-2.0"


def holds_artefact(folder: Path) -> bool:
    """Whether the folder is that of a finished run or of a released model."""
    try:
        return (folder / "model" / CONFIG).is_file() or (folder / CONFIG).is_file()
    except OSError:  # `find_artefact` says why
        return False


def find_artefact(folder: Path, **hub: Any) -> Path:
    """The artefact in a run's folder, or the folder itself if it is one; of OWNER/NAME the copy that the hub gives.

    Options are those of ``huggingface_hub.snapshot_download``.
    """
    folder = fetched(folder, "model", (CONFIG, WEIGHTS, CARD), "a finished run or of a released model", **hub)
    with reading(folder):
        if os.path.lexists(folder):
            os.stat(folder)  # what is there and cannot be opened is another matter than a folder without a model
        for path in (folder / "model", folder):
            if (path / CONFIG).is_file():
                return path
    problem = " holds no trained model" if os.path.lexists(folder) else ": no such folder"
    raise InputError(f"{folder}{problem}: give the folder of a finished run or of a released model")


Module = TypeVar("Module", bound=nn.Module)
Model = TypeVar("Model", bound="Pretrained")
Described = dict[str, tuple[str, tuple[int, ...]]]  # of each tensor its type and shape


def read_header(path: Path) -> Described:
    """What a safetensors file says it holds. ValueError if the header is damaged or does not cover the file."""
    with opened(path) as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER, path.stat().st_size - 8):
        raise ValueError("its header is longer than the file, or than any that a model needs")
    with safe_open(path, "pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # no mapping
        return {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}


def check_numbers(state: Mapping[Any, Any], inside: str = "") -> None:
    """ValueError where a state, maybe of states, holds numbers that no training leaves: not finite, or past LARGEST."""
    for key, value in state.items():
        name = f"{inside}{key}"
        if isinstance(value, Mapping):
            check_numbers(value, f"{name}.")
        elif isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            low, high = torch.stack(value.aminmax()).tolist()
            if not -LARGEST <= low <= high <= LARGEST:
                raise ValueError(f"{name[:80]} holds {low if abs(low) > abs(high) else high}")


class _Frugal(TorchDispatchMode):
    """Inside, large tables of floats take no memory (they are on the meta device), and larger ones of anything fail.

    Small ones are real, so that constructors may compute with them.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)}
        shapes = [value.shape for value in args if isinstance(value, Tensor)]
        if shapes:  # what follows from others is as large as they are together, broadcast
            with suppress(RuntimeError):
                self._check(
                    math.prod(torch.broadcast_shapes(*shapes)), any(x.is_meta for x in args if torch.is_tensor(x))
                )
        elif "size" in given:
            floats = (options.get("dtype") or torch.get_default_dtype()).is_floating_point
            if floats and math.prod(given["size"]) > LARGE:
                options["device"] = torch.device("meta")
            else:
                self._check(math.prod(given["size"]), False)
        else:
            counts = [given[name] for name in ("n", "end", "steps") if name in given]  # randperm, arange, linspace
            self._check(max([0, *counts]), False)
        return func(*args, **options)

    def _check(self, count: int, described: bool) -> None:
        if count > SPARE // 8 and not described:
            raise ValueError(f"the settings ask for a table of {count:,} numbers")


def without_memory(build: Callable[[], Module], limit: int) -> Module:
    """The module that ``build`` makes, its large tables only described: good for counting, not for computing.

    ValueError if it has more than ``limit`` parameters, or asks for a table of other numbers that is too large.
    """
    count = 0

    def counted(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal count
        count += 1
        if count > limit:
            raise ValueError(f"the settings ask for more than {limit} tensors")

    hook = register_module_parameter_registration_hook(counted)
    try:
        with _Frugal():
            return build()
    finally:
        hook.remove()


def described_tensors(build: Callable[[], nn.Module], limit: int) -> Described:
    """What the state of a module will hold, found without taking memory for it.

    ValueError as :func:`without_memory`, and if the module takes much more memory besides its state than SPARE.
    """
    module = without_memory(build, limit)
    state = module.state_dict()
    everything = sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])
    if everything > sum(tensor.nbytes for tensor in state.values()) + SPARE:
        raise ValueError(f"the settings ask for {everything / 2**20:,.0f} MiB of memory")
    return {name: (_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in state.items()}


_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def _first_difference(stored: Described, wanted: Described) -> str:
    name = next(n for n in sorted({*stored, *wanted}) if stored.get(n) != wanted.get(n))
    return f"{name[:80]} is {stored.get(name, 'missing')} where the settings ask for {wanted.get(name, 'none')}"


def _checksum(described: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _misfit(path: Path, error: Exception) -> InputError:
    if isinstance(error, Unregistered):  # who registers the kind can load the model as it is
        return InputError(f"{path}: {error}")
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()[:300]
    return InputError(f"{path} does not fit its {CONFIG} ({reason}): fetch or export the model again")


def _check_card(path: Path) -> None:
    """InputError where the card is a link that leads out of its folder: its text goes along when a model is published.

    In the cache of the hub files are links to ``blobs/`` beside ``snapshots/``; these are of the same model.
    """
    plain_file(path)
    folder = path.parent.resolve()
    blobs = [folder.parent.parent / "blobs"] * (folder.parent.name == "snapshots")
    if path.is_symlink() and path.resolve().parent not in [folder, *blobs]:
        raise InputError(f"{path} is a link that leads out of its folder: put the file itself there, or remove it")


def _rebuilt(
    cls: type[Any],
    settings: BaseModel,
    parameters: dict[str, tuple[Tensor, bool]],
    buffers: dict[str, Tensor],
    modes: list[bool],
    card: str,
) -> Any:
    """A model from what :meth:`Pretrained.__reduce__` gives."""
    with torch.random.fork_rng(devices=[]):
        model = cls(settings)
    for name, (value, learns) in parameters.items():
        parameter = model.get_parameter(name)
        parameter.data = value
        parameter.requires_grad_(learns)
    for name, value in buffers.items():
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, value)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    model.card = card
    return model


def front_matter(licence: str = LICENCE) -> str:
    """How the card of a model begins, for the hub."""
    return f"---\nlibrary_name: vqstack\nlicense: {licence}\ntags:\n- vector-quantization\n---\n\n"


def _read_card(path: Path) -> str:
    """The text of a model card without the front matter, which is written anew."""
    with opened(path) as file:
        text = file.read(MAX_CONFIG).decode("utf-8", "replace")
    return re.sub(r"\A---\n.*?\n---\n+", "", text, count=1, flags=re.DOTALL)


class Pretrained(ModelHubMixin, library_name="vqstack", license=LICENCE, tags=["vector-quantization"]):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` for a module built from one settings object.

    The class that uses it is an ``nn.Module``, sets ``settings_class`` and takes ``settings`` alone when it is built.
    """

    settings_class: ClassVar[type[BaseModel]]
    card: str = ""
    """Text of the model card; set before saving, or as it was loaded."""

    def save_files(self, folder: Path) -> None:
        """The artefact without the mixin, which begins by removing ``config.json``; files that are equal stay.

        Each file is whole or not there, ``config.json`` comes last: a folder without it holds no artefact.
        """
        files = self._files()
        make_folder(folder)
        for name, content in files.items():
            path = folder / name
            if not (path.is_file() and digest(path) == hashlib.sha256(content).hexdigest()):
                write_atomically(path, partial(Path.write_bytes, data=content))

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """The artefact in a folder, which ``push_to_hub=True`` also uploads; InputError where a part was exchanged, and
        for an address.
        """
        check_local(save_directory)
        self.check_parts()  # before the mixin makes the folder
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save_files(save_directory)

    def _files(self) -> dict[str, bytes]:
        """What the files of the artefact hold."""
        assert isinstance(self, nn.Module)
        settings = self.settings
        assert isinstance(settings, BaseModel)
        self.check_parts()
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in self.state_dict().items()}
        weights = save(tensors, metadata={"format": "pt"})
        card = front_matter() + (self.card or "# A vqstack model\n")
        described = {"model": settings.model_dump(mode="json"), "weights": hashlib.sha256(weights).hexdigest()}
        config = {"format_version": FORMAT_VERSION, **described, "checksum": _checksum(described)}
        return {WEIGHTS: weights, CARD: card.encode(), CONFIG: (json.dumps(config, indent=2) + "\n").encode()}

    def check_parts(self) -> None:
        """InputError, naming the first, where a part is not the one that the settings build: loading would not find it.

        Compared are the types of all modules, what they print of themselves, and the types and shapes of their numbers.
        """
        assert isinstance(self, nn.Module)
        with torch.random.fork_rng(devices=[]):
            wanted = without_memory(lambda: cast(nn.Module, type(self)(self.settings)), 10**6)  # type: ignore[call-arg]
        theirs, ours = dict(wanted.named_modules()), dict(self.named_modules())
        for name in sorted({*theirs, *ours}):
            a, b = theirs.get(name), ours.get(name)
            if a is None or b is None or type(a) is not type(b) or a.extra_repr() != b.extra_repr():
                found, built = (
                    "nothing" if x is None else f"{type(x).__name__}({x.extra_repr()})"[:80] for x in (b, a)
                )
                raise InputError(
                    f"{name} is {found} where the settings build {built}, so the model could not be loaded again: put "
                    "the part that the settings name in its place before saving, or save its state_dict yourself"
                )
        stored, needed = (
            {name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in state.items()}
            for state in (self.state_dict(), wanted.state_dict())
        )
        if stored != needed:
            raise InputError(f"{_first_difference(stored, needed)}, so the model could not be loaded again")

    def check_numbers(self) -> None:
        """ValueError where numbers of a state that was loaded cannot be those of a model."""
        assert isinstance(self, nn.Module)
        check_numbers(self.state_dict())

    def __reduce__(self) -> tuple[Any, ...]:
        """Models are pickled as settings and numbers; parts that are not of the settings are refused."""
        assert isinstance(self, nn.Module)
        self.check_parts()
        parameters = {name: (p.detach(), p.requires_grad) for name, p in self.named_parameters()}
        modes = [module.training for module in self.modules()]
        return _rebuilt, (type(self), self.settings, parameters, dict(self.named_buffers()), modes, self.card)

    @classmethod
    def from_pretrained(cls: type[Model], pretrained_model_name_or_path: str | Path, **options: Any) -> Model:
        """A model from the folder of a run or of a released model, or from the hub (OWNER/NAME), in eval mode.

        Of the hub the revision stands behind the name, OWNER/NAME@REVISION, or is given as ``revision``. The model is
        on the CPU unless ``map_location`` says otherwise. The folder may be a stranger's: nothing in it is run or
        unpickled, and memory is taken only for what its weights really hold. InputError where there is no model, or
        where a file is damaged or describes another model than the weights hold.
        """
        return cls._from_pretrained(model_id=str(pretrained_model_name_or_path), **options)

    @classmethod
    def _from_pretrained(  # type: ignore[override]  # the arguments of the base class that mean something here
        cls, *, model_id: str, map_location: str | torch.device = "cpu", **hub: Any
    ) -> Any:  # the type of the subclass
        folder = find_artefact(Path(model_id), **hub)

        def find(name: str) -> Path:
            if not (folder / name).is_file():
                raise InputError(f"{folder} holds no {name}: give the folder of a run or of a released model")
            return folder / name

        settings, checksum = cls.read_settings(find(CONFIG))
        path = find(WEIGHTS)
        cls._check_weights(path, settings, checksum)
        model = cls(settings)  # type: ignore[call-arg]
        try:
            model.load_state_dict(load_file(path, device="cpu"))  # type: ignore[attr-defined]
            model.check_numbers()
        except (SafetensorError, RuntimeError, OSError, ValueError) as error:
            raise _misfit(path, error) from error
        _check_card(folder / CARD)
        with suppress(InputError):  # a model needs none
            model.card = _read_card(find(CARD))
        return model.to(map_location).eval()  # type: ignore[attr-defined]

    @classmethod
    def read_settings(cls, path: Path) -> tuple[Any, str | None]:
        """What ``config.json`` holds: the settings, and the checksum of the weights (none in version 1)."""
        try:
            config = read_json(path, MAX_CONFIG)
            version, settings = config["format_version"], config["model"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{path} is not the configuration of a vqstack model: fetch or export it again") from error
        if type(version) is not int or version < 1:  # true is an int, and equal to 1
            raise InputError(
                f"{path} has format version {str(version)[:20]}, which was never written: fetch or export it again"
            )
        if version > FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {str(version)[:20]}, this program reads 1 to {FORMAT_VERSION}: "
                "update vqstack"
            )
        described = {"model": settings, "weights": config.get("weights")}
        if version > 1 and config.get("checksum") != _checksum(described):
            raise InputError(f"{path} is not what was exported (its checksum differs): fetch or export it again")
        try:
            return cls.settings_class.model_validate(settings), described["weights"] if version > 1 else None
        except (ValidationError, RecursionError, OverflowError) as error:
            reason = explain(error) if isinstance(error, ValidationError) else str(error)
            raise InputError(f"{path}: {reason}: fetch or export the model again") from error

    @classmethod
    def _check_weights(cls, path: Path, settings: BaseModel, checksum: str | None) -> None:
        """The file must hold exactly the tensors of the model that the settings describe, before any is allocated."""
        try:
            stored = read_header(path)
            wanted = described_tensors(lambda: cast(nn.Module, cls(settings)), 4 * len(stored) + 1000)  # type: ignore[call-arg]
            if stored != wanted:
                raise ValueError(_first_difference(stored, wanted))
            if checksum is not None and digest(path) != checksum:
                raise ValueError("its checksum differs")
        except Exception as error:  # a stranger's settings can make any line of a constructor fail
            raise _misfit(path, error) from error
