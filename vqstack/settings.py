"""What all settings have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings: fixed once made; unknown names and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Tell the fields in the docstring, so that ``help()`` starts with them."""
        super().__pydantic_init_subclass__(**options)
        fields = [f"    {name}: {field.description}" for name, field in cls.model_fields.items()]
        about = (cls.__doc__ or "").partition("\n\nFields:")[0].rstrip()
        cls.__doc__ = "\n".join([f"{about}\n", "Fields:", *fields])
