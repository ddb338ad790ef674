"""The released artefact: one folder with ``model.safetensors``, ``config.json`` and a model card.

Loading runs no code from the folder and unpickles nothing. Push and pull come from huggingface_hub's mixin.
"""

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vqstack.errors import InputError

FORMAT_VERSION = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


def holds_artefact(folder: Path) -> bool:
    """Whether the folder is that of a finished run or of a released model."""
    return (folder / "model" / CONFIG).is_file() or (folder / CONFIG).is_file()


def find_artefact(folder: Path) -> Path:
    """The artefact in a run's folder, or the folder itself if it is one."""
    for path in (folder / "model", folder):
        if (path / CONFIG).is_file():
            return path
    raise InputError(f"{folder} holds no trained model: give the folder of a finished run or of a released model")


class Pretrained(ModelHubMixin, library_name="vqstack", license="apache-2.0", tags=["vector-quantization"]):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` for a module built from one settings object.

    The class that uses it is an ``nn.Module``, sets ``settings_class`` and takes ``settings`` alone when it is built.
    """

    settings_class: ClassVar[type[BaseModel]]
    card: str = ""
    """Text of the model card; set before saving."""

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module)
        settings = self.settings
        assert isinstance(settings, BaseModel)
        config = {"format_version": FORMAT_VERSION, "model": settings.model_dump(mode="json")}
        (save_directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights = {k: v.detach().cpu().contiguous().clone() for k, v in self.state_dict().items()}
        save_file(weights, save_directory / WEIGHTS, metadata={"format": "pt"})
        header = "---\nlibrary_name: vqstack\nlicense: apache-2.0\ntags:\n- vector-quantization\n---\n\n"
        (save_directory / CARD).write_text(header + (self.card or "# A vqstack model\n"), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """A model from a folder or from the hub, on the CPU unless ``map_location`` says otherwise, in eval mode."""
        path = Path(pretrained_model_name_or_path) / CONFIG
        if path.is_file():
            cls._read_settings(path)  # before the mixin reads it, which would end in a traceback where it is broken
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def _from_pretrained(  # type: ignore[override]  # the arguments that the base class passes, and map_location
        cls,
        *,
        model_id: str,
        map_location: str | torch.device = "cpu",
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Any:  # the type of the subclass
        def find(name: str) -> Path:
            if Path(model_id).is_dir():
                path = Path(model_id) / name
                if not path.is_file():
                    raise InputError(f"{model_id} holds no {name}: give the folder of a run or of a released model")
                return path
            return Path(
                hf_hub_download(
                    model_id,
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )

        model = cls(cls._read_settings(find(CONFIG)))  # type: ignore[call-arg]
        path = find(WEIGHTS)
        try:
            model.load_state_dict(load_file(path, device="cpu"))  # type: ignore[attr-defined]
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise InputError(f"{path} does not fit its {CONFIG} ({reason}): fetch or export the model again") from error
        return model.to(map_location).eval()  # type: ignore[attr-defined]

    @classmethod
    def _read_settings(cls, path: Path) -> BaseModel:
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            version, settings = config["format_version"], config["model"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not the configuration of a vqstack model: fetch or export it again") from error
        if version != FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {version}, this program reads {FORMAT_VERSION}: update vqstack"
            )
        try:
            return cls.settings_class.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise InputError(f"{path}: {field}: {first['msg']}: fetch or export the model again") from error
