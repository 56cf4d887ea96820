"""params.yaml: every mistake in one go, each with its key, its value and what to do."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from basin.config import kinds, names, params
from basin.data.splits import Source, Split
from basin.errors import EXIT_CODE, Mistake, did_you_mean, exit_on_mistake
from basin.report import table

ROOT = Path(__file__).resolve().parents[2]
OWN = """\
  own:
    attacks:
      fgsm: {kind: fgsm}
      pgd: {kind: pgd, steps: 20, step: 0.1}
      transfer:
        kind: transfer
        attacks:
          - {kind: apgd, loss: ce, steps: 100}
          - {kind: apgd, loss: dlr_targeted, steps: 100, targets: 9}
"""
RUN = (ROOT / "params/digits.yaml").read_text().replace("  standard: {}\n", f"  standard: {{}}\n{OWN}")  # `basin use digits`, and a suite


@pytest.fixture
def errors(tmp_path):
    """`errors(old, new, ...)`: the messages for the ready-made run with `old` replaced by `new`, without the file's name."""

    def load(*changes: str) -> list[str]:
        text = RUN
        for old, new in zip(changes[::2], changes[1::2]):
            assert old in text, old
            text = text.replace(old, new, 1)
        (path := tmp_path / "params.yaml").write_text(text)
        with pytest.raises(Mistake) as mistake:
            params.load(path)
        assert all(message.startswith(f"{path}: ") for message in mistake.value.messages)
        return [message.removeprefix(f"{path}: ") for message in mistake.value.messages]

    return load


