"""The graph tells DVC the truth: whatever can change a stage's result is among its `deps`, for every ready-made run.

A dependency that is left out is the worst kind of defect that a pipeline can have: old numbers stand beside new code, and nothing says so.
"""

import ast
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import grimp
import pytest
from dvc.dependency import ParamsDependency
from dvc.repo import Repo

from basin.config import kinds, params
from basin.config.kinds import Choice
from basin.config.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
RUNS = ["params.yaml", *sorted(f"params/{path.name}" for path in (ROOT / "params").glob("*.yaml"))]
TEST_SPLIT = "data/prepared/test.safetensors"

# Imports (who, whom) through which no byte of a result comes, and so no dependency. Each with its argument; `*` stands for all.
EXEMPT = {
    ("basin.stages.entry", "basin.stages.joining"): "starts the processes of a stage; what they tell one another is basin.processes'",
    ("basin.stages.entry", "basin.processes"): "a name for the processes; those that compute import it themselves",
    ("basin.stages.entry", "basin.environment"): "switches of other programs (telemetry, update checks), set before anything is computed",
    (
        "basin.stages.entry",
        "basin.tracking.journal",
    ): "told what a stage has done; it reads nothing back, and writes the same where MLflow is away",
    ("basin.stages.entry", "basin.repro.code"): "refuses a project whose code.yaml is untrue; otherwise silent",
    ("basin.stages.train", "basin.evaluation.classes"): "a warning at the end of a training, of a model that answers by chance",
    ("*", "basin.progress"): "lines that say how far a stage is",
    ("*", "basin.errors"): "texts for a stage that ends without a result",
    ("*", "basin.types"): "annotations alone: shapes that the tests check and a run does not",
}


@dataclass(frozen=True)
class Node:
    """A stage as DVC resolved it."""

    name: str
    script: str
    deps: frozenset[str]
    params: tuple[str, ...]

    def lacks(self, files: Iterable[str]) -> list[str]:
        """Those of `files` that neither a dependency nor a folder that is one covers."""
        return sorted(file for file in files if not self.deps & {file, *map(str, Path(file).parents)})


@dataclass(frozen=True)
class Run:
    config: params.Config
    nodes: list[Node]


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory) -> Run:
    """The graph of dvc.yaml under one params file, resolved by DVC."""
    place = tmp_path_factory.mktemp("run")
    shutil.copy(ROOT / "dvc.yaml", place)
    shutil.copy(ROOT / request.param, place / "params.yaml")
    Repo.init(str(place), no_scm=True).close()
    with Repo(str(place)) as repo:
        return Run(params.load(place / "params.yaml"), [node(stage) for stage in repo.index.stages])


def node(stage: Any) -> Node:
    path, python, safe, flag, script, *_ = stage.cmd.split()
    assert (path, python, safe, flag) == ("PYTHONPATH=pipeline", "python", "-P", "-m")
    params = tuple(key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params)
    paths = frozenset(dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency))
    return Node(stage.name, script, paths, params)


# What a stage's code is -------------------------------------------------------------------------------------------------------------------


@cache
def imports() -> grimp.ImportGraph:
    """Who imports whom, in functions too, but for the exempt imports."""
    graph = whole()
    for importer, imported in exempt(graph):
        graph.remove_import(importer=importer, imported=imported)
    return graph


def whole() -> grimp.ImportGraph:
    return grimp.build_graph("basin", cache_dir=None)


def exempt(graph: grimp.ImportGraph) -> list[tuple[str, str]]:
    """The exempt imports one by one."""
    return [
        pair
        for who, whom in EXEMPT
        for pair in ([(who, whom)] if who != "*" else [(one, whom) for one in graph.find_modules_that_directly_import(whom)])
    ]


def file_of(module: str) -> str:
    path = Path("pipeline", *module.split("."))
    return str(path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py"))


def is_only_a_docstring(file: str) -> bool:
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in ast.parse((ROOT / file).read_text()).body)


@cache
def closure(module: str) -> frozenset[str]:
    """The files that importing `module` runs: its own, what it imports, and the packages around them where they hold code."""
    modules = {module, *imports().find_upstream_modules(module)}
    packages = {part for name in modules for part in (name.rpartition(".")[0], name.partition(".")[0]) if part}
    around = {file for file in map(file_of, packages - {"basin"}) if not is_only_a_docstring(file)}  # `basin` itself is the door for others
    return frozenset(map(file_of, modules)) | around


def choices(value: Any) -> Iterator[Choice]:
    """Every kind that a part of the config names, a kind's own settings included."""
    if isinstance(value, Choice):
        yield value
        yield from choices(value.params)
    elif isinstance(value, Settings):
        for name in type(value).model_fields:
            yield from choices(getattr(value, name))
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from choices(item)


def part(settings: params.Config, key: str) -> Any:
    """What a params dependency such as `backbone.natural` stands for."""
    if key == "data":
        return [settings.source, settings.splits]
    value: Any = settings
    for word in key.split("."):
        value = value[word] if isinstance(value, dict) else getattr(value, word)
    return value


def named_kinds(settings: params.Config, node: Node) -> set[str]:
    """Modules of the kinds that the stage's params name."""
    return {f"basin.methods.{choice.family}.{choice.kind}" for key in node.params for choice in choices(part(settings, key))}


