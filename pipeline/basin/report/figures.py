"""The figures, each one Vega-Lite spec under template/figures/: the page shows it as SVG, `dvc plots show` draws it from our tables.

A spec has the light palette of style.css; on the page each of its colours is the variable of that name, so that a figure follows the
theme. No Vega runs in the reader's browser: it would take a script of 800 kB, and its compiler needs what a strict policy forbids.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

TEMPLATE = Path(__file__).parent / "template"
DATA, TITLE = "<DVC_METRIC_DATA>", "<DVC_METRIC_TITLE>"  # where DVC puts the rows of a table, and the name of a plot
PLOTS = ("glance", "radius", "loss", "accuracy")  # that `dvc plots show` draws
VEGA_LITE = "6.4"


@dataclass(frozen=True)
class Figure:
    name: str
    svg: Markup
    spec: dict[str, Any]  # complete, with its rows


@cache
def template(name: str) -> str:
    """The spec as DVC takes it, as JSON: with our look, and places for rows and title."""
    config = json.loads((TEMPLATE / "figures/config.json").read_text(encoding="utf-8"))
    spec = json.loads((TEMPLATE / f"figures/{name}.json").read_text(encoding="utf-8"))
    return json.dumps(spec | {"config": config}, indent=1, ensure_ascii=False)


@cache
def palette() -> dict[str, str]:
    """Variable of style.css -> its colour in the light theme."""
    light = (TEMPLATE / "style.css").read_text(encoding="utf-8").partition("}")[0]
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", light))


def figure(name: str, rows: Sequence[dict[str, Any]], says: str, models: Sequence[str] = ()) -> Figure:
    """A figure of these rows; `says` is read out in its place. Each of `models`, in the run's order, has one look in all figures."""
    spec = json.loads(template(name)) | {"data": json.loads(template(name))["data"] | {"values": list(rows)}}
    del spec["$schema"], spec["title"]  # the page has a heading, and names no address
    if models:
        _look(spec, list(models), {row["model"] for row in rows})
    return Figure(name, Markup(_drawn(_themed(spec)).replace("<svg", f'<svg role="img" aria-label="{escape(says)}"', 1)), spec)


@lru_cache(maxsize=256)
def _drawn(spec: str) -> str:
    """The SVG: a tenth of a second, and a run's page and its cards share some."""
    import vl_convert

    return _slim(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE))


def _slim(svg: str) -> str:
    """What Vega writes, without what a page does not need: a third of it."""
    bare = re.sub(r' (xmlns(:\w+)?|version|role|aria-roledescription|aria-hidden|pointer-events)="[^"]*"| opacity="1"', "", svg)
    bare = re.sub(r'<path class="(background|foreground)"[^>]*/>', "", bare)
    return re.sub(r'(?<= )(d|transform|opacity)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), bare)


def _themed(spec: dict[str, Any]) -> str:
    """The spec with a variable for each colour of the palette."""
    names = {colour: f"var({name})" for name, colour in palette().items()}
    return re.sub('"(#[0-9a-f]{6})"', lambda found: f'"{names.get(found[1], found[1])}"', json.dumps(spec))


def _look(part: Any, models: list[str], shown: set[str]) -> None:
    """Give every scale over models the whole run, so that a model's colour and marker do not hang on which others are drawn."""
    if isinstance(part, list):
        for one in part:
            _look(one, models, shown)
    elif isinstance(part, dict):
        for channel, encoding in part.items():
            if channel in ("color", "shape") and isinstance(encoding, dict) and encoding.get("field") in ("who", "model"):
                encoding["scale"] = {"domain": models}
                if channel == "shape" or encoding.get("legend", True) is not None:  # where both have the run's order the two are one legend
                    encoding["legend"] = {"values": [model for model in models if model in shown]}
            else:
                _look(encoding, models, shown)