CASES = {
    "unknown kind": (
        ("{kind: convnet", "{kind: convnt"),
        "backbone.natural.backbone.kind: unknown kind of backbones (got 'convnt'). Did you mean 'convnet'?",
    ),
    "unknown kind, nothing close": (
        ("{kind: convnet", "{kind: zzz"),
        f"backbone.natural.backbone.kind: unknown kind of backbones (got 'zzz'). Known: {', '.join(kinds.kinds('backbones'))}.",
    ),
    "kind of another type": (
        ("backbone: {kind: convnet, channels: [32, 64], hidden: 128}", "backbone: convnet"),
        f"backbone.natural.backbone: should be a table with a kind, one of: {', '.join(kinds.kinds('backbones'))} (got 'convnet'). "
        "It is the feature extractor: a table with its kind.",
    ),
    "missing kind": (
        ("training: {kind: natural}", "training: {}"),
        f"backbone.natural.training: should be a table with a kind, one of: {', '.join(kinds.kinds('training'))} (got {{}}). "
        "It is the training method: a table with its kind.",
    ),
    "unknown purifier": (
        ("training: {kind: natural}", "training: {kind: natural}\n    purifier: {kind: tw}"),
        f"backbone.natural.purifier.kind: unknown kind of purifiers (got 'tw'). {did_you_mean('tw', kinds.kinds('purifiers'))}",
    ),
    "purifier without a kind": (
        ("training: {kind: natural}", "training: {kind: natural}\n    purifier: {weight: 0.1}"),
        f"backbone.natural.purifier: should be a table with a kind, one of: {', '.join(kinds.kinds('purifiers'))} "
        "(got {'weight': 0.1}). It is what cleans an image first: a table with its kind, or null for that of the model below.",
    ),
    "unknown key of a purifier": (
        ("training: {kind: natural}", "training: {kind: natural}\n    purifier: {kind: tv, wieght: 0.1}"),
        "backbone.natural.purifier.wieght: unknown key (got 0.1). Did you mean 'weight'?",
    ),
    "a mask that keeps more than all": (
        ("training: {kind: natural}", "training: {kind: natural}\n    cleaned: {kind: tv, keep: 1.5}"),
        "backbone.natural.cleaned.keep: input should be less than or equal to 1 (got 1.5). "
        "It is the share of pixels that a random mask keeps, above 0 and at most 1 (1: no mask).",
    ),
    "what augmentation was called before": (
        ("training: {kind: natural}", "training: {kind: natural}\n    augmentation: {kind: tv}"),
        "backbone.natural.augmentation: is a list now; copies that a purifier cleaned are `cleaned` (got {'kind': 'tv'}). Rename this key.",
    ),
    "an unknown augmentation": (
        ("training: {kind: natural}", "training: {kind: natural}\n    augmentation: [{kind: flip}, {kind: corp}]"),
        "backbone.natural.augmentation.1.kind: unknown kind of augmentations (got 'corp'). Did you mean 'crop'?",
    ),
    "a mask drawn twice for copies": (
        ("training: {kind: natural}", "training: {kind: natural}\n    cleaned: {kind: tv, keep: 0.7, training_draws: 8}"),
        "backbone.natural.cleaned: copies are cleaned once, with one mask each (got {'kind': 'tv', 'keep': 0.7, 'training_draws': 8}). "
        "Leave training_draws and inference_draws out.",
    ),
    "a milestone after the end": (
        ("policy: one_cycle}", "policy: multi_step, milestones: [0.5, 50]}"),
        "backbone.natural.schedule.milestones: one comes after the last epoch (got [0.5, 50]). "
        "Give epochs before it, or shares of them below 1.",
    ),
    "what is Adam's for sgd": (
        ("optimiser: adam, rate: 0.003", "optimiser: sgd, amsgrad: true, rate: 0.003"),
        "backbone.natural.schedule.amsgrad: is Adam's, and sgd has none (got True). Leave it out.",
    ),
    "an end by a classifier that is not trained": (
        ("features: {epochs: 10,", "features: {stopping: {watch: accuracy, patience: 1}, epochs: 10,"),
        "head.sodef_natural.schedule.features: stopping would watch a classifier that phase 3 alone trains "
        "(got {'stopping': {'watch': 'accuracy', 'patience': 1}, 'epochs': 10, 'batch': 128, '). Leave it out here.",
    ),
    "a rate that rises twice": (
        ("policy: one_cycle}", "policy: one_cycle, warmup: 2}"),
        "backbone.natural.schedule.warmup: one_cycle rises by itself (got 2). Set it to 0, or choose another policy.",
    ),
    "smoothing of a loss that has none": (
        ("{kind: pgd, steps: 5, step: 0.4}", "{kind: trades, smoothing: 0.1}"),
        f"adversarial.pgd.training.smoothing: unknown key (got 0.1). {did_you_mean('smoothing', ['beta', 'steps', 'step'])}",
    ),
    "draws of a purifier that draws nothing": (
        ("training: {kind: natural}", "training: {kind: natural}\n    purifier: {kind: tv, inference_draws: 8}"),
        "backbone.natural.purifier: without a mask every draw is the same (got {'inference_draws': 8}). "
        "Set keep below 1, or the draws to 1.",
    ),
    "unknown key": (("seed: 0", "seed: 0\nsede: 1"), "sede: unknown key (got 1). Did you mean 'seed'?"),
    "unknown key of a kind": (
        ("pgd: {kind: pgd, steps: 20", "pgd: {kind: pgd, stepps: 20"),
        "suites.own.attacks.pgd.stepps: unknown key (got 20). Did you mean 'steps'?",
    ),
    "a ready-made suite made otherwise": (
        ("  standard: {}", "  standard: {masked: null}"),
        "suites.standard: is ready-made; a run may add curve, thorough and threat to it (got masked). Give yours another name.",
    ),
    "a ready-made suite under another name, made otherwise": (
        ("  standard: {}", "  standard: {}\n  mine: {ready: quick, masked: null}"),
        "suites.mine: is ready-made; a run may add curve, thorough and threat to it (got masked). Give yours another name.",
    ),
    "a ready-made suite that is none": (
        ("  standard: {}", "  standard: {}\n  mine: {ready: quik}"),
        "suites.mine.ready: no such ready-made suite (got 'quik'). Did you mean 'quick'?",
    ),
    "a suite's threat that is the run's": (
        ("  standard: {}", "  standard: {threat: {norm: linf, eps: 3/20}}"),
        "suites.standard.threat: is the run's own (got 'linf-0.15'). Leave it out.",
    ),
    "no suite under the run's threat": (
        ("  standard: {}", "  standard: {threat: {norm: l2, eps: 1}}", "suites: [quick, standard]", "suites: [standard]"),
        "attack.suites: each has a threat of its own (got standard). Name one under the run's threat too.",
    ),
    "a flag that is none": (
        ("accepted_flags: []", "accepted_flags: [gradient-mask]"),
        "registry.gate.accepted_flags: no such flag (got 'gradient-mask'). Did you mean 'gradient-masked'?",
    ),
    "a radius beyond any image": (
        ("eps: 0.15", "eps: 1e+308", "norm: linf", "norm: l2"),
        "threat.eps: input should be less than or equal to 1000000000 (got 1e+308). "
        "It is radius in pixels scaled to [0, 1], above 0 and, in linf, at most 1; eight grey levels are written 8/255.",
    ),
    "a suite of nothing": (
        ("  standard: {}", "  standard: {}\n  mine: {}"),
        "suites.mine: should hold attacks, or an adaptive table (got {}). Give one of them.",
    ),
    "a probe of another suite's attack": (
        ("  own:\n", "  own:\n    probe: {square: 0.1}\n"),
        "suites.own.probe: names no attack of this suite: square (got {'square': 0.1}). Name its attacks, or leave it out.",
    ),
    "an attack that waits for a later one": (
        ("  own:\n", "  own:\n    earned: {fgsm: pgd}\n"),
        "suites.own.earned: fgsm waits for an attack that comes no earlier (got {'fgsm': 'pgd'}). Put that one first.",
    ),
    "a probe of all images": (
        ("  own:\n", "  own:\n    probe: {pgd: 1}\n"),
        "suites.own.probe.pgd: input should be less than 1 (got 1).",
    ),
    "unknown key of a kind inside a kind": (
        ("- {kind: apgd, loss: ce, steps: 100}", "- {kind: apgd, los: ce, steps: 100}"),
        "suites.own.attacks.transfer.attacks.0.los: unknown key (got 'ce'). Did you mean 'loss'?",
    ),
    "a transfer on the twin, which has none": (
        ("- {kind: apgd, loss: ce, steps: 100}", "- {kind: transfer, attacks: [{kind: fgsm}]}"),
        "suites.own.attacks.transfer.attacks: should hold attacks on the twin, which has no twin of its own "
        "(got [{'kind': 'transfer', 'attacks': [{'kind': 'fgsm'}]}, {'kind': 'apgd', 'loss': '). Take the transfer out.",
    ),
    "missing key": (
        ("  eps: 0.15", ""),
        "threat.eps: field required (got nothing). It is radius in pixels scaled to [0, 1], above 0 and, in linf, at most 1; "
        "eight grey levels are written 8/255.",
    ),
    "wrong type": (
        ("epochs: 15", "epochs: many"),
        "backbone.natural.schedule.epochs: input should be a valid integer (got 'many'). "
        "It is a positive number of passes over the training images.",
    ),
    "a fraction for an integer": (
        ("seed: 0", "seed: 0.5"),
        "seed: input should be a valid integer (got 0.5). It is the seed of everything random, 0 or above.",
    ),
    "true for an integer": (
        ("epochs: 15", "epochs: true"),
        "backbone.natural.schedule.epochs: input should be a valid integer (got True). "
        "It is a positive number of passes over the training images.",
    ),
    "negative epochs": (
        ("epochs: 15", "epochs: -1"),
        "backbone.natural.schedule.epochs: input should be greater than or equal to 1 (got -1). "
        "It is a positive number of passes over the training images.",
    ),
    "radius above 1": (
        ("eps: 0.15", "eps: 1.5"),
        "threat.eps: input should be less than or equal to 1 (got 1.5). It is radius in pixels scaled to [0, 1], above 0 and, in linf, "
        "at most 1; eight grey levels are written 8/255.",
    ),
    "a radius of grey levels": (
        ("eps: 0.15", "eps: 8/0"),
        "threat.eps: input should be a valid number (got '8/0'). It is radius in pixels scaled to [0, 1], above 0 and, in linf, "
        "at most 1; eight grey levels are written 8/255.",
    ),
    "unknown norm": (
        ("norm: linf\n", "norm: l3\n"),
        "threat.norm: input should be 'linf', 'l2' or 'l1' (got 'l3'). It is norm of the perturbation, linf, l2 or l1.",
    ),
    "unknown solver": (
        ("method: rk4", "method: rk5"),
        "head.sodef_natural.head.solver.method: input should be 'euler', 'midpoint', 'rk4' or 'dopri5' (got 'rk5'). "
        "It is rk4 (fixed steps), midpoint, euler, or dopri5 (adaptive).",
    ),
    "unknown device": (
        ("device: auto", "device: gpu"),
        "device: input should be 'auto', 'cpu' or 'cuda' (got 'gpu'). It is auto (a GPU if there is one), cpu or cuda.",
    ),
    "from names nothing": (
        ("from: backbone/natural", "from: backbone/naturl"),
        "adversarial.pgd.from: names no model of this file (got 'backbone/naturl'). Did you mean 'backbone/natural'?",
    ),
    "from itself": (
        ("from: backbone/natural", "from: adversarial/pgd"),
        "adversarial.pgd.from: goes round in a cycle (got adversarial/pgd <- adversarial/pgd). Start one of them from a backbone.",
    ),
    "unknown model attacked": (
        ("models: [backbone/natural,", "models: [backbone/natrual,"),
        "attack.models: names nothing of this file (got 'backbone/natrual'). Did you mean 'backbone/natural'?",
    ),
    "unknown suite": (
        ("suites: [quick,", "suites: [quik,"),
        "attack.suites: names nothing of this file (got 'quik'). Did you mean 'quick'?",
    ),
    "a model's name that is no file name": (
        ("  sodef_pgd:", "  ../sodef:"),
        "head.../sodef: a name is made of letters (a to z), digits and underscores, 1 to 64 of them (got '../sodef'). Rename it.",
    ),
    "a suite's name that differs in capitals": (
        ("  quick:\n", "  STANDARD: {attacks: {fgsm: {kind: fgsm}}}\n  quick:\n"),
        "suites.standard: differs from another name in capitals alone (got 'standard' and 'STANDARD'). Rename one.",
    ),
    "a suite named like a column": (
        ("  quick:\n", "  Clean: {attacks: {fgsm: {kind: fgsm}}}\n  quick:\n"),
        "suites.Clean: the name is that of a column of the report (got a suite of that name). Rename it.",
    ),
    "a suite named like the points of other models": (
        ("  quick:\n", "  exchange: {attacks: {fgsm: {kind: fgsm}}}\n  quick:\n"),
        "suites.exchange: the name is that of the points of other models (got a suite of that name). Rename it.",
    ),
    "an attack named like what needs none": (
        ("      fgsm: {kind: fgsm}", "      clean: {kind: fgsm}"),
        "suites.own.attacks: the name clean is that of images misread without an attack "
        "(got {'clean': {'kind': 'fgsm'}, 'pgd': {'kind': 'pgd', 'steps': 20, 'step': 0.1}, 't). Rename it.",
    ),
    "an attack named like the last one": (
        ("      fgsm: {kind: fgsm}", "      float32: {kind: fgsm}"),
        "suites.own.attacks: the name float32 is that of the last attack, in float32, on what a quicker search leaves "
        "(got {'float32': {'kind': 'fgsm'}, 'pgd': {'kind': 'pgd', 'steps': 20, 'step': 0.1}, ). Rename it.",
    ),
    "two models of one alias": (
        (
            "  pgd:\n",
            "  head_sodef_pgd: {from: backbone/natural, training: {kind: natural}, schedule: {epochs: 1}}\n"
            "  sodef_pgd: {from: backbone/natural, training: {kind: natural}, schedule: {epochs: 1}}\n  pgd:\n",
        ),
        "adversarial.head_sodef_pgd: its alias in the registry is that of head/sodef_pgd (got 'head_sodef_pgd'). Rename one.",
    ),
    "a registered name that MLflow does not take": (
        ("  name: null", "  name: digits/mine"),
        "registry.name: string should match pattern '^[A-Za-z0-9]([A-Za-z0-9_ .-]{0,253}[A-Za-z0-9_-])?$' (got 'digits/mine'). It is the "
        "registered model's name, of letters (a to z), digits, _ . - and, inside, blanks, at most 255 of them; "
        "or null for <data>-<norm>-<eps>.",
    ),
    "a model attacked twice": (
        ("models: [backbone/natural,", "models: [backbone/natural, backbone/natural,"),
        "attack.models: names it twice (got 'backbone/natural'). Take one out.",
    ),
    "a table for a model's name": (
        ("models: [backbone/natural,", "models: [{a: b}, backbone/natural,"),
        "attack.models.0: input should be a valid string (got {'a': 'b'}).",
    ),
    "a list for a suite's name": (
        ("suites: [quick,", "suites: [[quick], quick,"),
        "attack.suites.0: input should be a valid string (got ['quick']).",
    ),
    "nothing and a table for suites": (
        ("suites: [quick, standard]", "suites: [null, {}]"),
        "attack.suites.1: input should be a valid string (got {}).",
    ),
    "a list to go on from": (
        ("from: backbone/natural", "from: [backbone/natural]"),
        "adversarial.pgd.from: input should be a valid string (got ['backbone/natural']). It is the model to go on from, as STAGE/NAME.",
    ),
    "a number as a key": (
        ("      fgsm: {kind: fgsm}", "      1: {kind: fgsm}"),
        "suites.own.attacks: a key is a line of text of 1 to 255 characters (got int 1). Rename it; a number stands in quotes.",
    ),
    "a key of two lines": (
        ("seed: 0", 'seed: 0\n"a\\nb": 1'),
        "the file: a key is a line of text of 1 to 255 characters (got 'a\\nb'). Rename it; a number stands in quotes.",
    ),
    "an infinite rate": (
        ("rate: 0.003", "rate: .inf"),
        "backbone.natural.schedule.rate: input should be a finite number (got inf). It is the positive (peak) learning rate.",
    ),
    "a radius of a thousand million digits": (
        ("eps: 0.15", "eps: '1e999999999'"),
        "threat.eps: input should be a finite number (got inf). It is radius in pixels scaled to [0, 1], above 0 and, in linf, at most 1; "
        "eight grey levels are written 8/255.",
    ),
    "a seed of more than 64 bits": (
        ("seed: 0", "seed: 0x1ffffffffffffffff"),
        "seed: too large a number (got 65 bits). Give one of at most 64.",
    ),
    "a transfer that holds itself": (
        ("      fgsm: {kind: fgsm}", "      fgsm: &it {kind: transfer, attacks: [*it]}"),
        "suites: nested too deep, too long, or a part of itself (got over 40 levels or 100000 values). Write it out.",
    ),
    "radii that do not rise": (
        ("times: [1/3, 2/3,", "times: [2/3, 1/3,"),
        "suites.quick.curve.times: should rise (got ['2/3', '1/3', 1, '4/3', 2, '10/3']). Order them from small to large, each once.",
    ),
    "data set not found": (("kind: digits", "kind: digit"), "data.kind: unknown kind of sources (got 'digit'). Did you mean 'digits'?"),
    "data without a kind": (
        ("  kind: digits\n", ""),
        f"data: should be a table with a kind, one of: {', '.join(kinds.kinds('sources'))} (got {{'validation': 0.1, 'test': 0.2}}). "
        "It is the data set: a table with its kind.",
    ),
    "misspelt key of the split": (("test: 0.2", "tset: 0.2"), "data.tset: unknown key (got 0.2). Did you mean 'test'?"),
    "shares of more than all": (
        ("test: 0.2", "test: 0.95"),
        "data: validation and test (null counts as 0.1 and 0.2) leave nothing to train on (got {'validation': 0.1, 'test': 0.95}). "
        "Lower them to add up to less than 1.",
    ),
    "misspelt phase": (
        ("      features: {", "      featuers: {"),
        "head.sodef_natural.schedule.featuers: unknown key (got {'epochs': 10, 'batch': 128, 'optimiser': 'adam', 'rate': 0.01}). "
        "Did you mean 'features'?",
    ),
    "misspelt key of a phase": (
        ("w_diag: 10.0", "w_dag: 10.0"),
        "head.sodef_natural.schedule.stability.w_dag: unknown key (got 10.0). Did you mean 'w_diag'?",
    ),
    "duplicate key": (
        ("seed: 0", "seed: 0\nseed: 1"),
        'line 6: not YAML (got found duplicate key "seed" with value "1" (original value: "0")). '
        "Mend that line, or take a ready-made file: basin use NAME.",
    ),
    "not YAML": (
        ("seed: 0", "seed: [0"),
        "line 7: not YAML (got expected ',' or ']', but got '?'). Mend that line, or take a ready-made file: basin use NAME.",
    ),
}


