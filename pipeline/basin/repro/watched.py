"""A person's own images as a dependency of `prepare`, so that DVC sees where they change; it hashes them where they lie and copies nothing.

Only some kinds of data name such a path, and a dvc.yaml cannot ask whether a key is there: `basin` puts the line into it, or takes it out.
"""

import logging
import re
from pathlib import Path

from basin import files
from basin.config.names import STAGES
from basin.config.params import Config

KEYS = {"folder": "folder", "npz": "file"}  # kind -> the key of `data` that names what is watched
GRAPH = Path("dvc.yaml")
OURS = re.compile(rf"^ +- \$\{{data\.(?:{'|'.join(KEYS.values())})\}}\n", re.MULTILINE)
NONE, SOME = "    deps: []\n", "    deps:\n"  # of `prepare`, with which a graph begins
log = logging.getLogger(__name__)


def graph(text: str, kind: str) -> str:
    """The text of a dvc.yaml whose stage `prepare` depends on what a kind of data watches, and on nothing of the sort where it does not."""
    head, *found = re.split(r"^    deps:(?: \[\])?\n", OURS.sub("", text), maxsplit=1, flags=re.MULTILINE)
    if not found or "basin.stages.prepare" not in head:
        return text  # another's graph
    (rest,) = found
    if kind in KEYS:
        return f"{head}{SOME}      - ${{data.{KEYS[kind]}}}\n{rest}"
    return f"{head}{SOME if rest.lstrip(' ').startswith('-') else NONE}{rest}"


def tell_of_others(config: Config) -> None:
    """Warn of outputs of models that params.yaml no longer has: DVC watches these folders as wholes, so what lies there counts."""
    named = {f"{stage}/{name}" for stage in STAGES for name in getattr(config, stage)}
    found = [path for folder in ("models", "outcomes", "history") for path in sorted(Path(folder).glob("*/*"))]
    if others := [path.as_posix() for path in found if f"{path.parent.name}/{path.name.removesuffix('.csv')}" not in named]:
        log.warning("%s: of no model of params.yaml, and watched all the same. DVC's cache has them: rm -r %s", others[0], " ".join(others))


def keep(config: Config) -> None:
    """Bring the graph here up to params.yaml; what is wrong with it is for DVC to say."""
    try:
        text = GRAPH.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if (now := graph(text, config.source.kind)) != text:
        files.write(GRAPH, now)
        log.info("dvc.yaml: prepare watches %s", f"data.{KEYS[config.source.kind]}" if config.source.kind in KEYS else "no images of yours")
