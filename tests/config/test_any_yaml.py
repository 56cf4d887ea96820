"""Whatever is written in params.yaml: a config, or mistakes that each name a key."""

import datetime
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from basin.config import params
from basin.errors import Mistake

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))]
RUNS = [YAML(typ="safe", pure=True).load(path) for path in FILES]
WORDS = [
    "",
    "x",
    "a.b",
    "..",
    "-a",
    "é",
    "a b",
    "a\nb",
    "'",
    "x" * 300,
    "pgd",
    "PGD",
    "kind",
    "from",
    "champion",
    "v1",
    "exchange",
    "clean",
]
ODD = [None, True, False, 0, 1, -1, 10**40, 0.5, float("inf"), float("nan"), datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1)]
VALUES = st.sampled_from(
    [
        *WORDS, *ODD, b"\x00\xff", "8/255", "1/0", "1e400", "backbone/natural", "head/x", {"kind": "pgd"}, {"kind": []}, {"kind": None},
        {1: 2}, {"": 1}, [], {}, [None], [{}], [[]], {"a": {"b": [1]}},
    ]  # fmt: skip
)  # fmt: skip
KEYS = st.sampled_from([*WORDS, None, True, 1, 1.5, (1, 2), datetime.date(2020, 1, 1)])
CHANGES = st.lists(
    st.tuples(st.sampled_from(["replace", "delete", "insert", "rename"]), st.integers(0, 10**4), KEYS, VALUES), min_size=1, max_size=3
)
TOP = {*params.Config.model_fields, "the file"}


def places(table, path=()):
    """Every path below a table or list."""
    items = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    for key, content in items:
        yield (*path, key)
        yield from places(content, (*path, key))


def changed(raw, changes):
    raw = deepcopy(raw)
    for what, number, key, value in changes:
        paths = list(places(raw))
        *above, last = paths[number % len(paths)]
        table = raw
        for part in above:
            table = table[part]
        if what == "replace":
            table[last] = deepcopy(value)
        elif what == "insert" and isinstance(table, list):
            table.insert(last, deepcopy(value))
        elif what == "insert":
            table[key] = deepcopy(value)
        else:
            left = table.pop(last)
            if what == "rename" and isinstance(table, dict):
                table[key] = left
    return raw


def read(raw, path):
    """Nothing but a config or a `Mistake`, whose every message is one line and begins with the file and a key."""
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(raw, file)
    try:
        params.load(path)
    except Mistake as mistake:
        for message in mistake.messages:
            assert message.startswith(f"{path}: ") and message.isprintable() and " (got " in message
            said = message.removeprefix(f"{path}: ")
            assert any(said.startswith((f"{key}:", f"{key}.")) for key in TOP.union(map(str, raw)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from(RUNS), CHANGES)
def test_any_yaml_is_a_config_or_a_mistake(tmp_path_factory, raw, changes):
    read(changed(raw, changes), tmp_path_factory.getbasetemp() / "any.yaml")


@pytest.mark.slow
@settings(max_examples=700, deadline=None, phases=[Phase.generate])
@given(st.sampled_from(RUNS), CHANGES)
def test_any_yaml_is_a_config_or_a_mistake_whatever_is_drawn(tmp_path_factory, raw, changes):
    read(changed(raw, changes), tmp_path_factory.getbasetemp() / "any.yaml")