@pytest.mark.parametrize(("changes", "message"), CASES.values(), ids=CASES)
def test_a_mistake_is_named_with_its_value_and_what_to_do(changes, message, errors):
    assert message in errors(*changes)


TWO = {"misspelt phase", "a model's name that is no file name", "nothing and a table for suites"}  # which draw a second one each
ALONE = sorted(set(CASES) - TWO)


@pytest.mark.parametrize("name", ALONE)
def test_one_mistake_is_one_message(name, errors):
    assert len(errors(*CASES[name][0])) == 1


def test_all_mistakes_are_reported_at_once(errors):
    names = [
        "unknown kind", "unknown key", "unknown key of a kind inside a kind", "negative epochs", "a radius of grey levels", "unknown norm",
        "unknown device", "from names nothing", "unknown model attacked", "unknown suite", "radii that do not rise",
        "misspelt key of the split", "misspelt key of a phase",
    ]  # fmt: skip
    said = errors(*(word for name in names for word in CASES[name][0]))
    assert sorted(said) == sorted(CASES[name][1] for name in names)


def test_a_longer_cycle_is_shown(errors):
    said = errors("    from: backbone/natural\n    training: {kind: pgd", "    from: head/sodef_pgd\n    training: {kind: pgd")
    assert said == [
        "head.sodef_pgd.from: goes round in a cycle (got head/sodef_pgd <- adversarial/pgd <- head/sodef_pgd). "
        "Start one of them from a backbone.",
        "adversarial.pgd.from: goes round in a cycle (got adversarial/pgd <- head/sodef_pgd <- adversarial/pgd). "
        "Start one of them from a backbone.",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "should be a table of keys (got NoneType). Take a ready-made file: basin use NAME."),
        (b"- 1\n- 2\n", "should be a table of keys (got list). Take a ready-made file: basin use NAME."),
        (b"\xff\xfe\x00", "not YAML (got "),
        (b"seed: \x01", "not YAML (got "),
        (b"seed:\t0\n\tx: 1", "line 1: not YAML (got "),
        (b"\x89PNG\r\n\x1a\n", "not YAML (got "),
        (b"[" * 1500, "not YAML (got maximum recursion depth"),
        (b"seed: " + b"9" * 6000, "not YAML (got "),
        (b"seed: !!bool maybe", "not YAML (got "),
        (b"seed: 2020-13-45", "not YAML (got "),
        (b"seed: !!timestamp x", "line 1: not YAML (got "),
        (b"seed: !!python/object:os.system x", "line 1: not YAML (got "),
        (b"seed: 1\n---\nseed: 2", "line 2: not YAML (got "),
        (b"? {a: 1}\n: 1", "line 1: not YAML (got "),
        (RUN.encode("utf-16"), "not YAML (got "),  # DVC reads UTF-8 alone
    ],
)
def test_a_file_that_is_no_params_file_is_named(content, message, tmp_path):
    (path := tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(Mistake) as mistake:
        params.load(path)
    assert str(mistake.value).startswith(f"{path}: ") and message.split(" (got")[0] in str(mistake.value)
    assert len(str(mistake.value).splitlines()) == 1


def test_no_file_names_what_to_do(tmp_path):
    with pytest.raises(Mistake, match=re.escape(f"{tmp_path}/params.yaml: not found. Run in the folder that holds it, or choose")):
        params.load(tmp_path / "params.yaml")


def test_a_folder_of_that_name_is_no_file(tmp_path):
    with pytest.raises(Mistake, match=re.escape(f"{tmp_path}: cannot be read (got Is a directory). Make it a file that you may read.")):
        params.load(tmp_path)


def test_a_byte_order_mark_and_the_line_ends_of_others_are_read(tmp_path):
    (path := tmp_path / "params.yaml").write_bytes(b"\xef\xbb\xbf" + RUN.replace("\n", "\r\n").encode())
    assert params.load(path).seed == 0


NO_NAMES = ("a.b", "a/b", "..", "a b", "'a", 'a"b', "-a", "a-b", "é", "a\u0663", "${a}", "x" * 65)


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
@pytest.mark.parametrize("key", ["backbone.", "head.", "adversarial.", "suites.", "suites.own.attacks."])
def test_a_name_that_dvc_a_file_system_or_mlflow_does_not_take_is_refused(key, name):
    raw = {"suites": {"own": {"attacks": {"fgsm": {}}}}}
    table = raw
    for part in key.split(".")[:-1]:
        table = table.setdefault(part, {})
    table[name] = {"attacks": {"fgsm": {}}}
    assert list(names.mistakes(raw)) == [
        f"{key}{name}: a name is made of letters (a to z), digits and underscores, 1 to 64 of them (got {name!r}). Rename it."
    ]


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "a:b", "a@b", "a'b", "a#b", "a\nb", "-a", "a ", "é", "x" * 256], ids=ascii)
def test_a_registered_name_that_cannot_be_asked_for_is_refused(name):
    with pytest.raises(ValidationError, match="should match pattern"):
        params.Registry(name=name)


