"""kind -> file: the stem of a file in a family's folder is its name in params.yaml."""

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator
from pydantic_core import ValidationError

from pipeline.errors import Mistake, did_you_mean
from pipeline.types import Settings, error_line

FAMILIES = ("sources", "purifiers", "backbones", "heads", "training", "attacks")


@cache
def kinds(family: str) -> tuple[str, ...]:
    """The names of a family's kinds, found by listing its folder; nothing is imported but the family itself."""
    package = importlib.import_module(f"pipeline.{family}")
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def find(family: str, kind: str) -> ModuleType:
    """The module of a kind. Raises Mistake on a kind that the family does not have."""
    if kind not in kinds(family):
        raise Mistake(f"{family}: unknown kind (got {kind!r}). {did_you_mean(str(kind), kinds(family))}")
    return importlib.import_module(f"pipeline.{family}.{kind}")


@dataclass(frozen=True)
class Choice:
    """One file of a family with its settings: `{kind: pgd, steps: 20}` in params.yaml."""

    family: str
    kind: str
    params: Settings

    @property
    def module(self) -> ModuleType:
        return find(self.family, self.kind)

    def __str__(self) -> str:
        chosen = ", ".join(f"{name} {getattr(self.params, name)}" for name in sorted(self.params.model_fields_set))
        return f"{self.kind} ({chosen})" if chosen else self.kind

    def tree(self) -> dict[str, Any]:
        """As in params.yaml, with every default filled in."""
        return {"kind": self.kind, **self.params.model_dump(mode="json", by_alias=True)}


def choose(family: str, value: Any) -> Choice:
    """A choice from its table. Raises pydantic's ValidationError, so that tables of params.yaml can hold choices."""
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise _invalid("missing", f"should be a table with a kind, one of: {', '.join(kinds(family))}", value)
    settings = dict(value)
    kind = settings.pop("kind")
    if kind not in kinds(family):
        raise _invalid("unknown_kind", f"unknown kind of {family}. {did_you_mean(kind, kinds(family))}", kind, ("kind",))
    return Choice(family, kind, find(family, kind).Params.model_validate(settings))


def _invalid(name: str, message: str, value: Any, loc: tuple[str, ...] = ()) -> ValidationError:
    return ValidationError.from_exception_data("choice", [error_line(name, message, loc, value)])


def _of(family: str) -> PlainValidator:
    return PlainValidator(partial(choose, family))


_TREE = PlainSerializer(Choice.tree)
PurifierChoice = Annotated[Choice, _of("purifiers"), _TREE]
BackboneChoice = Annotated[Choice, _of("backbones"), _TREE]
HeadChoice = Annotated[Choice, _of("heads"), _TREE]
TrainingChoice = Annotated[Choice, _of("training"), _TREE]
AttackChoice = Annotated[Choice, _of("attacks"), _TREE]
