"""Every model of tests/zoo, hostile and honest, judged by Basin beside what is known of it. Writes docs/results/zoo.md, .csv.

    python -m benchmarks.zoo [--folder docs/results]

The truth is known by construction, by going through all cases or, for honest nets, bounded by a long search of their own. Also: models
without a gradient against their twin with one, and how far each flag's figure lies from its limit on models with and without the fault.
"""

import argparse
import logging
import platform
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from basin.errors import Mistake
from basin.evaluation.diagnostics import Diagnosis
from benchmarks import as_command, commit, write_csv
from benchmarks.claims import wrapped

TESTS = Path(__file__).parents[1] / "tests"
sys.path += [str(TESTS), str(TESTS / "evaluation")]  # the animals and the planted models live with the tests that hold us to them

import test_flags as planted  # noqa: E402
from zoo import honest, hostile  # noqa: E402
from zoo.judging import SUITE, judged  # noqa: E402, F401
from zoo.species import EPS, INSIDE, Animal, N, images  # noqa: E402

FIELDS = ("kind", "model", "facts", "n", "clean_truth", "worst_truth", "clean", "worst", "low", "high", "passes", "flags", "refused")
GONE = ("no_grad inside", "inference_mode inside", "NumPy inside", "detached", "a backward pass that raises")
SAMPLE = 400  # images of a pair
NEAR = 0.1  # of a limit: how close no figure may come to it
Row = dict[str, Any]
Figures = dict[str, dict[str, list[float]]]  # flag -> "honest" or "planted" -> figures


# The models -------------------------------------------------------------------------------------------------------------------------------


def judge(kind: str, animal: Animal, figures: Figures) -> Row:
    """A row of the table; what its flags stand on is added to the figures."""
    row: Row = dict.fromkeys(FIELDS, "") | {"kind": kind, "model": animal.name, "n": N}
    known = animal.known()
    if not isinstance(known, str):
        row |= {"clean_truth": known[0], "worst_truth": known[1]}
    try:
        found = judged(animal)
    except Mistake as refusal:
        return row | {"refused": str(refusal)}
    collect(figures, found.diagnosis, honest=kind == "honest", planted=animal.flags)
    row |= {"clean": found.clean, "worst": found.worst_case, "low": found.interval[0], "high": found.interval[1]}
    return row | {"facts": "; ".join(found.facts), "passes": found.outcomes.passes, "flags": ", ".join(found.flags)}


def collect(figures: Figures, diagnosis: Diagnosis, honest: bool, planted: Iterable[str]) -> None:
    """Of a model without a fault the figures of all flags, of one with a fault those of the flags that tell it."""
    for flag, (figure, limit) in diagnosis.measured.items():
        figures[flag]["limit"] = [limit]
        if honest or flag in planted:
            figures[flag]["honest" if honest else "planted"].append(figure)


def pairs(animals: Sequence[Animal], n: int) -> Iterator[Row]:
    """Models that differ from their twin in having no gradient, on n images."""
    x = images(n, seed=9)
    data = x, INSIDE(x).argmax(1)
    twin = judged(replace(honest.ANIMALS[0], data=lambda: data))
    for animal in tqdm([animal for animal in animals if animal.name in GONE], "pairs", mininterval=2, disable=None):
        found = judged(replace(animal, data=lambda: data))
        queries = found.outcomes.passes / n
        yield {"model": animal.name, "n": n, "without": found.worst_case, "with": twin.worst_case, "queries": queries}


def plant(figures: Figures) -> None:
    """The models and outcomes of tests/evaluation/test_flags.py: one has the flag's fault, one has it not."""
    for flag, (faulty, sound) in tqdm(planted.MODELS.items(), "planted", mininterval=2, disable=None):
        for model, side in ((faulty, "planted"), (sound, "honest")):
            figures[flag][side].append(planted.evaluated(model).diagnosis.measured[flag][0])
    sound = planted.evaluated(planted.Made())
    for flag, cases in planted.OUTCOMES.items():
        for case, side in zip(cases, ("planted", "honest")):
            found = planted.diagnosed(sound, planted.attempts(pgd_longer=1), **case)
            figures[flag][side].append(found.measured[flag][0])
    few = planted.evaluated(planted.noisy(1.5), {"attacks": {"fgsm": {"kind": "fgsm"}}})
    figures["too-few-draws"]["planted"].append(few.diagnosis.measured["too-few-draws"][0])


# The page ---------------------------------------------------------------------------------------------------------------------------------


