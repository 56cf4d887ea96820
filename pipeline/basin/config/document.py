"""A YAML file -> plain tables: text keys, and values that DVC reads in the same way. What is not so is named by its key."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from basin.errors import Mistake

# What ruamel.yaml ends with on text that is not YAML, or whose tags and numbers are none.
UNREADABLE = (YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError)
DEEPEST, MOST = 40, 100_000  # levels, and values with every alias written out: no run comes near, what refers to itself passes both
LONGEST = 255  # characters of a key
LARGEST = 64  # bits of an integer


def read(path: Path) -> dict[str, Any]:
    """The file as plain tables. Raises Mistake where it is missing, not YAML, or holds what no key of a run may."""
    raw = _parsed(path)
    if not isinstance(raw, dict):
        raise Mistake(f"{path}: should be a table of keys (got {type(raw).__name__}). Take a ready-made file: basin use NAME.")
    if messages := list(_unfit(raw)):
        raise Mistake(*(f"{path}: {message}" for message in messages))
    return raw


def _parsed(path: Path) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Mistake(f"{path}: not found. Run in the folder that holds it, or choose a ready-made run with `basin use NAME`.") from None
    except OSError as error:
        raise Mistake(f"{path}: cannot be read (got {error.strerror}). Make it a file that you may read.") from None
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = " ".join(str(error.problem).split())
        raise Mistake(f"{path}: {line}not YAML (got {problem}). Mend that line, or take a ready-made file: basin use NAME.") from None
    except UNREADABLE as error:
        problem = " ".join(str(error).split())[:200]
        raise Mistake(f"{path}: not YAML (got {problem}). Take a ready-made file: basin use NAME.") from None


def _unfit(raw: dict[Any, Any]) -> Iterator[str]:
    """What is wrong with keys and values, whatever they are for."""
    for number, (key, value, depth) in enumerate(_values(raw)):
        if depth > DEEPEST or number > MOST:
            limits = f"{DEEPEST} levels or {MOST} values"
            yield f"{key.partition('.')[0]}: nested too deep, too long, or a part of itself (got over {limits}). Write it out."
            return
        if isinstance(value, int) and value.bit_length() > LARGEST:
            yield f"{key}: too large a number (got {value.bit_length()} bits). Give one of at most {LARGEST}."
        elif isinstance(value, dict):
            yield from (f"{key}: {_no_key(name)}" for name in value if not _is_key(name))


def _values(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any, int]]:
    """(its key, the value, how deep it lies) of a value and all below it; the caller stops where it goes round."""
    yield key or "the file", value, depth
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | set | tuple) else ()
    for name, content in items:
        if isinstance(name, int) or _is_key(name):
            yield from _values(content, f"{key}.{name}".lstrip("."), depth + 1)


def _is_key(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name) <= LONGEST and name.isprintable()


def _no_key(name: Any) -> str:
    got = ascii(name) if isinstance(name, str) else f"{type(name).__name__} {name}"
    return f"a key is a line of text of 1 to {LONGEST} characters (got {got[:80]}). Rename it; a number stands in quotes."
