"""Settings are read without what computes, and are then those of the kind's own file."""

import pytest

from basin.config import kinds
from basin.errors import Mistake

KINDS = [(family, kind) for family in kinds.FAMILIES for kind in kinds.kinds(family)]


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_the_settings_of_a_kind_are_those_of_its_file(family, kind):
    light, whole = kinds.tables(family, kind), kinds.find(family, kind)
    assert light.Params is not whole.Params and light.Params.model_json_schema() == whole.Params.model_json_schema()
    for name in ("BLACK_BOX", "NEEDS_TWIN", "NEEDS_FEATURES"):
        assert getattr(light, name, False) == getattr(whole, name, False)
    if family == "heads":
        assert hasattr(light, "schedules") == hasattr(whole, "schedules")


def test_a_choice_computes_with_the_files_own_settings():
    choice = kinds.choose("attacks", {"kind": "transfer", "attacks": [{"kind": "apgd", "loss": "dlr"}]})
    assert isinstance(choice.params, choice.module.Params) and choice.params is choice.params
    (inner,) = choice.params.attacks
    assert isinstance(inner.params, inner.module.Params) and inner.params.loss == "dlr" and inner.params.steps == 100
    assert str(inner) == "apgd (loss dlr)" and choice.tree()["attacks"][0]["steps"] == 100


def test_an_unknown_kind_is_named():
    with pytest.raises(Mistake, match=r"attacks: unknown kind \(got 'pdg'\)\. Did you mean 'pgd'\?"):
        kinds.find("attacks", "pdg")
