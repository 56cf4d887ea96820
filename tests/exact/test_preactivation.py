"""Wide and pre-activated residual nets: their published sizes, their equations, and torchvision's models up to the last layer."""

import sys

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch.nn.functional import conv2d, relu

from basin.errors import Mistake
from basin.methods.backbones import preact_resnet, timm, torchvision, wide_resnet
from basin.models.preactivation import Block
from basin.randomness import construct


@pytest.mark.parametrize(
    ("module", "params", "published"),
    [
        (wide_resnet, {}, 36_479_194),  # WRN-28-10: the paper's 36.5 million
        (wide_resnet, {"depth": 34}, 46_160_474),  # WRN-34-10, as the tables of robust accuracy count it
        (wide_resnet, {"depth": 16, "widen": 4}, 2_748_890),  # the paper: 2.7 million
        (preact_resnet, {}, 11_172_170),  # 18 layers, with the normalisation after the last block
        (preact_resnet, {"depth": 110}, 1_730_522),  # the paper: 1.7 million
    ],
)
def test_parameters_are_those_that_were_published(module, params, published):
    with torch.device("meta"):
        backbone = module.Backbone(module.Params(**params), (3, 32, 32))
        head = torch.nn.Linear(backbone.width, 10)
    assert sum(p.numel() for part in (backbone, head) for p in part.parameters()) == published


@pytest.mark.parametrize(("c_out", "stride"), [(4, 1), (6, 2)])
def test_a_block_is_its_equation(c_out, stride):
    with construct(0, "block"):
        block = Block(4, c_out, stride).double().eval()
        x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        for layer in (block.first, block.second):
            layer.running_mean.copy_(torch.linspace(-1, 1, layer.num_features))
            layer.weight.copy_(torch.linspace(0.5, 2, layer.num_features))
        one, two = (convolution.weight for convolution in block.convolutions)
        a = relu(block.first(x))
        z = conv2d(relu(block.second(conv2d(a, one, stride=stride, padding=1))), two, padding=1)
        expected = z + (x if block.shortcut is None else conv2d(a, block.shortcut.weight, stride=stride))
        torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
    assert (block.shortcut is None) == (stride == 1)


def test_a_depth_that_is_not_of_whole_blocks_is_refused():
    with pytest.raises(ValidationError, match=r"the depth is 6k \+ 4\. Give 10, 16, 22, 28, 34 or 40\."):
        wide_resnet.Params(depth=30)


NAMES = ["squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "regnet_y_400mf"]


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "vit_b_16", "swin_t"))])
def test_the_features_are_what_torchvisions_last_layer_sees(name):
    size = 224 if name == "vit_b_16" else 64
    with construct(0, "torchvision"):
        own = torchvision.network(name).eval()
    backbone = torchvision.Backbone(torchvision.Params(name=name), (3, size, size)).eval()
    backbone.load_state_dict({f"network.{n}": t for n, t in own.state_dict().items() if backbone.named(n).startswith("backbone")})
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    seen = []
    own.get_submodule(backbone.last).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        own(x)
        z = backbone(x)
        assert z.shape == (2, backbone.width) == (2, seen[0].shape[1])
        if name != "squeezenet1_1":  # which averages after its last layer
            assert torch.equal(z, seen[0])
    assert backbone.named(f"{backbone.last}.weight") == "head.classifier.weight"


def test_dropout_draws_nothing():
    backbone = torchvision.Backbone(torchvision.Params(name="mobilenet_v3_small"), (1, 32, 32)).train()
    x = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    assert torch.equal(backbone(x), backbone(x)) and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("resnet81", (3, 32, 32), r"torchvision has no such classifier \(got 'resnet81'\)\. Did you mean 'resnet18'\?"),
        ("resnet18", (2, 32, 32), r"resnet18 takes grey or colour images \(got shape \(2, 32, 32\)\)\. Choose another kind"),
        (
            "squeezenet1_1",
            (3, 2, 2),
            r"does not take these images \(got shape \(3, 2, 2\): RuntimeError.*\)\. Choose another name\.",
        ),
    ],
)
def test_what_torchvision_cannot_do_is_said(name, shape, text):
    with pytest.raises(Mistake, match=text):
        torchvision.Backbone(torchvision.Params(name=name), shape)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv4_conv_small_050"])
def test_the_features_are_what_timms_last_layer_sees(name):
    with construct(0, "timm"):
        own = timm.library().create_model(name).eval()
    backbone = timm.Backbone(timm.Params(name=name), (3, 160, 160)).eval()
    backbone.load_state_dict({f"network.{n}": t for n, t in own.state_dict().items() if backbone.named(n).startswith("backbone")})
    last = own.get_submodule(own.pretrained_cfg["classifier"])
    x = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(last(backbone(x)), own(x)) and backbone.width == last.in_features
    assert backbone.named(f"{own.pretrained_cfg['classifier']}.weight") == "head.classifier.weight"
    before = torch.get_rng_state()
    assert torch.equal(backbone.train()(x[:, :1]), backbone(x[:, :1])) and torch.equal(torch.get_rng_state(), before)


def test_what_timm_cannot_do_is_said(monkeypatch):
    with pytest.raises(Mistake, match=r"^backbone\.name: timm has no such classifier \(got 'resnet81'\)\. Did you mean 'resnet18'\?$"):
        timm.Backbone(timm.Params(name="resnet81"), (3, 32, 32))
    with pytest.raises(
        Mistake, match=r"^backbone\.name: vit_tiny_patch16_224 does not take these images \(got shape \(3, 32, 32\): AssertionError"
    ):
        timm.Backbone(timm.Params(name="vit_tiny_patch16_224"), (3, 32, 32))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Mistake, match=r"^backbone\.kind: timm is not installed \(got kind timm\)\. Run: pip install 'basin\[timm\]'\.$"):
        timm.Backbone(timm.Params(name="resnet18"), (3, 32, 32))


def test_timms_weights_come_with_their_normalisation(tmp_path, monkeypatch):
    """From the hub's own cache, which a download fills: there may be no network here."""
    import huggingface_hub

    given = timm.library().create_model("test_resnet")
    save_file(given.state_dict(), file := tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *words: asked.append(words) or file)
    began = timm.start(timm.Params(name="test_resnet", pretrained=True))
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")] and timm.start(timm.Params(name="test_resnet")) is None
    assert (began.mean, began.std) == ([0.5] * 3, [0.5] * 3) and torch.equal(began.tensors["fc.weight"], given.fc.weight)
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        Mistake, match=r"^backbone\.pretrained: nothing is published for this model \(got resnetaa34d\)\. Choose another name\.$"
    ):
        timm.start(timm.Params(name="resnetaa34d", pretrained=True))


def test_pretrained_weights_are_fetched_where_asked_for_alone():
    assert torchvision.start(torchvision.Params(name="resnet18")) is None
    with pytest.raises(Mistake, match=r"not of a model with further classifiers \(got googlenet\)"):
        torchvision.start(torchvision.Params(name="googlenet", pretrained=True))