def whole_families(node: Node) -> set[str]:
    """Modules of the families whose folder is a dependency: any kind of them may be named by another run."""
    whole = [family for family in kinds.FAMILIES if f"pipeline/basin/methods/{family}" in node.deps]
    return {f"basin.methods.{family}.{kind}" for family in whole for kind in kinds.kinds(family)}


def written_kinds(script: str) -> set[str]:
    """Modules of the kinds that a script names itself, as in `{"kind": "linear"}`."""
    literals = [node for node in ast.walk(ast.parse((ROOT / file_of(script)).read_text())) if isinstance(node, ast.Dict)]
    pairs = [(key, value) for literal in literals for key, value in zip(literal.keys, literal.values, strict=True)]
    written = {str(value.value) for key, value in pairs if getattr(key, "value", None) == "kind" and isinstance(value, ast.Constant)}
    return {f"basin.methods.{family}.{kind}" for family in kinds.FAMILIES for kind in written & set(kinds.kinds(family))}


def missing(run: Run) -> dict[str, list[str]]:
    """Stage -> the files of its code that are not among its dependencies."""
    named = {node: named_kinds(run.config, node) | written_kinds(node.script) | whole_families(node) for node in run.nodes}
    wanted = {node: {node.script} | named[node] for node in run.nodes}
    lacks = {node.name: node.lacks(frozenset().union(*map(closure, modules))) for node, modules in wanted.items()}
    return {name: files for name, files in lacks.items() if files}


# The promises -----------------------------------------------------------------------------------------------------------------------------


def test_every_stage_depends_on_all_its_code(run):
    assert missing(run) == {}


def test_a_dependency_left_out_is_found(run):
    """The test above can fail: without a dependency that it needs, each stage that had it is named."""
    for victim in ("pipeline/basin/data/splits.py", "pipeline/basin/stages/entry.py", "pipeline/basin/types.py"):
        without = [Node(node.name, node.script, node.deps - {victim}, node.params) for node in run.nodes]
        found = {name for name, files in missing(Run(run.config, without)).items() if any(file.startswith(victim) for file in files)}
        assert found == {node.name for node in run.nodes if victim in node.deps}


def test_kinds_are_looked_for_in_params_and_in_scripts(run):
    by_family = {node.name.partition("@")[0]: named_kinds(run.config, node) | written_kinds(node.script) for node in run.nodes}
    assert {name.split(".")[2] for name in by_family["prepare"]} == {"sources"}
    assert {name.split(".")[2] for name in by_family["backbone"]} - {"augmentations"} == {"backbones", "heads", "training"}
    assert {name.split(".")[2] for name in by_family["attack"]} == {"attacks"}


def test_every_dependency_on_code_exists(run):
    """A path that is not there is one that a renamed file left behind."""
    code = {dep for node in run.nodes for dep in node.deps if dep.startswith("pipeline/")}
    assert [dep for dep in sorted(code) if not (ROOT / dep).exists()] == []


def test_a_model_is_a_dependency_of_what_is_built_on_it_or_attacks_it(run):
    for node in run.nodes:
        stage, _, name = node.name.partition("@")
        if stage in ("head", "adversarial"):
            assert f"models/{run.config.entry(f'{stage}/{name}').from_}" in node.deps
        if stage == "attack":
            assert [model for model in run.config.attack.models if f"models/{model}" in node.deps and name.startswith(f"{model}-")]


def test_only_attacks_read_the_test_split(run):
    readers = {node.name.partition("@")[0] for node in run.nodes if not node.lacks([TEST_SPLIT])}
    assert readers == {"attack", "exchange"}


def test_whatever_draws_depends_on_the_seed(run):
    """The stages that compute: the report and the registry read what they wrote."""
    without = {node.name.partition("@")[0] for node in run.nodes if "seed" not in node.params}
    assert without <= {"report", "register"}


def test_exempt_imports_are_there():
    """An exemption that nothing needs any more would hide the day when it matters again."""
    graph = whole()
    assert {whom for _, whom in EXEMPT} == {whom for who, whom in exempt(graph) if graph.direct_import_exists(importer=who, imported=whom)}


FAR = (
    "flow/pages.py",
    "registry/gate.py",
    "report/page.py",
    "cli/app.py",
    "tracking/client.py",
    "repro/graph.py",
)  # a file of each far room


def test_what_a_stage_does_not_use_reruns_no_training_and_no_attack(run):
    """The other side of the tests above: a comment in a far room, or in a kind that this run does not name, costs nothing."""
    named = {choice_file(choice) for node in run.nodes for key in node.params for choice in choices(part(run.config, key))}
    unused = {
        f"pipeline/basin/methods/{family}/{kind}.py" for family in ("sources", "heads", "training") for kind in kinds.kinds(family)
    } - named
    costly = [node for node in run.nodes if node.name.partition("@")[0] in ("backbone", "head", "adversarial", "attack")]
    built_in = {"pipeline/basin/methods/heads/distribution.py", "pipeline/basin/methods/heads/linear.py"}  # on a new backbone
    for file in {f"pipeline/basin/{file}" for file in FAR} | unused - built_in:
        assert (ROOT / file).is_file()
        assert [node.name for node in costly if not node.lacks([file])] == []


def choice_file(choice: Choice) -> str:
    return f"pipeline/basin/methods/{choice.family}/{choice.kind}.py"
