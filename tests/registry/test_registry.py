"""The registry: versions that load anywhere and give the folder's logits, aliases that move only to such versions."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking._tracking_service import utils

from basin.config import params
from basin.config.suite import Adaptive
from basin.config.threat import asked
from basin.data import splits
from basin.data.about import load_about
from basin.errors import Absent, Mistake
from basin.evaluation import outcomes
from basin.models import artifact, recipe
from basin.models.classifier import Classifier
from basin.randomness import construct, random_layers
from basin.registry import candidates, card, lookup, registration, upkeep
from basin.threat.ball import ThreatModel
from benchmarks import methods

ROOT = Path(__file__).parents[2]
NAME = "digits-linf-0.15"
PARAMS = """
seed: 0
data: {kind: digits, train_limit: 200, test_limit: 40}
threat: {norm: linf, eps: 0.15}
backbone:
  natural:
    backbone: {kind: convnet, channels: [2], hidden: 8}
    training: {kind: natural}
    schedule: {epochs: 1, batch: 32, optimiser: adam, rate: 0.01}
head:
  ode:
    from: backbone/natural
    head: {kind: ode, width: 4, solver: {method: rk4, steps: 2}}
    training: {kind: natural}
    schedule: {classifier: {epochs: 1, batch: 32, optimiser: adam, rate: 0.01}}
suites:
  short: {attacks: {fgsm: {kind: fgsm}}}
attack: {models: [backbone/natural, head/ode], suites: [short], images: 40}
"""
MODELS = ("backbone/natural", "head/ode")


def build(settings: params.Config, model: str, seed: int = 0) -> Classifier:
    """A real classifier of the run, untrained."""
    about, entry = load_about(Path("data/prepared")), settings.entry(model)
    head = entry.head.tree() if model.startswith("head/") else {"kind": "linear"}
    below = "backbone/natural" if model.startswith("head/") else None
    recipe = {
        "model": model, "shape": list(about.shape), "classes": list(about.classes), "trained": entry.model_dump(mode="json", by_alias=True),
        "classifier": {
            "normalise": {"mean": list(about.mean), "std": list(about.std)},
            "backbone": settings.backbone["natural"].backbone.tree(), "head": head,
        },
        "seed": seed, "device": "cpu", "data_digest": about.digest, "from": below, "chain": [below] if below else [],
    }  # fmt: skip
    with construct(seed, model):
        return artifact.build(recipe).eval()


def measure(settings: params.Config, model: str, held: int, n: int = 40) -> None:
    """Outcomes of the real form in which the first `held` of n images hold and all are classified right without an attack."""
    test, about = splits.load_split(Path("data/prepared"), "test"), load_about(Path("data/prepared"))
    test = test.take(torch.arange(n))
    found = outcomes.Outcomes(
        torch.arange(n), test.labels, test.floats(), test.labels.clone(), torch.ones(n), test.floats(), torch.zeros(n),
        ["" if i < held else "fgsm" for i in range(n)], test.labels.clone(), (torch.arange(n) < held).float(),
        after={"fgsm": held / n}, passes=n,
    )  # fmt: skip
    below = None if model.startswith("backbone") else "backbone/natural"
    kinds = {"backbone": "convnet", "head": model.split("/")[1].replace("natural", "linear"), "training": "natural", "from": below}
    described = {"model": model, "suite": "short", "data": about.name, "data_digest": about.digest, "seed": 0, "flags": [], **kinds}
    outcomes.write(Path("outcomes") / model / "short", found, ThreatModel.of(settings.threat), described)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A finished run without training: data, two models, their outcomes, and MLflow's empty database."""
    folder, before = tmp_path_factory.mktemp("finished"), Path.cwd()
    os.chdir(folder)
    (folder / "params.yaml").write_text(PARAMS)
    settings = params.load()
    splits.prepare(settings.source.module.read(settings.source.params), settings.splits, "digits", "digits", 0, Path("data/prepared"))
    for model, held in zip(MODELS, (10, 20), strict=True):
        artifact.save(Path("models") / model, build(settings, model), None if model == MODELS[0] else Path("models") / MODELS[0])
        measure(settings, model, held)
    from basin.tracking.client import client

    client()
    os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def registered_workspace(workspace, tmp_path_factory):
    """The same, registered once: versions 1 and 2."""
    folder, before = tmp_path_factory.mktemp("registered"), Path.cwd()
    shutil.copytree(workspace, folder, dirs_exist_ok=True)
    os.chdir(folder)
    registration.register_all(params.load(), digests())
    os.chdir(before)
    return folder


