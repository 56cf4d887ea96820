"""One model under several threats: the run's own worst case, that under each other threat, and the union, image by image."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small import Linear

from basin.config.suite import ready
from basin.errors import Mistake
from basin.evaluation import outcomes, robustness
from basin.report import writing
from basin.report.outcomes import read_all
from basin.report.table import held, worst_case
from basin.threat.ball import ThreatModel

RUN, OTHER = ThreatModel(norm="linf", eps=0.02), ThreatModel(norm="l2", eps=0.06)
MODELS, SUITES = ["backbone/one", "backbone/two"], ["quick", "quick_l2"]


def planted() -> tuple[Linear, torch.Tensor, torch.Tensor]:
    """Images of class 1. Class 0 is reached along 15 pixels, where the L-infinity ball goes further, 2 along one, where L2 does."""
    W = torch.zeros(3, 16)
    W[0, 1:], W[2, 0] = 1.0, 10.0
    model = Linear(W, torch.tensor([-8.0, 0.0, -6.0])).eval()
    draw = torch.Generator().manual_seed(0)
    to_dense, to_sparse = 0.1 + 0.4 * torch.rand(60, generator=draw), 0.1 + 0.8 * torch.rand(60, generator=draw)
    x = torch.empty(60, 16)
    x[:, 1:], x[:, 0] = ((8 - to_dense) / 15)[:, None], (6 - to_sparse) / 10
    return model, x.view(60, 1, 4, 4), torch.ones(60, dtype=torch.int64)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models under the suite `quick` in both balls, as the attack stage writes them; the second holds more."""
    root, (model, x, y) = tmp_path_factory.mktemp("threats"), planted()
    for name, factor in zip(MODELS, (1.0, 2.0), strict=True):
        one = Linear(model.W, torch.tensor([-8.0, factor - 1, -6.0])).eval()
        about = {"model": name, "data": "planted", "data_digest": "0" * 64, "seed": 0, "from": None, "classes": ["a", "b", "c"]}
        for suite, ball in zip(SUITES, (RUN, OTHER), strict=True):
            found = robustness.evaluate(one, None, x, y, ball, ready("quick"), (0, "threats"))
            said = about | {"suite": suite, "flags": [f"of-{suite}"]} | ({} if ball is RUN else {"run_threat": RUN.model_dump()})
            outcomes.write(root / "outcomes" / name / suite, found.outcomes, ball, said)
    return root


def test_the_union_is_what_no_threat_breaks_and_the_worst_case_is_of_the_runs_own(measured):
    model, x, y = planted()
    alone, other = (model.margin(x, y, ball.norm) > ball.eps for ball in (RUN, OTHER))
    assert (alone & ~other).any() and (~alone & other).any(), "neither ball holds the other"
    everything = read_all(measured / "outcomes", MODELS, SUITES)
    numbers = writing.read(measured / "outcomes", MODELS, SUITES).metrics()["backbone/one"]
    expected = [round(float(kept.float().mean()), 6) for kept in (alone, other, alone & other)]
    assert [numbers[name] for name in ("worst_case", "worst_case.l2-0.06", "union")] == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(held(everything["backbone/one"]), alone.numpy())
    assert worst_case(everything["backbone/one"]).value == numbers["quick"] == numbers["worst_case"] > numbers["union"]
    assert numbers["union_low"] < numbers["union"] < numbers["union_high"]


def test_files_and_page_show_each_threat_and_the_union(measured, tmp_path):
    shutil.copytree(measured, root := tmp_path / "run")
    table = writing.write(root / "outcomes", root / "history", MODELS, SUITES, root / "report")
    rows = list(csv.DictReader((root / "report/table.csv").open(encoding="utf-8")))
    text = (root / "report/index.html").read_text(encoding="utf-8")
    for row, numbers in zip(rows, table.metrics().values(), strict=True):
        assert {name: float(row[name]) for name in numbers} == numbers
        for name in ("worst_case.l2-0.06", "union"):
            assert f'data-column="{name}"><data value="{numbers[name]}">' in text
    assert "Under L∞ 0.02 and L2 0.06 together backbone/two keeps most" in text
    assert "<strong>quick_l2</strong>, L2 0.06" in text and "(quick_l2)" in text, "its attacks and its flags"
    album = json.loads(text.partition('<script type="application/json" id="run">')[2].partition("</script>")[0])
    assert max(max(one["distance"]) for one in album["models"]) <= RUN.eps + 1e-6, "a point of the other ball is no example of this one"


def test_a_run_of_one_threat_has_no_column_more(measured, tmp_path):
    for name in MODELS:
        shutil.copytree(measured / "outcomes" / name / "quick", tmp_path / "outcomes" / name / "quick")
    writing.write(tmp_path / "outcomes", tmp_path / "history", MODELS, ["quick"], tmp_path / "report")
    assert (tmp_path / "report/table.csv").read_text(encoding="utf-8").splitlines()[0].endswith(",balanced_clean,balanced_worst_case")
    assert "Under several threats" not in (tmp_path / "report/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"threat": {"norm": "l2", "eps": 0.1}}, "the suite's threat model differs from that of {} (got l2 0.1 against l2 0.06)."),
        ({"run_threat": {"norm": "linf", "eps": 0.1}}, "the threat model differs from that of {} (got linf 0.1 against linf 0.02)."),
    ],
)
def test_threats_are_not_mixed(measured, tmp_path, changed, said):
    shutil.copytree(measured, root := tmp_path / "run")
    path = root / "outcomes/backbone/two/quick_l2/summary.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changed), encoding="utf-8")
    with pytest.raises(Mistake) as caught:
        writing.read(root / "outcomes", MODELS, SUITES)
    usual = root / "outcomes/backbone/one" / ("quick_l2" if "threat" in changed else "quick")
    assert str(caught.value) == f"{path.parent}: {said.format(usual)} Run `dvc repro attack@backbone/two-quick_l2`."
