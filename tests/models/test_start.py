"""Weights of one's own: what fits is taken as it is, what does not is said by name."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from small import classifier

from basin.config.kinds import choose
from basin.config.start import Weights
from basin.errors import Mistake
from basin.models import start
from basin.models.recipe import digest


@pytest.fixture
def wrote(tmp_path):
    """`wrote(tensors, ...)`: what a run asks for that starts from a file of them."""

    def write(tensors, **more) -> Weights:
        save_file(tensors, path := tmp_path / "mine.safetensors")
        return Weights(file=str(path), sha256=digest(path.read_bytes()), **more)

    return write


def same(one, other) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_classifier_of_basin_gives_backbone_head_and_normalisation(wrote):
    given, mine = classifier(seed=0), classifier(seed=1)
    began = start.read(wrote(given.state_dict()))
    assert (began.mean, began.std) == (pytest.approx([0.3]), pytest.approx([0.4]))
    start.put(began, mine)
    assert same(given.backbone, mine.backbone) and same(given.head, mine.head)


def test_a_backbones_own_tensors_leave_the_head(wrote):
    given, mine, fresh = classifier(seed=0), classifier(seed=1), classifier(seed=1)
    began = start.read(wrote(given.backbone.state_dict(), mean=[0.1], std=[0.2]))
    assert (began.mean, began.std) == ([0.1], [0.2])
    start.put(began, mine)
    assert same(given.backbone, mine.backbone) and same(fresh.head, mine.head)


@pytest.mark.parametrize("classes", [10, 1000])
def test_a_torchvision_state_is_taken_by_its_own_names(classes, wrote):
    """Its classifier too, if it has as many classes."""
    from torchvision import models

    given = models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=classes)
    mine = classifier({"kind": "torchvision", "name": "shufflenet_v2_x0_5"})
    state = {name: tensor.contiguous() for name, tensor in given.state_dict().items() if not name.endswith("num_batches_tracked")}
    start.put(start.read(wrote(state)), mine)
    assert torch.equal(mine.backbone.network.conv1[0].weight, given.conv1[0].weight)
    assert torch.equal(mine.head.classifier.weight, given.fc.weight) == (classes == 10)


def test_pretrained_weights_come_with_their_normalisation(tmp_path, monkeypatch):
    """From torchvision's own cache, which a download fills: there may be no network here."""
    from torchvision import models

    name = "shufflenet_v2_x0_5"
    given = models.get_model(name, weights=None)
    (cache := tmp_path / "hub/checkpoints").mkdir(parents=True)
    cached = cache / models.get_model_weights(name).DEFAULT.url.rpartition("/")[2]
    torch.save(given.state_dict(), cached)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    choice = choose("backbones", {"kind": "torchvision", "name": name, "pretrained": True})
    with pytest.raises(Mistake, match=rf"^{cached}: not the file that torchvision published \(got another digest than .*\)\. Remove it\.$"):
        choice.module.start(choice.params)
    monkeypatch.setattr(choice.module, "check_cached", lambda url: None)  # these are not the published ones
    began, mine = choice.module.start(choice.params), classifier(choice.tree())
    assert began.mean == [0.485, 0.456, 0.406] and began.std == [0.229, 0.224, 0.225]
    start.put(began, mine)
    assert torch.equal(mine.backbone.network.conv1[0].weight, given.conv1[0].weight)


def test_what_does_not_fit_is_said_by_name(wrote):
    state = classifier().backbone.state_dict()
    name, *_ = state
    other = state | {name: torch.zeros(3), "more": torch.zeros(1)}
    del other[list(state)[1]]
    with pytest.raises(Mistake) as error:
        start.put(start.read(wrote(other)), classifier())
    assert f"lacks {list(state)[1]}; has more, which the backbone has not; {name} is (3,) for (8, 1, 3, 3)" in str(error.value)
    with pytest.raises(Mistake, match=r"holds weights that are not finite \(got some in backbone\.layers"):
        start.put(start.read(wrote(state | {name: torch.full_like(state[name], torch.nan)})), classifier())


def test_another_file_than_was_asked_for_is_refused(wrote, tmp_path):
    asked = wrote({"a": torch.zeros(1)})
    other = asked.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(Mistake, match=rf"not the file that params.yaml asks for \(got SHA-256 {asked.sha256}\)\. Write that under weights"):
        start.read(other)
    (tmp_path / "mine.safetensors").write_text("nothing", encoding="utf-8")
    with pytest.raises(Mistake, match=r"mine\.safetensors: cannot be read \(got .*\)\. Name a safetensors file\."):
        start.read(asked)
    with pytest.raises(ValidationError):
        Weights(file="a", sha256="abc")