@pytest.fixture
def enter(tmp_path, monkeypatch):
    """Copies a workspace and makes the copy the working directory; its config."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.chdir(tmp_path)

    def copied(workspace: Path) -> params.Config:
        shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
        utils._artifact_repos_cache.clear()  # MLflow remembers where a model's files were, which were another copy's
        return params.load()

    return copied


@pytest.fixture
def run(workspace, enter):
    return enter(workspace)


@pytest.fixture
def registered(registered_workspace, enter):
    return enter(registered_workspace)


def digests() -> dict[str, str]:
    """Stands for dvc.lock: any digest of the folders' content will do."""
    return {model: recipe.weights_digest(Path("models") / model)[:32] + ".dir" for model in MODELS}


def retrain(settings: params.Config, model: str, seed: int, held: int) -> None:
    artifact.save(Path("models") / model, build(settings, model, seed), Path("models") / MODELS[0])
    measure(settings, model, held)


def store():
    from basin.tracking.client import client

    return client()


def versions() -> dict[str, dict[str, str]]:
    """Version -> its tags."""
    return {str(v.version): v.tags for v in store().search_model_versions(f"name = '{NAME}'")}


def aliases() -> dict[str, str]:
    return {alias: str(version) for alias, version in store().get_registered_model(NAME).aliases.items()}


def images(n: int = 20) -> torch.Tensor:
    return splits.load_split(Path("data/prepared"), "validation").floats(slice(0, n))


def test_a_run_is_registered_once(run):
    receipt = registration.register_all(run, digests())
    assert receipt == {
        "name": NAME,
        "best": "head/ode",
        "pipeline": receipt["pipeline"],
        "models": {model: {"dvc.md5": digests()[model], "worst_case": worst} for model, worst in zip(MODELS, (0.25, 0.5), strict=True)},
    }
    assert aliases() == {"natural": "1", "ode": "2", "champion": "2"}
    tags = versions()["2"]
    expected = {
        "model": "head/ode", "stage": "head", "backbone": "convnet", "head": "ode", "training": "natural",
        "chain": "head/ode <- backbone/natural", "data": "digits", "threat": "linf-0.15", "suites": "short",
        "seed": "0", "device": "cpu", "dvc.md5": digests()["head/ode"],
        "worst_case": "0.5", "clean": "1", "twin": "0.25", "n": "40", "norm": "linf", "eps": "0.15", "schema": "1",
        "flags": "none", "unresolved": "none", "parents": "backbone/natural: version 1", "pipeline": receipt["pipeline"],
        "standing": "champion", "reasons": "the title was vacant: 50.0% in the worst case",
    }  # fmt: skip
    assert expected.items() <= tags.items()
    assert {"data_digest", "protocol", "params", "commit", "dirty", "changed", "measured", "seal"} <= tags.keys()
    assert versions()["1"]["reasons"] == "worst case 25.0%, version 2 (head/ode) has 50.0%"

    assert registration.register_all(run, digests()) == receipt
    assert sorted(versions()) == ["1", "2"]
    assert upkeep.verify(run, digests()) == []


def test_metrics_are_on_the_run_and_on_the_logged_model(registered):
    version = store().get_model_version(NAME, "2")
    model = store().get_logged_model(version.source.removeprefix("models:/"))
    names = {"clean", "worst_case", "interval_low", "interval_high", "twin", "n", "worst_case.short", "flags", "unresolved"}
    costs = {"latency_ms.1", "latency_ms.64", "parameters", "nfe"}
    assert {m.key: m.value for m in model.metrics} == store().get_run(version.run_id).data.metrics
    assert {m.key for m in model.metrics} == names | costs and json.loads(model.tags["mlflow.modelVersions"]) == [
        {"name": NAME, "version": 2}
    ]
    assert {m.key: m.value for m in model.metrics}["nfe"] == 8, "two steps of RK4"
    assert "| **robust, worst case of all** | **50.0%** | 35.2% to 64.8% | 40 |" in version.description
    assert version.description.startswith("head/ode: 50.0% robust, 100.0% clean\n")


