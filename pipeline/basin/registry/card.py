"""The model card: `card.md`, the same as a page with plots (`card.html`), and adversarial examples as a picture (`examples.png`).

It says what depends on the model and its outcomes alone, so that it can be written again with the same bytes.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from basin import files
from basin.evaluation.interval import wilson
from basin.registry.candidates import Candidate
from basin.report.outcomes import Outcome, under_run
from basin.report.page import page
from basin.report.pictures import choose, class_name, shrunk, strongest
from basin.report.table import tabulate
from basin.report.tidy import read_history
from basin.report.wording import plain

PICTURE = "examples.png"
ON_SERVER = "ajax-api/2.0/mlflow/logged-models/{}/artifacts/files?artifact_file_path=" + PICTURE  # where MLflow's pages find it
SHOWN = 8  # images of examples.png
SIDE = 96  # pixels of one of them


def write(folder: Path, one: Candidate) -> None:
    """card.md, card.html and examples.png."""
    alone = {one.model: one.outcomes}
    history = read_history(one.root / "history", [one.model])
    files.write(folder / "card.md", text(one) + "\n")
    files.write(folder / "card.html", page(tabulate(alone, list(one.outcomes)), alone, history))
    examples(one, chosen(one)).save(folder / PICTURE, optimize=True)


def text(one: Candidate) -> str:
    """Markdown; its first words are all that a table of versions shows."""
    numbers, worst = one.metrics, one.row.worst
    head = f"{one.model}: {worst.value:.1%} robust, {numbers['clean']:.1%} clean"
    return "\n".join([head, "", *_what(one), "", *_numbers(one), "", *_flags(one), "", *_origin(one), "", *_pictures(one)])


def on_pages(text: str, name: str, model_id: str, parents: str) -> str:
    """The card as MLflow's pages show it: the picture by its address there, and the version's tag `parents` as links."""
    links = re.sub(r"(\S+): (version (\d+))", rf"`\1`, [\2](#/models/{quote(name)}/versions/\3)", parents)
    return f"{text.replace(f']({PICTURE})', f']({ON_SERVER.format(model_id)})')}\n\nBuilt from: {links}"


def _what(one: Candidate) -> Iterator[str]:
    tree, recipe = one.recipe["classifier"], one.recipe
    built = f", built from `{recipe['from']}`" if recipe["from"] else ""
    training = f"{recipe['trained']['training']['kind']} training on {one.data}{built}"
    yield f"{tree['head']['kind']} head on {tree['backbone']['kind']}, {training}."
    yield f"Images are float32 {recipe['shape']} in [0, 1]; it gives logits of {len(recipe['classes'])} classes."
    yield f"Threat {one.threat}, {one.row.worst.n} test images; an image counts if it holds against every attack."


def _numbers(one: Candidate) -> Iterator[str]:
    row, n = one.row, one.row.worst.n
    yield from ("| accuracy | | 95% interval | n |", "|---|---|---|---|")
    yield _line("clean", row.clean.value, n)
    for name, outcome in one.outcomes.items():
        under = "" if outcome.under_run else f", threat {outcome.summary.threat}"
        yield _line(f"robust, suite `{name}`{under}", float(outcome.robust.mean()), n)
    yield _line(f"**robust, worst case of all{f' under {one.threat}' if row.union else ''}**", row.worst.value, n, "**")
    for threat, share in row.threats.items():
        yield _line(f"robust, worst case of all under {threat}", share.value, n)
    if row.union:
        yield _line("robust under every threat", row.union.value, n)
    if row.uneven:
        over_classes = f"{row.balance['balanced_clean']:.1%} clean, {row.balance['balanced_worst_case']:.1%} robust"
        yield f"| mean over the classes, of which one has {row.balance['largest_class']:.1%} of the images | {over_classes} | | {n} |"
    if row.masked:
        yield _line(f"what {plain(row.masked_attack or '')} alone would report", row.masked.value, row.masked.n)
    if row.certified is not None:
        yield _line("certified: no attack can break", row.certified, n)
    if row.twin:
        yield _line(f"the model it was built from, `{row.twin.model}`", row.twin.share.value, row.twin.share.n)


def _line(what: str, share: float, n: int, bold: str = "") -> str:
    low, high = wilson(share * n, n)
    return f"| {what} | {bold}{share:.1%}{bold} | {low:.1%} to {high:.1%} | {n} |"


def _flags(one: Candidate) -> Iterator[str]:
    if not one.flags:
        yield "No flag was raised."
    for flag in one.flags:
        yield f"- Flag `{flag}`: {'**not resolved**' if flag in one.unresolved else 'answered by the adaptive suite'} (docs/flags.md)."


def _origin(one: Candidate) -> Iterator[str]:
    recipe = one.recipe
    yield f"- Chain: {' <- '.join(f'`{model}`' for model in (one.model, *one.parents))}"
    yield f"- Data digest: `{recipe['data_digest']}`; DVC's digest of the model folder: `{one.md5}`"
    yield f"- Seed {recipe['seed']}, device {recipe['device']}, {', '.join(f'{k} {v}' for k, v in recipe['versions'].items())}"
    yield "- Settings: `run/params.yaml`; every image's outcome and stored point: `outcomes/`"


def _pictures(one: Candidate) -> Iterator[str]:
    yield f"![adversarial examples]({PICTURE})"
    yield ""
    yield "Clean image, adversarial image, perturbation scaled to the whole range. From left to right:"
    for i in chosen(one):
        outcome = shown(one, i)
        fate = "holds" if outcome.robust[i] >= 0.5 else f"is read as {plain(class_name(outcome, outcome.adversarial[i]))}"
        yield f"image {outcome.image[i]}, a {plain(class_name(outcome, outcome.label[i]))}, {fate};"
    yield "plots: `card.html`."


def chosen(one: Candidate) -> list[int]:
    """Positions of the images that are shown."""
    return choose({one.model: under_run(one.outcomes)}, min(SHOWN, one.row.worst.n))


def shown(one: Candidate, position: int) -> Outcome:
    """The suite whose stored point is shown."""
    ours = under_run(one.outcomes)
    return list(ours.values())[strongest(ours)[position]]


def examples(one: Candidate, positions: list[int]) -> Image.Image:
    """Three rows: clean, adversarial, perturbation; a column for each position."""
    columns = []
    for i in positions:
        clean, adversarial = shown(one, i).points(i)
        delta = adversarial - clean
        columns.append(np.concatenate([_tile(clean), _tile(adversarial), _tile(0.5 + 0.5 * delta / (np.abs(delta).max() or 1))]))
    return Image.fromarray(np.concatenate(columns, 1))


def _tile(image: np.ndarray) -> np.ndarray:
    """float [c, h, w] in [0, 1] as uint8 [SIDE, SIDE, 3], with a white edge."""
    pixels = np.round(255 * np.nan_to_num(shrunk(image)).clip(0, 1)).astype(np.uint8)
    colours = (
        pixels.transpose(1, 2, 0)
        if len(pixels) == 3
        else np.repeat(pixels.mean(0, keepdims=True).astype(np.uint8), 3, 0).transpose(1, 2, 0)
    )
    tile = Image.fromarray(np.ascontiguousarray(colours)).resize((SIDE - 4, SIDE - 4), Image.Resampling.NEAREST)
    return np.pad(np.asarray(tile), ((2, 2), (2, 2), (0, 0)), constant_values=255)