LEGEND = f"""Images of linf {EPS:g}; the suite `adaptive`, shortened (tests/zoo/judging.py). *truth*: clean / worst case, in %, known by
construction or by going through all cases; of honest nets an upper bound, from 200 signed steps towards every class from 10 starts.
*Basin*: the same as judged, with the 95% interval of the worst case; passes: thousands of images passed forwards. A model that cannot be
judged is refused with the sentence that stands there."""
MARGINS = """What each flag measures, its limit (it is raised above), the highest figure of honest models and the lowest of models with the
fault: the hostile ones above of which the test asks for the flag, and those of tests/evaluation/test_flags.py. Figures of
`adjoint-disagrees` are 1 - cosine, of `too-few-draws` noise over signal, of `stiff-solve` shares of the stability limit, of
`at-chance` the agreement with shuffled labels over that with the labels, of `class-not-answered` and `probabilities` the limit over what is
measured, of `batch-dependent` shares of what rounding explains, of `vanishing-gradient` and `wrong-gradient` the larger of two shares of
their limits ([flags](../flags.md)); 1e+09 stands for more than can be said."""


def made(command: str) -> str:
    versions = f"torch {version('torch')}, commit {commit()}, Python {platform.python_version()}"
    return f"Made by `{command}`: {N} images a model, seed 0; {versions}, {platform.machine()}, CPU, one thread. "


def percent(*shares: Any) -> str:
    return " / ".join(f"{100 * share:.1f}" for share in shares) if "" not in shares else ""


def cells(row: Row) -> list[str]:
    basin = row["refused"] and f"refused: {row['refused']}"
    if not basin:
        basin = f"{percent(row['clean'], row['worst'])} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    passes = "" if row["passes"] == "" else f"{row['passes'] / 1000:.0f}"
    shown = [row["model"], row["facts"], percent(row["clean_truth"], row["worst_truth"]), basin, passes, row["flags"]]
    return [cell.replace("|", "\\|") for cell in shown]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]


def margin(flag: str, figures: dict[str, list[float]]) -> list[str]:
    limit, honest_, planted_ = figures["limit"][0], figures["honest"], figures["planted"]
    ends = max(honest_, default=None), min(planted_, default=None)
    near = any(end is not None and abs(end - limit) < NEAR * limit for end in ends)
    shown = ["" if end is None else f"{end:.3g}" for end in ends]
    return [f"`{flag}`", shown[0], f"{limit:.3g}", shown[1], f"{len(honest_)}, {len(planted_)}", "near" if near else ""]


def page(rows: Sequence[Row], paired: Sequence[Row], figures: Figures, command: str) -> str:
    lines = ["# The zoo: every model is judged rightly, or refused in a sentence", "", wrapped(made(command) + LEGEND)]
    for kind in ("hostile", "honest"):
        head = ("model", "what it is", "truth", "Basin", "passes", "flags")
        lines += ["", f"## {kind.capitalize()}", "", *table(head, [cells(row) for row in rows if row["kind"] == kind])]
    head = ("without a gradient", "n", "worst case", "of its twin with one", "difference, points", "queries an image")
    body = [
        [pair["model"], str(pair["n"]), percent(pair["without"]), percent(pair["with"]),
         f"{100 * (pair['without'] - pair['with']):+.1f}", f"{pair['queries']:.0f}"] for pair in paired
    ]  # fmt: skip
    lines += [
        "",
        "## Without a gradient",
        "",
        "The same function, with a gradient and without; the goal is 2 points.",
        "",
        *table(head, body),
    ]
    head = ("flag", "honest, highest", "limit", "planted, lowest", "models", f"within {NEAR:.0%} of the limit")
    lines += ["", "## Margins of the flags", "", wrapped(MARGINS), "", *table(head, [margin(*one) for one in figures.items()])]
    return "\n".join(lines) + "\n"


def measure(animals: Sequence[tuple[str, Animal]], n: int) -> tuple[list[Row], list[Row], Figures]:
    figures: Figures = defaultdict(lambda: defaultdict(list))
    rows = [judge(*one, figures) for one in tqdm(animals, "animals", mininterval=2, disable=None)]
    return rows, list(pairs([animal for _, animal in animals], n)), figures


def write(folder: Path, rows: Sequence[Row], *rest: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zoo.md").write_text(page(rows, *rest), encoding="utf-8")
    write_csv(folder / "zoo.csv", FIELDS, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    animals = [("hostile", animal) for animal in hostile.ANIMALS] + [("honest", animal) for animal in honest.ANIMALS]
    rows, paired, figures = measure(animals, SAMPLE)
    plant(figures)
    write(asked.folder, rows, paired, figures, "python -m benchmarks.zoo")


if __name__ == "__main__":
    as_command(main, logging.WARNING)