def test_a_suite_under_another_threat_counts_in_the_union_alone(run):
    """Images 10 to 29 hold in the other ball, 0 to 19 in the run's: the champion is who it was, by the same number."""
    before = candidates.read(run, digests())
    text = PARAMS.replace("{kind: fgsm}}}", "{kind: fgsm}}}\n  l2: {attacks: {fgsm: {kind: fgsm}}, threat: {norm: l2, eps: 0.5}}")
    Path("params.yaml").write_text(text.replace("[short]", "[short, l2]"))
    for model in MODELS:
        folder = Path(shutil.copytree(f"outcomes/{model}/short", f"outcomes/{model}/l2"))
        rows = [line.split(",") for line in (folder / "outcomes.csv").read_text().splitlines()]
        rows = [[*row[:4], str(int(10 <= i < 30)), "" if 10 <= i < 30 else "fgsm", *row[6:]] for i, row in enumerate(rows[1:])]
        head = (folder / "outcomes.csv").read_text().partition("\n")[0]
        (folder / "outcomes.csv").write_text("\n".join([head, *map(",".join, rows)]) + "\n")
        said = {
            "suite": "l2",
            "robust": 0.5,
            "threat": {"norm": "l2", "eps": 0.5},
            "run_threat": run.threat.model_dump(),
            "flags": ["stiff-solve"],
        }
        about = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(about | said))
    receipt = registration.register_all(params.load(), digests())
    tags, metrics = versions()["2"], written_metrics("2")
    assert (receipt["best"], aliases()["champion"]) == ("head/ode", "2")
    assert (metrics["worst_case"], metrics["worst_case.l2-0.5"], metrics["union"]) == (0.5, 0.5, 0.25)
    assert (tags["worst_case"], tags["union"], tags["threat"], tags["flags"]) == ("0.5", "0.25", "linf-0.15", "none")
    assert [one.metrics["worst_case"] for one in candidates.read(params.load(), digests())] == [one.metrics["worst_case"] for one in before]
    card = store().get_model_version(NAME, "2").description
    assert "| robust, worst case of all under l2-0.5 | 50.0%" in card and "| robust under every threat | 25.0%" in card
    assert upkeep.verify(params.load(), digests()) == []


def written_metrics(version: str) -> dict[str, float]:
    model = store().get_logged_model(store().get_model_version(NAME, version).source.removeprefix("models:/"))
    return {metric.key: metric.value for metric in model.metrics}


def test_the_newest_number_counts_after_the_clock_was_set_back(registered, monkeypatch):
    """It was a year ahead when the first was written."""
    from basin.registry import versions as written

    version, one = store().get_model_version(NAME, "2"), candidates.read(registered, digests())[1]
    real = time.time
    for ahead, number in ((366 * 86400, 0.5), (-3600, 0.25), (0, 0.125)):
        monkeypatch.setattr(written.time, "time", lambda ahead=ahead: real() + ahead)
        written.record(store(), version, one, {"clean": number})
        assert written.metrics(store(), version)["clean"] == store().get_run(version.run_id).data.metrics["clean"] == number


def test_the_card_has_the_mean_over_the_classes_where_they_differ_in_size(run):
    one = candidates.read(run, digests())[0]
    uneven = {"largest_class": 0.85, "balanced_clean": 0.4, "balanced_worst_case": 0.2}
    unbalanced = replace(one, row=replace(one.row, uneven=True, balance=uneven))
    assert "over the classes" not in card.text(one)
    assert "| mean over the classes, of which one has 85.0% of the images | 40.0% clean, 20.0% robust | | 40 |" in card.text(unbalanced)


