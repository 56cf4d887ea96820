"""The gate: who becomes champion, on equal terms and beyond chance."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import binomtest

from basin.config.params import Gate
from basin.registry import candidates, gate
from basin.registry.gate import Contender, attacked_by_less, decide
from basin.report.pairs import Difference, paired

PGD = {"kind": "pgd", "steps": 20}
A3 = {"kind": "a3", "rounds": 10, "steps": 25}
QUICK = {"attacks": {"pgd": PGD}, "adaptive": None, "masked": None}


class Version(Contender):
    """Of 100 images the first `held` hold."""

    def __init__(self, name: str, held: int, *, images: range = range(100), suites: Any = None, **other: Any):
        self.name, self.clean, self.masked, self.unresolved, self.measured_on = name, 0.9, None, (), ("linf-0.1", "d")
        self._suites, self._held = suites or {"quick": QUICK}, {i: float(i < held) for i in images}
        self.worst = sum(self._held.values()) / len(images)
        vars(self).update(other)

    @property
    def suites(self) -> Mapping[str, Any]:
        return self._suites

    @property
    def held(self) -> Mapping[int, float]:
        return self._held


DEFAULT = Gate()
OLD = Version("version 1", 50)


def reason(one: Version, champion: Version | None = OLD, settings: Gate = DEFAULT) -> tuple[str, str]:
    decision = decide(one, champion, settings)
    return decision.standing, "; ".join(decision.reasons)


@pytest.mark.parametrize(("k", "l"), [(5, 0), (6, 0), (9, 1), (8, 2), (30, 12), (40, 40), (1, 9), (0, 0)])
def test_beyond_chance_is_what_mcnemars_exact_test_says(k, l):  # noqa: E741
    p = binomtest(k, k + l).pvalue if k + l else 1.0
    assert Difference(k, l, 100).beyond_chance == (p < 0.05)


@pytest.mark.parametrize(("n", "p", "q"), [(300, 0.1, 0.0), (300, 0.473, 0.0), (1000, 0.03, 0.005), (300, 0.3, 0.05), (100, 0.01, 0.01)])
def test_the_interval_holds_the_difference_as_often_as_it_says(n, p, q):
    """Of 2,000 drawn pairs of models, of which p and q of the images are held by one alone."""
    k, l, _ = np.random.default_rng(0).multinomial(n, [p, q, 1 - p - q], 2000).T  # noqa: E741
    inside = [low <= p - q <= high for low, high in (Difference(a, b, n).interval for a, b in zip(k.tolist(), l.tolist()))]
    assert 0.93 < np.mean(inside) <= 1


def test_shares_of_draws_count_for_what_they_are():
    half = {i: 0.5 for i in range(20)}
    whole = paired({i: 1.0 for i in range(20)}, half)
    assert whole.value == 0.5 and (whole.k, whole.l) == (10, 0) and whole.interval[0] > 0
    assert paired({1: 1.0}, {2: 1.0}) is None


def test_a_better_model_replaces_the_champion_and_chance_does_not():
    assert reason(Version("version 2", 60)) == ("champion", "+10.0 points [+3.7, +15.9] on 100 images against version 1")
    assert reason(Version("version 2", 54)) == (
        "challenger",
        "+4.0 points [-0.3, +8.2] on 100 images against version 1: not beyond chance with 95% confidence",
    )
    assert reason(Version("version 2", 50))[0] == "challenger", "a tie stays with the champion"
    assert reason(Version("version 2", 10), None) == ("champion", "the title was vacant: 10.0% in the worst case")


def test_a_flag_that_is_not_resolved_makes_unreliable():
    masked = Version("version 2", 90, unresolved=("gradient-masked",), masked=0.95)
    expected = "not resolved: gradient-masked; the 95.0% under its naive gradient count for nothing"
    assert reason(masked) == reason(masked, None) == ("unreliable", expected)
    assert reason(masked, settings=Gate(accepted_flags=("gradient-masked",)))[0] == "champion"


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("class-not-answered", "it hardly ever answers some of the classes"),
        ("at-chance", "it reads no more of the images than a constant answer does"),
        ("more-outputs-than-classes", "it answers classes that the data do not have"),
    ],
)
def test_what_does_not_read_the_images_is_never_champion_and_the_reason_says_so(flag, words):
    assert gate.unresolved({"all": [flag]}, ["all"], False) == gate.unresolved({"quick": [flag], "all": []}, ["all"], False) == [flag]
    constant = Version("version 2", 85, unresolved=(flag, "stiff-solve"))
    assert reason(constant) == reason(constant, None) == ("unreliable", f"not resolved: {flag} ({words}), stiff-solve")
    assert reason(constant, settings=Gate(accepted_flags=(flag, "stiff-solve")))[0] == "champion"


def test_a_naive_number_counts_for_nothing():
    expected = "worst case 5.0%, version 1 has 50.0%; the 80.0% under its naive gradient count for nothing"
    assert reason(Version("version 2", 5, masked=0.8)) == ("challenger", expected)


def test_below_the_clean_floor_nobody_is_champion():
    assert reason(Version("version 2", 45, clean=0.45), None) == ("challenger", "clean accuracy 45.0% is below the floor of 50.0%")


def test_other_data_or_another_threat_cannot_be_compared():
    expected = "measured on another threat or data than version 1; registry.name gives it a place"
    assert reason(Version("version 2", 90, measured_on=("linf-0.1", "e"))) == ("challenger", expected)


@pytest.mark.parametrize(
    ("mine", "theirs", "missing"),
    [
        ({"a": QUICK}, {"b": QUICK}, []),
        ({"a": QUICK | {"attacks": {"x": PGD, "fgsm": {"kind": "fgsm"}}}}, {"b": QUICK}, []),
        ({"a": QUICK | {"attacks": {"pgd": PGD | {"steps": 5}}}}, {"b": QUICK}, ["without attack pgd of suite b"]),
        ({"a": {"attacks": {"a3": A3 | {"rounds": 16}}}}, {"b": {"attacks": {"a3": A3}}}, []),
        ({"a": {"attacks": {"a3": A3}}}, {"b": {"attacks": {"a3": A3 | {"rounds": 16}}}}, ["without attack a3 of suite b"]),
        ({"a": {"adaptive": {"steps": 200}}}, {"b": {"adaptive": {"steps": 100}}}, []),
        ({"a": {"adaptive": {"steps": 50}}}, {"b": {"adaptive": {"steps": 100}}}, ["without adaptive of suite b"]),
        ({"a": QUICK}, {"b": QUICK | {"masked": {"attack": PGD}}}, ["without masked of suite b"]),
        ({"a": QUICK}, {"a": QUICK, "exchange": {"exchange": True}}, ["without exchange of suite exchange"]),
    ],
)
def test_attacked_by_less_is_an_attack_missing(mine, theirs, missing):
    assert attacked_by_less(Version("2", 60, suites=mine), Version("1", 50, suites=theirs)) == missing


@pytest.mark.parametrize(
    ("last", "blind"),
    [
        ("square", True),
        ("square in full", True),
        ("a3", False),
        ("a3 in full", False),
        ("transfer", False),
        ("apgd_ce: finer steps", False),
    ],
)
def test_a_black_box_attack_that_took_last_is_known_by_its_name(last, blind):
    assert candidates._black_box_last(["margin", "a3", last, "fab"], {"margin", last, ""}) is blind


def test_a_suite_under_a_threat_of_its_own_is_not_asked_for():
    both = {"quick": QUICK, "l2": QUICK | {"attacks": {"fgsm": {"kind": "fgsm"}}, "threat": {"norm": "l2", "eps": 0.5}}}
    assert attacked_by_less(OLD, Version("2", 60, suites=both)) == attacked_by_less(Version("2", 60, suites=both), OLD) == []


def test_attacked_by_less_is_an_image_missing():
    few = Version("version 2", 60, images=range(60))
    assert reason(few) == ("challenger", "attacked by less than version 1: without 40 of its 100 images")
    assert attacked_by_less(OLD, few) == []


@pytest.mark.parametrize(
    ("flags", "adaptive", "last", "left"),
    [
        ({"quick": ["gradient-masked"]}, [], False, ["gradient-masked"]),
        ({"quick": ["gradient-masked", "vanishing-gradient"], "all": []}, ["all"], False, []),
        ({"quick": ["more-steps-help"], "all": []}, ["all"], False, []),
        ({"quick": [], "all": ["more-steps-help"]}, ["all"], False, ["more-steps-help"]),
        ({"quick": ["large-radius-holds"], "all": []}, ["all"], False, ["large-radius-holds"]),
        ({"all": ["black-box-beats-white-box"]}, ["all"], False, []),
        ({"all": ["black-box-beats-white-box"]}, ["all"], True, ["black-box-beats-white-box"]),
    ],
)
def test_what_the_adaptive_suite_answers(flags, adaptive, last, left):
    """docs/flags.md."""
    assert gate.unresolved(flags, adaptive, last) == left


def test_a_gate_out_of_range_is_refused():
    with pytest.raises(ValidationError, match="clean_floor"):
        Gate.model_validate({"clean_floor": 1.5})