def test_what_mlflow_takes_is_taken():
    from mlflow.utils.validation import _validate_model_name

    for name in ("a", "digits-linf-0.15", "my model_2", "x" * 255):
        _validate_model_name(params.Registry(name=name).name)


def test_a_ready_made_suite_is_taken_under_another_name_and_threat(tmp_path):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (file := tmp_path / "params.yaml").write_text(
        text.replace("  standard: {}", "  standard: {}\n  l2: {ready: standard, threat: {norm: l2, eps: 1/2}}")
    )
    suites = params.load(file).suites
    assert suites["l2"].model_dump() == suites["standard"].model_dump() | {"threat": {"norm": "l2", "eps": 0.5}}


def test_no_suite_hides_a_column_of_the_report():
    assert names.COLUMNS == table.MADE + table.MEASURED + table.UNION


@pytest.mark.parametrize("path", ["params.yaml", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "params").glob("*.yaml"))])
def test_the_ready_made_runs_are_right(path):
    settings = params.load(ROOT / path)
    for model in settings.attack.models:
        assert settings.entry(model)


def test_radii_may_be_written_as_grey_levels(tmp_path):
    (path := tmp_path / "params.yaml").write_text(RUN.replace("eps: 0.15", "eps: 8/255"))
    assert params.load(path).threat.eps == 8 / 255