def test_a_version_loads_in_a_process_that_has_no_checkout(registered, tmp_path_factory):
    x = images()
    np.save("x.npy", x.numpy())
    code = f"""
import mlflow, numpy, torch
model = mlflow.pyfunc.load_model("models:/{NAME}@champion")
import basin; print(basin.__file__)
x = numpy.load(r"{Path("x.npy").absolute()}", allow_pickle=False)
numpy.save("logits.npy", model.predict(x))
numpy.save("net.npy", model.unwrap_python_model().classifier(torch.from_numpy(x)).detach().numpy())
"""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH",)} | {"MLFLOW_TRACKING_URI": f"sqlite:///{Path.cwd()}/mlflow.db"}
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mlartifacts" in done.stdout and "other source code" not in done.stderr
    with torch.no_grad():
        expected = artifact.load(Path("models/head/ode"))(x).numpy()
    for name in ("logits.npy", "net.npy"):
        assert np.load(elsewhere / name, allow_pickle=False).tobytes() == expected.tobytes()


@pytest.mark.slow
def test_basin_evaluate_finds_the_same_of_a_version_and_of_its_folder(registered):
    """Its twin included, from which points are carried over."""
    from basin.evaluation import outside

    ball = asked("linf", "0.15")
    targets = f"models:/{NAME}@champion", f"models:/{NAME}/2", "models/head/ode"
    found = [outside.run(target, "data/prepared", ball, "quick", 20, 0, lookup.load_with_twin) for target in targets]
    assert all(one | {"target": "", "seconds": 0} == found[0] | {"target": "", "seconds": 0} for one in found)
    assert found[0]["declared"]["twin"] and found[0]["masked"] and found[0]["n"] == 20


def test_no_pickle_and_the_twin_travels(run):
    registration.register_all(run, digests())
    files = {path.name for path in Path("mlartifacts").rglob("*") if path.is_file()}
    assert not {name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))}
    assert len(list(Path("mlartifacts").rglob("twin/weights.safetensors"))) == 1


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(3), r"images: not a float32 array \(got float64\). Give a float32 array \[n, 1, 8, 8\] with values in \[0, 1\]."),
        (np.zeros((1, 8, 8), np.float32), r"images: wrong shape \(got \[1, 8, 8\]\)."),
        (np.full((1, 1, 8, 8), 255, np.float32), r"images: values outside \[0, 1\] \(got 255 to 255\)."),
        (np.full((1, 1, 8, 8), np.nan, np.float32), r"images: values outside \[0, 1\] \(got nan to nan\)."),
    ],
)
def test_bad_images_are_refused(workspace, x, message):
    from types import SimpleNamespace

    from basin.registry.pyfunc import RegisteredClassifier

    model = RegisteredClassifier()
    model.load_context(SimpleNamespace(artifacts={"model": str(workspace / "models/head/ode")}, model_config={}))
    with pytest.raises(Mistake, match=message):
        model._checked(x)  # of `predict`, whose annotation the tests hold to


def test_new_outcomes_refresh_a_version_and_move_the_champion(registered):
    measure(registered, "backbone/natural", 30)
    assert upkeep.verify(registered, digests()) == [
        f"backbone/natural: version 1 of {NAME} carries older numbers",
        f"head/ode: version 2 of {NAME} carries older numbers",  # its twin's
    ]
    registration.register_all(registered, digests())
    assert len(versions()) == 2 and versions()["1"]["worst_case"] == "0.75" and aliases()["champion"] == "1"


def test_a_weaker_attack_takes_no_evidence_away(run):
    registration.register_all(run, digests())
    before = versions()
    for model in MODELS:
        measure(run, model, held=20, n=20)
    assert upkeep.verify(run, digests()) == []
    registration.register_all(run, digests())
    assert versions() == before and before["1"]["n"] == "40" and upkeep.verify(run, digests()) == []
    for model in MODELS:
        measure(run, model, held=20)
    registration.register_all(run, digests())
    assert versions()["1"]["worst_case"] == "0.5", "as many images are evidence as good"


def test_a_new_model_is_a_new_version_and_the_best_stays_champion(registered):
    retrain(registered, "head/ode", seed=1, held=15)
    registration.register_all(registered, digests())
    assert aliases() == {"natural": "1", "ode": "3", "champion": "2"}
    retrain(registered, "head/ode", seed=2, held=20)
    registration.register_all(registered, digests())
    assert aliases()["champion"] == "2", "a tie goes to the older version"


