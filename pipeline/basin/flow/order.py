"""Which stage first: the one at the head of the longest way to the end, in seconds (Graham 1969, doi 10.1137/0117039).

    rank(s) = seconds(s) + max over all t that need s of rank(t)

Started in the order of falling rank, a graph on equal places takes less than twice what is needed at least. How long a stage takes is
remembered from its last run; of one that never ran here, its family's mean is taken.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import mean

from basin import files
from basin.repro.graph import Stage

SECONDS = Path(".basin/seconds.json")
UNKNOWN = 60.0  # of a stage whose like never ran here


def by_rank(stages: Sequence[Stage], clean: Collection[str], seconds: Mapping[str, float]) -> list[Stage]:
    """The stages, the most urgent first; `clean` ones take no time. `stages` holds each after all that it needs."""
    longest: dict[str, float] = {}
    for stage in reversed(stages):
        own = 0.0 if stage.name in clean else _expected(stage.name, seconds)
        longest[stage.name] = longest.get(stage.name, 0.0) + own
        for name in stage.upstream:
            longest[name] = max(longest.get(name, 0.0), longest[stage.name])
    return sorted(stages, key=lambda stage: -longest[stage.name])


def _expected(name: str, seconds: Mapping[str, float]) -> float:
    family = name.partition("@")[0]
    alike = [value for other, value in seconds.items() if other.partition("@")[0] == family]
    return seconds.get(name, mean(alike) if alike else UNKNOWN)


def remembered() -> dict[str, float]:
    """stage -> seconds of its last run; nothing where that cannot be read."""
    try:
        return {str(name): float(value) for name, value in json.loads(SECONDS.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def remember(seconds: Mapping[str, float]) -> None:
    known = remembered() | {name: round(value, 1) for name, value in seconds.items()}
    files.write(SECONDS, json.dumps(known, indent=1, sort_keys=True).encode())
