"""The base of every settings table, and the numbers that people write as fractions."""

from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from basin.errors import did_you_mean


class Settings(BaseModel):
    """A frozen table of params.yaml: unknown keys, wrong types, infinity and nan are errors, nothing is converted silently."""

    model_config = ConfigDict(frozen=True, strict=True, validate_by_name=True, validate_by_alias=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _all_errors(cls, value: Any, handler: Callable[[Any], "Settings"]) -> "Settings":
        """Report unknown keys beside all other errors, and end each error that gives no advice of its own with what its key is for."""
        if not isinstance(value, dict):
            return handler(value)
        known = {field.alias or name: field.description for name, field in cls.model_fields.items()}
        lines = [
            error_line("unknown_key", f"unknown key. {did_you_mean(str(key), known)}", (str(key),), content)
            for key, content in value.items()
            if key not in known
        ]
        try:
            table = handler({key: content for key, content in value.items() if key in known})
        except ValidationError as error:
            for e in error.errors(include_url=False):
                meaning = known.get(str(e["loc"][0])) if len(e["loc"]) == 1 and ". " not in e["msg"] else None
                lines.append(error_line(e["type"], f"{e['msg']}. It is {meaning}." if meaning else e["msg"], e["loc"], e["input"]))
        if lines:
            raise ValidationError.from_exception_data(cls.__name__, lines)
        return table


def error_line(kind: str, message: str, loc: tuple[int | str, ...], value: Any) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError(kind, "{message}", {"message": message}), loc=loc, input=value)  # type: ignore[arg-type]


def _fraction(value: Any) -> Any:
    """`"8/255"` reads as the literature writes it."""
    try:
        return float(Fraction(value) if "/" in value else value) if isinstance(value, str) else value
    except (ValueError, ArithmeticError):
        return value


Fractional = Annotated[float, BeforeValidator(_fraction)]
Radius = Annotated[Fractional, Field(gt=0, le=1e9)]  # beyond any image; a norm may set a limit: basin/config/threat.py