def test_a_champion_that_faced_another_attack_is_not_replaced_by_one_that_did_not(registered):
    text = PARAMS.replace("{kind: fgsm}", "{kind: pgd, steps: 2}")
    Path("params.yaml").write_text(text)
    measure(registered, "backbone/natural", 9)
    retrain(registered, "head/ode", seed=1, held=5)
    registration.register_all(params.load(), digests())
    assert aliases() == {"natural": "1", "ode": "3", "champion": "2"}
    measure(registered, "backbone/natural", 39)
    registration.register_all(params.load(), digests())
    assert aliases()["champion"] == "2" and versions()["1"]["standing"] == "challenger"
    assert versions()["1"]["reasons"] == "attacked by less than version 2 (head/ode): without attack fgsm of suite short"


def test_a_version_that_computes_something_else_gets_no_alias(run):
    registration.register_all(run, digests())
    for alias in ("champion", "ode"):
        store().delete_registered_model_alias(NAME, alias)
    store().set_registered_model_alias(NAME, "champion", "1")
    spoilt = store().get_model_version_download_uri(NAME, "2").removeprefix("file://")
    (weights,) = [path for path in Path(spoilt).rglob("weights.safetensors") if path.parent.name != "twin"]
    artifact.save(Path("other"), build(run, "head/ode", seed=7))
    shutil.copyfile("other/weights.safetensors", weights)
    with pytest.raises(Mistake, match=r"weights.safetensors: not the weights of the recipe beside it .+ by `basin registry sync`"):
        registration.register_all(run, digests())
    shutil.copytree("other", weights.parent, dirs_exist_ok=True)
    message = r"models:/digits-linf-0.15/2: loaded back, it does not give the logits of models/head/ode \(got a largest difference of"
    with pytest.raises(Mistake, match=message):
        registration.register_all(run, digests())
    assert aliases() == {"natural": "1", "champion": "1"}


@pytest.mark.parametrize("lost", ["mlflow.db", "mlartifacts"])
def test_a_lost_registry_is_refilled_without_training(run, lost):
    registration.register_all(run, digests())
    shutil.rmtree(lost) if Path(lost).is_dir() else Path(lost).unlink()
    missing = upkeep.verify(run, digests())
    assert missing[::2][:2] == [f"{model}: missing from registered model {NAME}" for model in MODELS] or lost == "mlartifacts"
    registration.register_all(run, digests())
    assert upkeep.verify(run, digests()) == []
    with torch.no_grad():
        assert torch.equal(lookup.load(f"{NAME}@champion")(images()), artifact.load(Path("models/head/ode"))(images()))


def test_the_version_belongs_to_the_run_that_trained_it(run, monkeypatch):
    from basin.tracking import journal

    monkeypatch.delenv("BASIN_TRACKING", raising=False)
    recipe = json.loads(Path("models/head/ode/recipe.json").read_text())
    tags = {"seed": 0, "device": "cpu", "data_digest": recipe["data_digest"]}
    for weights, loss in ((recipe["weights"], 0.1), ("0" * 64, 0.2)):  # the second from another parent: newer, and of other weights
        with journal.run("head/ode", recipe["trained"], tags | {"started": loss}, experiment="digits") as tracked:
            tracked.metrics({"loss": loss}, step=1)
            tracked.tags({"weights": weights})
    registration.register_all(run, digests())
    trained = store().get_run(store().get_model_version(NAME, "2").run_id)
    assert trained.data.metrics == {"loss": 0.1, **trained.data.metrics} and trained.info.status == "FINISHED"


