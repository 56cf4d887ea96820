"""kind -> file: the stem of a file in a family's folder under methods/ is its name in params.yaml.

A file holds a kind's settings beside what computes with them, and params.yaml is checked without loading the latter: `tables` carries out
those statements of the file that stand without torch.
"""

import ast
import builtins
import importlib
import sys
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator
from pydantic_core import ValidationError

from basin.config.settings import Settings, error_line
from basin.errors import Mistake, did_you_mean

FAMILIES = ("sources", "augmentations", "purifiers", "backbones", "heads", "training", "attacks")
METHODS = Path(__file__).parents[1] / "methods"
LIGHT = {*sys.stdlib_module_names, "pydantic", "pydantic_core"}  # and basin.config, basin.errors: what settings may stand on


@cache
def kinds(family: str) -> tuple[str, ...]:
    """The names of a family's kinds, found by listing its folder; nothing is imported."""
    return tuple(sorted(path.stem for path in (METHODS / family).glob("*.py") if path.stem != "__init__"))


def find(family: str, kind: str) -> ModuleType:
    """The module of a kind. Raises Mistake on a kind that the family does not have."""
    if kind not in kinds(family):
        raise Mistake(f"{family}: unknown kind (got {kind!r}). {did_you_mean(str(kind), kinds(family))}")
    return importlib.import_module(f"basin.methods.{family}.{kind}")


@cache
def tables(family: str, kind: str) -> SimpleNamespace:
    """The settings of a kind, with its constants and whatever else of its file needs nothing that computes.

    A statement is carried out if every name that it uses is there; an import, if it is of the standard library, pydantic or basin.config.
    """
    path = METHODS / family / f"{kind}.py"
    there: dict[str, Any] = {"__name__": f"basin.methods.{family}.{kind}"}
    for statement in ast.parse(path.read_bytes()).body:
        imports = isinstance(statement, ast.Import | ast.ImportFrom)
        if _is_light(statement) if imports else _uses(statement) <= there.keys() | vars(builtins).keys():
            exec(compile(ast.Module([statement], []), path, "exec"), there)
    return SimpleNamespace(**there)


def _is_light(statement: ast.stmt) -> bool:
    names = [statement.module or ""] if isinstance(statement, ast.ImportFrom) else [alias.name for alias in statement.names]  # type: ignore[attr-defined]
    return all(name.partition(".")[0] in LIGHT or f"{name}.".startswith(("basin.config.", "basin.errors.")) for name in names)


def _uses(statement: ast.stmt) -> set[str]:
    """The names that a statement takes from outside itself."""
    nodes = list(ast.walk(statement))
    own = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return {node.id for node in nodes if isinstance(node, ast.Name)} - own


@dataclass(frozen=True)
class Choice:
    """One file of a family with its settings: `{kind: pgd, steps: 20}` in params.yaml. Checked without what computes (`table`)."""

    family: str
    kind: str
    table: Settings
    given: dict[str, Any] = field(compare=False, repr=False)  # what `table` was checked from

    @property
    def tables(self) -> SimpleNamespace:
        return tables(self.family, self.kind)

    @property
    def module(self) -> ModuleType:
        """The file itself: torch is loaded now."""
        return find(self.family, self.kind)

    @cached_property
    def params(self) -> Any:
        """The settings as the file itself understands them: torch is loaded now."""
        return self.module.Params.model_validate(self.given)

    def fitted(self, classes: int, randomised: bool = False) -> "Choice":
        """What is run of an attack on so many classes, or on a random model: itself, or what its file puts in its place.

        Raises Mistake where its file has nothing for them.
        """
        fit = getattr(self.tables, "fitted", None)
        table = fit(self.table, classes, randomised) if fit else self.table
        return self if table == self.table else replace(self, table=table, given=table.model_dump(by_alias=True, exclude_unset=True))

    def __str__(self) -> str:
        chosen = ", ".join(f"{name} {_word(getattr(self.table, name))}" for name in sorted(self.table.model_fields_set))
        return f"{self.kind} ({chosen})" if chosen else self.kind

    def tree(self) -> dict[str, Any]:
        """As in params.yaml, with every default filled in."""
        return {"kind": self.kind, **self.table.model_dump(mode="json", by_alias=True)}


def _word(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)


def choose(family: str, value: Any) -> Choice:
    """A choice from its table. Raises pydantic's ValidationError, so that tables of params.yaml can hold choices."""
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise _invalid("missing", f"should be a table with a kind, one of: {', '.join(kinds(family))}", value)
    settings = dict(value)
    kind = settings.pop("kind")
    if kind not in kinds(family):
        raise _invalid("unknown_kind", f"unknown kind of {family}. {did_you_mean(kind, kinds(family))}", kind, ("kind",))
    return Choice(family, kind, tables(family, kind).Params.model_validate(settings), settings)


def _invalid(name: str, message: str, value: Any, loc: tuple[str, ...] = ()) -> ValidationError:
    return ValidationError.from_exception_data("choice", [error_line(name, message, loc, value)])


def _of(family: str) -> PlainValidator:
    return PlainValidator(partial(choose, family))


_TREE = PlainSerializer(Choice.tree)
AugmentationChoice = Annotated[Choice, _of("augmentations"), _TREE]
PurifierChoice = Annotated[Choice, _of("purifiers"), _TREE]
BackboneChoice = Annotated[Choice, _of("backbones"), _TREE]
HeadChoice = Annotated[Choice, _of("heads"), _TREE]
TrainingChoice = Annotated[Choice, _of("training"), _TREE]
AttackChoice = Annotated[Choice, _of("attacks"), _TREE]
