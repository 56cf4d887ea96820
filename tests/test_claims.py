"""The page of the two claims says what attacks on the same models say, one by one, and goes on where it stopped."""

import argparse
import csv
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from small import classifier, few, fit

from basin.config.kinds import choose
from basin.config.solver import Solver
from basin.config.splits import SplitSettings
from basin.data.splits import prepare
from basin.evaluation.interval import wilson
from basin.methods.sources import digits as source
from basin.models import artifact
from basin.models.ode import solving_with
from basin.randomness import generator
from basin.threat.ball import ThreatModel
from basin.threat.target import Target
from benchmarks import claims

PARAMS = """
seed: 3
data: {kind: digits}
threat: {norm: linf, eps: 0.2}
backbone: {natural: {backbone: {kind: convnet}, training: {kind: natural}, schedule: {epochs: 1}}}
suites: {short: {attacks: {fgsm: {kind: fgsm}}}}
attack: {models: [backbone/natural], suites: [short], images: 10, batch: 16}
"""
SHORT = {
    **dict.fromkeys(("PGD-20", "PGD-100"), {"kind": "pgd", "steps": 3}),
    **dict.fromkeys(("IFGSM-10", "IFGSM-10, whole steps", "IFGSM-100"), {"kind": "pgd", "steps": 2, "random_start": False}),
    "DI2-FGSM": {"kind": "di2fgsm", "steps": 2},
    "Auto-PGD": {"kind": "apgd", "steps": 4},
    "transfer": {"kind": "transfer", "attacks": [{"kind": "apgd", "steps": 4}]},
    "Boundary": {"kind": "boundary", "queries": 30, "draws": 5, "starts": 10},
}
RADII = {1.0: True, 0.25: False}
ODENET = {"kind": "odenet", "channels": 8, "halvings": 1, "residual_blocks": 2, "solver": {"steps": 1}}
WNLL = {"kind": "wnll", "width": 8, "k": 5, "rank": 3, "template": 60}
N, FEW = 20, 10


