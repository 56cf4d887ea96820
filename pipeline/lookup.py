"""kind -> file: the stem of a file in a family's folder is its name in params.yaml."""

import importlib
import pkgutil
from functools import cache
from types import ModuleType

from pipeline.errors import Mistake, did_you_mean

FAMILIES = ("sources", "backbones", "heads", "training", "attacks")


@cache
def kinds(family: str) -> tuple[str, ...]:
    """The names of a family's kinds, found by listing its folder; nothing is imported but the family itself."""
    package = importlib.import_module(f"pipeline.{family}")
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def find(family: str, kind: str) -> ModuleType:
    """The module of a kind. Raises Mistake on a kind that the family does not have."""
    if kind not in kinds(family):
        raise Mistake(f"unknown kind of {family} (got {kind!r}). {did_you_mean(str(kind), kinds(family))}")
    return importlib.import_module(f"pipeline.{family}.{kind}")
