"""Keys of params.yaml that dvc.yaml asks for. Where one is left out, Basin has a default and DVC has none."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from basin.config.document import read
from basin.config.params import Attack, Config
from basin.config.settings import Settings
from basin.errors import Mistake


def missing(raw: dict[str, Any], graph: Path = Path("dvc.yaml")) -> Iterator[str]:
    """What a params.yaml that is right otherwise leaves out and the graph asks for, each in a sentence with what to add."""
    for key in sorted({*_asked(graph)}):
        table, settings = (raw["attack"], Attack) if key.startswith("attack.") else (raw, Config)
        name = key.removeprefix("attack.")
        if name in settings.model_fields and name not in table:
            place = f"attack: {name}" if table is not raw else name
            yield f"{place}: DVC asks for it, also where its default will do (got nothing). Add `{name}: {_default(settings, name)}`."


def _asked(graph: Path) -> Iterator[str]:
    """The entries of `params` of all stages, up to the name that a stage puts in. A graph that cannot be read is DVC's to refuse."""
    try:
        stages = read(graph).get("stages")
    except Mistake:
        return
    for stage in stages.values() if isinstance(stages, dict) else ():
        asked = stage.get("do", stage).get("params", []) if isinstance(stage, dict) else []
        yield from (one.partition(".${")[0] for one in asked if isinstance(one, str))


def _default(settings: type[Settings], name: str) -> str:
    default = settings.model_fields[name].get_default(call_default_factory=True)
    return "{}" if isinstance(default, Settings) else json.dumps(default)