def test_an_absent_mlflow_fails_in_words(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:1")
    message = r"registry: MLflow at http://...@127.0.0.1:1 cannot be used .*Everything is computed and kept; .* run `dvc repro register`"
    with pytest.raises(Mistake, match=message) as caught:
        registration.register_all(run, digests())
    assert "secret" not in str(caught.value) and caught.value.code == 75, "Prefect is to try again"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    Path("mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(Mistake, match="file is not a database"):
        registration.register_all(run, digests())


def test_what_a_killed_registration_left_is_not_doubled(run, monkeypatch):
    def killed(*_, **__):
        raise RuntimeError("killed here")

    with monkeypatch.context() as patched, pytest.raises(Absent, match="killed here"):
        patched.setattr(mlflow.MlflowClient, "create_model_version", killed)
        registration.register_all(run, digests())
    registration.register_all(run, digests())
    experiment = store().get_experiment_by_name("digits").experiment_id
    left = [one.model_id for one in store().search_logged_models([experiment])]
    used = [version.source.removeprefix("models:/") for version in store().search_model_versions(f"name = '{NAME}'")]
    assert sorted(left) == sorted(used) and len(used) == 2


def test_a_model_that_dvc_does_not_know_is_refused(run):
    with pytest.raises(Mistake, match=r"models/head/ode: dvc.lock does not know this folder \(got no digest of it\). Run `dvc repro`"):
        registration.register_all(run, digests() | {"head/ode": None})


def test_aliases_follow_mlflows_rules(run):
    twice = run.model_copy(update={"head": dict.fromkeys(("natural", "latest", "v2", "sodef_natural"), run.head["ode"])})
    assert [twice.alias(f"head/{name}") for name in twice.head] == ["head_natural", "head_latest", "head_v2", "sodef_natural"]
    assert twice.alias("backbone/natural") == "backbone_natural"


def test_the_receipt_is_the_same_whatever_else_is_registered(run):
    first = registration.register_all(run, digests())
    retrain(run, "head/ode", seed=1, held=5)
    registration.register_all(run, digests())
    retrain(run, "head/ode", seed=0, held=20)
    candidates.write(Path("receipt.json"), registration.register_all(run, digests()))
    assert json.loads(Path("receipt.json").read_text()) == first
    with sqlite3.connect("mlflow.db") as found:
        assert found.execute("SELECT count(*) FROM model_versions").fetchone() == (3,)


def test_a_model_of_several_random_layers_is_registered(run):
    """It gives the same logits where it draws the same, from one generator through all layers."""
    file = Path("params.yaml")
    of, head = "{kind: convnet, channels: [2], hidden: 8}", "{kind: ode, width: 4, solver: {method: rk4, steps: 2}}"
    text = file.read_text().replace(f"backbone: {of}", f"backbone: {{kind: distribution, of: {of}, scale: 1.0}}")
    file.write_text(text.replace(f"head: {head}", "head: {kind: distribution, scale: 1.0}"))
    settings = params.load()
    for model in MODELS:
        artifact.save(Path("models") / model, build(settings, model), None if model == MODELS[0] else Path("models") / MODELS[0])
        measure(settings, model, 10)
    assert len(random_layers(artifact.load(Path("models") / MODELS[1]))) == 2
    assert set(registration.register_all(settings, digests())["models"]) == set(MODELS)


def test_the_page_of_a_run_has_the_difference_to_the_twin_and_the_flags(run, monkeypatch):
    monkeypatch.setattr(methods.snapshot, "digests", lambda _: digests())
    for model, more in zip(MODELS, ({"flags": ["gradient-masked"]}, {"ensemble": {"clean": 1, "robust": 0.5, "interval": [0, 1]}})):
        path = Path("outcomes", model, "short", "summary.json")
        about = json.loads(path.read_text())
        path.write_text(json.dumps(about | more))
    asked = params.load()
    suite = asked.suites["short"].model_copy(update={"adaptive": Adaptive()})
    table = list(methods.rows(asked.model_copy(update={"suites": {"short": suite}})))
    assert [row["model"] for row in table] == ["head/ode", "backbone/natural"]
    assert [row["unresolved"] for row in methods.rows(asked)] == ["", "gradient-masked"], "without an adaptive suite"
    assert "| backbone/natural | 100.0 [91.2, 100.0] |  | 25.0 [14.2, 40.2] |" in methods.page(table)
    assert [row["minus twin"] and row["minus twin"].value for row in table] == [0.25, None]
    flat = [1.0, None, 0.25, 0.25, None, None, "gradient-masked", "", "40"]
    assert list(methods.flat(table[1]).values()) == ["backbone/natural", *flat]


def test_a_version_of_another_layout_or_source_says_so_in_one_line():
    from basin.registry.pyfunc import _changed

    now = {f"basin/models/{name}.py": "1" for name in "abcde"}
    assert _changed(now, now) == ""
    assert _changed(now | dict.fromkeys(now, "2"), now) == "basin/models/a.py, basin/models/b.py, basin/models/c.py and 2 more"
    assert _changed({"pipeline/heads/sodef.py": "1"}, now) == "its files were laid out otherwise, as pipeline/heads/sodef.py"
