"""The graph, the digests and the reproduction of single stages, on real DVC projects."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from basin.errors import Mistake
from basin.repro import graph, lock, whole
from basin.repro.graph import Stage, StageFailed

MakeProject = Callable[[str], Path]

DIAMOND = """
stages:
  join:
    cmd: cat left right > joined
    deps: [left, right]
    outs: [joined]
  side:
    foreach:
      left: 1
      right: 2
    do:
      cmd: (cat source; echo ${item}) > ${key}
      deps:
      - source
      outs:
      - ${key}
      meta: {gpu: 1}
  prepare:
    cmd: echo seed > source
    outs: [source]
  alone:
    cmd: mkdir folder && echo 1 > folder/file
    outs: [folder]
"""


def dvc(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-P", "-m", "dvc", *arguments], capture_output=True, text=True, check=False)


def reproduce_all() -> dict[str, str]:
    return {stage.name: graph.reproduce_one(stage.name, lambda line: None) for stage in graph.graph()}


def test_the_graph_is_dvcs_in_an_order_that_runs(project: MakeProject):
    project(DIAMOND)
    stages = {stage.name: stage for stage in graph.graph()}
    assert set(stages) == {"prepare", "side@left", "side@right", "join", "alone"}
    assert stages["join"].upstream == ("side@left", "side@right")
    assert stages["side@left"] == Stage("side@left", ("prepare",), ("left",), {"gpu": 1}, False)
    assert (stages["side@left"].gpus, stages["join"].gpus) == (1, 0)
    order = list(stages)
    assert all(order.index(needed) < order.index(name) for name, stage in stages.items() for needed in stage.upstream)
    assert [stage.name for stage in graph.graph()] == order


def test_targets_bring_what_they_need_and_no_more(project: MakeProject):
    project(DIAMOND)
    stages = graph.graph()
    assert {stage.name for stage in graph.choose(stages, ["side@left"])} == {"prepare", "side@left"}
    assert {stage.name for stage in graph.choose(stages, ["side"])} == {"prepare", "side@left", "side@right"}
    assert graph.choose(stages) == stages


def test_an_unknown_target_is_answered_with_the_nearest(project: MakeProject):
    project(DIAMOND)
    with pytest.raises(Mistake, match=r"^target: no such stage \(got 'side@lift'\)\. Did you mean 'side@left'\?$"):
        graph.choose(graph.graph(), ["side@lift"])


def test_ran_then_unchanged_then_restored(project: MakeProject):
    place = project("stages:\n  a: {cmd: echo 1 > one, outs: [one]}\n  b: {cmd: cp one two, deps: [one], outs: [two]}\n")
    assert reproduce_all() == {"a": "ran", "b": "ran"}
    assert reproduce_all() == {"a": "unchanged", "b": "unchanged"}
    assert dvc("repro").stdout.count("didn't change, skipping") == 2
    (place / "dvc.lock").unlink()
    assert reproduce_all() == {"a": "ran", "b": "restored"}, "dvc keeps no runs of stages that depend on nothing"


def test_unchanged_stops_at_the_first_change_below(project: MakeProject):
    place = project(DIAMOND)
    assert dvc("repro").returncode == 0
    stages = graph.graph()
    assert graph.unchanged(stages) == {stage.name for stage in stages}
    (place / "left").write_text("edited by hand\n")
    assert graph.unchanged(stages) == {"prepare", "alone", "side@right"}
    assert "side@left" in graph.status()


def test_digest_is_what_dvc_lock_says(project: MakeProject):
    place = project(DIAMOND)
    assert lock.digest("source") is None
    for name in ("prepare", "alone"):
        graph.reproduce_one(name, lambda line: None)
    digest = lock.digest("source")
    assert digest and f"md5: {digest}" in (place / "dvc.lock").read_text()
    assert (lock.digest("folder/") or "").endswith(".dir")
    assert lock.digest("absent") is None
    (place / "dvc.lock").write_text("<<<<<<< HEAD\n")
    with pytest.raises(Mistake, match=r"^dvc.lock: not a lock file that dvc wrote"):
        lock.digest("source")


def test_a_reader_of_the_lock_file_waits_for_the_dvc_that_writes_it(project: MakeProject):
    """dvc writes it in place: what is there halfway is valid, and lacks stages."""
    place = project(DIAMOND)
    for name in ("prepare", "alone"):
        graph.reproduce_one(name, lambda line: None)
    whole = (place / "dvc.lock").read_text()
    writer = (
        "import sys, time; from dvc.lock import Lock; from pathlib import Path; whole = Path('dvc.lock').read_text()\n"
        "with Lock('.dvc/tmp/lock'):\n"
        "    Path('dvc.lock').write_text(''.join(whole.splitlines(True)[:2])); print('half', flush=True); time.sleep(1)\n"
        "    Path('dvc.lock').write_text(whole)"
    )
    with subprocess.Popen([sys.executable, "-c", writer], cwd=place, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "half\n"
        assert lock.digest("source") is not None
    assert (place / "dvc.lock").read_text() == whole


def failing(project: MakeProject, command: str) -> StageFailed:
    project(f"stages:\n  broken:\n    cmd: {command}\n    outs: [out]\n")
    with pytest.raises(StageFailed) as failure:
        graph.reproduce_one("broken", lambda line: None)
    return failure.value


def test_a_failure_carries_the_stages_own_exit_code_and_last_word(project: MakeProject):
    failure = failing(project, "echo 'ValueError, exited with 9'; exit 3")
    assert (failure.code, failure.bad_input) == (3, False)
    assert str(failure) == "broken: exit code 3: ValueError, exited with 9"


def test_exit_code_two_is_bad_input(project: MakeProject):
    failure = failing(project, "'echo \"error: params.yaml: eps is too large\" >&2; exit 2'")
    assert failure.bad_input
    assert str(failure) == "broken: exit code 2: error: params.yaml: eps is too large"


def test_a_killed_stage_says_so(project: MakeProject):
    failure = failing(project, "kill -9 $$")
    assert failure.code in (-9, 137)
    assert failure.reason == "killed by signal 9"


def test_a_stage_that_dvc_refuses_has_no_exit_code(project: MakeProject):
    project("stages:\n  broken:\n    cmd: echo\n    deps: [absent]\n    outs: [out]\n")
    with pytest.raises(StageFailed, match="absent") as failure:
        graph.reproduce_one("broken", lambda line: None)
    assert failure.value.code is None


def test_lines_arrive_as_they_are_written_and_bars_as_their_last_state(project: MakeProject):
    project("stages:\n  talk:\n    cmd: printf 'one\\ntwo 1%%\\rtwo 100%%\\n' > out && cat out\n    outs: [out]\n")
    lines: list[str] = []
    graph.reproduce_one("talk", lines.append)
    assert "one" in lines
    assert "two 100%" in lines


def test_the_environment_reaches_the_stage(project: MakeProject):
    place = project("stages:\n  show:\n    cmd: echo $CUDA_VISIBLE_DEVICES $DVC_STAGE > out\n    outs: [out]\n")
    graph.reproduce_one("show", lambda line: None, env={"CUDA_VISIBLE_DEVICES": "5"})
    assert (place / "out").read_text() == "5 show\n"


def test_reproduce_is_plain_dvc_repro(project: MakeProject, capfd: pytest.CaptureFixture):
    place = project(DIAMOND)
    assert whole.reproduce(["side@left"]) == 0
    assert (place / "left").read_text() == "seed\n1\n"
    assert not (place / "right").exists()
    assert "Running stage 'side@left'" in capfd.readouterr().out
    with pytest.raises(Mistake, match=r"^target: no such stage \(got 'nonsense'\)\. Known: alone, join, "):
        whole.reproduce(["nonsense"])


def test_reproduce_refuses_a_wrong_config_before_anything_runs(project: MakeProject):
    place = project(DIAMOND)
    (place / "params.yaml").write_text((place / "params.yaml").read_text().replace("seed: 0", "seed: zero"))
    with pytest.raises(Mistake, match="seed"):
        whole.reproduce([])
    assert not (place / "source").exists()


def test_outside_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Mistake, match=r"^workspace: no DVC project .* Change to the folder that holds dvc.yaml\.$"):
        graph.graph()


def test_below_the_top_folder(project: MakeProject, monkeypatch: pytest.MonkeyPatch):
    place = project(DIAMOND)
    (place / "below").mkdir()
    monkeypatch.chdir(place / "below")
    with pytest.raises(Mistake, match=r"^workspace: not the top folder of a DVC project"):
        graph.graph()


def test_a_cycle_is_a_mistake(project: MakeProject):
    project("stages:\n  a: {cmd: x, deps: [one], outs: [two]}\n  b: {cmd: y, deps: [two], outs: [one]}\n")
    with pytest.raises(Mistake, match="both a dependency and an output in stages: "):
        graph.graph()


def test_is_changed_asks_git(project: MakeProject):
    place = project(DIAMOND)
    assert graph.is_changed("params.yaml"), "no git here"
    for arguments in (["init", "-q"], ["add", "params.yaml"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "params"]):
        subprocess.run(["git", *arguments], check=True)
    assert not graph.is_changed("params.yaml")
    assert graph.is_changed("dvc.yaml"), "in no commit"
    (place / "params.yaml").write_text("seed: 1\n")
    assert graph.is_changed(place / "params.yaml")


@pytest.mark.parametrize("left", ["", "schema: '2.0'\nstages:\n  a:\n    outs:\n    - pa"])
def test_a_lock_file_that_a_kill_cut_is_put_back_and_its_stages_restored(project, left):
    place = project("stages:\n  a:\n    cmd: echo 1 >> runs && echo a > a\n    deps: [params.yaml]\n    outs: [a]\n")
    lock.mend()
    graph.reproduce_one("a", print)
    lock.mend()
    whole = (place / "dvc.lock").read_text()
    (place / "dvc.lock").write_text(left)
    (place / ".dvc/tmp/rwlock").write_text('{"half')
    lock.mend()
    assert (place / "dvc.lock").read_text() == whole
    (place / "dvc.lock").write_text(left)
    (place / ".basin/dvc.lock").unlink()
    lock.mend()
    assert graph.reproduce_one("a", print) == "restored"
    assert (place / "dvc.lock").read_text() == whole and (place / "runs").read_text() == "1\n"


def test_a_conflict_in_the_lock_file_is_left_to_who_made_it(project):
    place = project("stages:\n  a:\n    cmd: echo a > a\n    outs: [a]\n")
    graph.reproduce_one("a", print)
    lock.mend()
    (place / "dvc.lock").write_text(conflict := "<<<<<<< HEAD\nschema: '2.0'\n")
    lock.mend()
    assert (place / "dvc.lock").read_text() == conflict
    with pytest.raises(Mistake, match="dvc.lock: not a lock file that dvc wrote"):
        lock.recorded()