def saved(run, name, model, twin=None):
    model.recipe["model"] = name
    artifact.save(run / "models" / name, model.eval(), twin and run / "models" / twin)


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """A run's folder with small models of the right names."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "params.yaml").write_text(PARAMS)
    train = digits["train"].take(torch.arange(400))
    prepare(source.read(source.Params()), SplitSettings(), "digits", "digits", 0, folder / "data/prepared")
    for name, blocks in (("odenet", "ode"), ("residual", "residual")):
        saved(folder, f"backbone/{name}", fit(classifier(ODENET | {"blocks": blocks}), train, epochs=12))
    softmax = fit(classifier(), train, epochs=3)
    saved(folder, "adversarial/pgd", softmax)
    for name, purifier in (("wnll_pgd", None), ("wnll_pgd_tv", {"kind": "tv", "iterations": 3})):
        model = artifact.build(softmax.recipe | {"classifier": softmax.recipe["classifier"] | {"head": WNLL, "purifier": purifier}})
        model.backbone.load_state_dict(softmax.backbone.state_dict())
        model.head.index.copy_(torch.arange(60))
        model.head.refresh(model, train)
        saved(folder, f"head/{name}", model, "adversarial/pgd")
    return folder


def measure(folder):
    """(case, every comparison of a run); what is done is kept in the current folder."""
    case = claims.prepare(argparse.Namespace(run=folder, images=N, few=FEW))
    return case, list(claims.compare(case, folder))


@pytest.fixture(scope="module")
def short():
    with pytest.MonkeyPatch.context() as patch:
        for name, attack in SHORT.items():
            patch.setitem(claims.ATTACKS, name, attack)
        patch.setattr(claims, "CLAIMS", [replace(claim, radii=RADII if claim.paper == "1" else claim.radii) for claim in claims.CLAIMS])
        yield patch


@pytest.fixture(scope="module")
def measured(run, short, tmp_path_factory):
    """(case, comparisons, the folder in which it was done)."""
    short.chdir(place := tmp_path_factory.mktemp("done"))
    return *measure(run), place


@pytest.mark.slow
def test_the_page(run, measured, digits):
    _, found, _ = measured
    print([(c.clean[0]["held"], c.clean[1]["held"]) for c in found])
    assert [(c.names, round(c.eps, 6)) for c in found] == [
        *((("backbone/odenet", "backbone/residual"), eps) for eps in (0.2, 0.05)),
        (("head/wnll_pgd", "adversarial/pgd"), 0.2),
        (("head/wnll_pgd_tv", "adversarial/pgd"), 0.2),
    ]

    # One line computed without the benchmark: the adjoint's points, judged by the model's own solve.
    model, ball = artifact.load(run / "models/backbone/odenet").requires_grad_(False), ThreatModel(norm="linf", eps=0.05)
    x, y = few(digits["test"], FEW)
    right = (model(x).argmax(1) == y).nonzero().flatten()
    with solving_with(model, Solver(method="dopri5", tolerance=1e-3, gradient="adjoint")):
        pgd = choose("attacks", claims.ATTACKS["PGD-20"])
        draws = generator(3, "backbone/odenet", "PGD-20", 0)
        points = pgd.module.perturb(pgd.params, Target(model, ball), x[right], y[right], draws)
    held = torch.zeros(FEW, dtype=torch.bool)
    held[right] = model(ball.project(points, x[right])).argmax(1) == y[right]
    line, mine, _ = found[1].found[1]
    assert (line.attack, line.gradient) == ("PGD-20", "dopri5, adjoint") and torch.equal(claims.unpacked(mine), held)

    page = claims.page(found, "Made here.")
    k, (low, high) = int(held.sum()), wilson(int(held.sum()), FEW)
    cell = f"{10 * k:.1f} [{100 * low:.1f}, {100 * high:.1f}]; {100 * k / len(right):.1f}"
    assert f"| paper | PGD-20 | dopri5, adjoint | {FEW} | {cell} | " in page.split("### backbone/odenet, radius 0.05")[1]
    for comparison in found:
        clean, *alone, paper, exact, worst = comparison.lines()
        n = len(worst[1])
        assert n == (N if comparison.names[0] == "head/wnll_pgd" else FEW) and len(clean[1]) == N
        for column in (1, 2):
            assert torch.equal(worst[column], torch.stack([entry[column][:n] for entry in alone]).all(0))
            assert (paper[column][:n] & exact[column][:n] >= worst[column]).all() and (clean[column][:n] >= worst[column]).all()


def test_it_goes_on_where_it_stopped(run, measured):
    """Three rows are lost: they are measured again, the others are taken as they are, and the page is the same."""
    case, found, place = measured
    rows = list(csv.DictReader((place / case.place).open()))
    assert len(rows) == len({row["key"] for row in rows})
    lost = rows[1::15]
    (place / case.place).write_text(claims.table([row | {"seconds": "99.0"} for row in rows if row not in lost]))
    again, same = measure(run)
    assert claims.page(same, "") == claims.page(found, "")
    assert {row["key"] for row in again.done.values() if row["seconds"] != "99.0"} == {row["key"] for row in lost}


def test_a_model_that_is_not_there_is_left_out(run, measured, tmp_path, caplog):
    """The other's rows do not depend on it: they are not measured again."""
    folder = shutil.copytree(run, tmp_path / "less")
    for name in ("backbone/residual", "head/wnll_pgd_tv"):
        shutil.rmtree(folder / "models" / name)
    with caplog.at_level(logging.WARNING):
        _, found = measure(folder)
    assert [comparison.names[0] for comparison in found] == ["head/wnll_pgd"]
    assert caplog.messages == [
        "models/backbone/odenet: its twin is not in this run; left out",
        "models/head/ode*: not in this run; left out",
        "models/head/wnll_pgd_tv: not in this run; left out",
    ]


def test_intervals_of_paired_images():
    """By hand: 10 images, 4 held by the first alone, 1 by the second alone; and no difference is not known without error."""
    one, other = torch.tensor([1] * 6 + [0] * 4).bool(), torch.tensor([1, 1] + [0] * 4 + [1] + [0] * 3).bool()
    centre, half = 3 / 12, 1.959963984540054 * (6 - 9 / 12) ** 0.5 / 12
    assert claims.paired(one, other) == pytest.approx((0.3, centre - half, centre + half))
    d, low, high = claims.paired(one, one)
    assert d == 0 and low == -high < 0


@pytest.mark.parametrize("n", [1, 7, 8, 30])
def test_bits(n):
    held = torch.arange(n) % 3 == 1
    assert torch.equal(claims.unpacked({"bits": claims.packed(held), "n": str(n)}), held)