def test_did_you_mean():
    assert did_you_mean("sodf", ["ode", "sodef"]) == "Did you mean 'sodef'?"
    assert did_you_mean("xyz", ["b", "a"]) == "Known: a, b."
    assert did_you_mean("xyz", []) == "Known: none."


def test_only_mistakes_end_without_a_traceback():
    said = []
    with pytest.raises(SystemExit) as end, exit_on_mistake(said.append):
        raise Mistake("a: b (got c). Do d.", "e: f (got g). Do h.")
    assert end.value.code == EXIT_CODE == 2 and said == ["error: a: b (got c). Do d.\n", "error: e: f (got g). Do h.\n"]
    with pytest.raises(ZeroDivisionError), exit_on_mistake():
        _ = 1 / 0


# As a person sees it ----------------------------------------------------------------------------------------------------------------------


def stage(folder: Path, *words: str) -> tuple[int, str]:
    """Exit code and all that a stage printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BASIN_TRACKING": "off", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_a_stage_ends_with_all_messages_code_2_and_no_traceback(tmp_path):
    changes = [CASES[name] for name in ("misspelt key of the split", "negative epochs", "unknown suite", "radius above 1")]
    text = RUN
    for (old, new), _ in changes:
        text = text.replace(old, new, 1)
    (tmp_path / "params.yaml").write_text(text)
    code, said = stage(tmp_path, "basin.stages.prepare")
    assert code == 2
    assert sorted(said.splitlines()) == sorted(f"error: params.yaml: {message}" for _, message in changes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml"]  # nothing begun


def test_a_gpu_asked_for_where_there_is_none(tmp_path):
    (tmp_path / "params.yaml").write_text(RUN.replace("device: auto", "device: cuda"))
    assert stage(tmp_path, "basin.stages.prepare")[0] == 0, "no model is run"
    assert stage(tmp_path, "basin.stages.backbone", "natural") == (
        2,
        "error: params.yaml: device: there is no GPU here that torch can use (got 'cuda'). "
        "Set it to cpu, or to auto for a GPU where there is one.\n",
    )


def test_images_of_the_wrong_shape(tmp_path):
    np.savez(tmp_path / "my.npz", images=np.zeros((8, 64), np.float32), labels=np.zeros(8, np.int64))
    (tmp_path / "params.yaml").write_text(RUN.replace("kind: digits", "kind: npz\n  file: my.npz"))
    assert stage(tmp_path, "basin.stages.prepare") == (
        2,
        "error: my.npz: images: needs shape [n, c, h, w] or [n, h, w], none of them 0 (got [8, 64]). Reshape the array.\n",
    )


def test_a_data_file_that_is_not_there(tmp_path):
    (tmp_path / "params.yaml").write_text(RUN.replace("kind: digits", "kind: npz\n  file: my.npz"))
    code, said = stage(tmp_path, "basin.stages.prepare")
    assert code == 2 and said.startswith("error: data.file: no such file (got my.npz). Give the path of an .npz file")


def test_images_too_small_for_the_backbone():
    """A setting that only the data can show to be wrong."""
    choice = kinds.choose("backbones", {"kind": "convnet", "channels": [4, 4, 4, 4]})
    source = Source(Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])), None, ("a", "b"))
    with pytest.raises(Mistake, match=re.escape("backbone.channels: 4 halvings leave nothing of the image (got shape (1, 8, 8)). Give at")):
        choice.module.Backbone(choice.params, source.train.shape)


def test_a_run_that_is_over_keeps_the_old_name_of_cleaned(tmp_path):
    (path := tmp_path / "params.yaml").write_text(
        RUN.replace("training: {kind: natural}", "augmentation: {kind: tv}\n    training: {kind: natural}", 1)
    )
    with pytest.raises(Mistake, match="Rename this key"):
        params.load(path)
    entry = params.load(path, recorded=True).backbone["natural"]
    assert str(entry.cleaned) == "tv" and entry.augmentation is None
