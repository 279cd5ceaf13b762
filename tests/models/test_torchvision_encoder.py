"""torchvision's classifiers as encoders."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import MobileNet_V3_Small_Weights, get_model
from transformers import AutoModel

from mmhf.errors import InputError, UnreachableError
from mmhf.models.backbones import image_statistics, load_encoder, load_encoder_config
from mmhf.models.encoders import describe_vision
from mmhf.models.layer_groups import layer_groups
from mmhf.models.torchvision_encoder import TorchvisionConfig, TorchvisionEncoder, last_layer

SIZES = {"vit_b_32": 224}
ARCHITECTURES = ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "squeezenet1_1"]


@pytest.mark.parametrize(
    "name",
    [
        *ARCHITECTURES[:-1],
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("densenet121", "vgg11_bn", "swin_t", "vit_b_32")),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("efficientnet_b0", "convnext_tiny", "mobilenet_v2")),
    ],
)
def test_it_is_torchvisions_classifier_up_to_its_last_layer(name):
    torch.manual_seed(0)
    whole = get_model(name, weights=None).eval()
    encoder = TorchvisionEncoder(TorchvisionConfig(name)).eval()
    owner, _, leaf = last_layer(whole).rpartition(".")
    whole.get_submodule(owner).register_module(leaf, nn.Identity())
    encoder.model.load_state_dict(whole.state_dict())
    images = torch.randn(2, 3, *[SIZES.get(name, 64)] * 2)
    with torch.no_grad():
        output = encoder(images, output_hidden_states=True)
        assert torch.equal(output.pooler_output, whole(images))
        assert encoder(images, do_pooling=False).pooler_output is None
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    groups = layer_groups(encoder)
    listed = [parameter for names in groups.values() for parameter in names]
    assert sorted(listed) == sorted(parameter for parameter, _ in encoder.named_parameters())
    assert describe_vision(encoder.config, "pooler").width == output.pooler_output.shape[1]


def test_a_config_brings_it_back():
    config = load_encoder_config("torchvision/resnet18")
    again = TorchvisionConfig.from_dict(config.to_dict())
    assert (again.architecture, again.image_size, again.patch_size) == ("resnet18", 224, None)
    assert isinstance(AutoModel.from_config(again), TorchvisionEncoder)
    assert image_statistics("torchvision/resnet18", config).mean == (0.485, 0.456, 0.406)
    assert load_encoder_config("torchvision/vit_b_16").patch_size == 16


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/resnet51", "did you mean torchvision/resnet50"),
        ("torchvision/resnet50.V9", "resnet50 has IMAGENET1K_V1, IMAGENET1K_V2"),
        ("torchvision/squeezenet1_1", "cannot be an encoder"),
    ],
)
def test_what_cannot_be_is_named(name, message):
    with pytest.raises((InputError, ValueError), match=message):
        describe_vision(load_encoder_config(name), "avg")


def test_pretrained_weights_come_from_torchs_own_cache(tmp_path, monkeypatch):
    """Nothing is fetched: the file that torchvision would fetch lies where it would be put."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = MobileNet_V3_Small_Weights.DEFAULT
    seed = get_model("mobilenet_v3_small", weights=None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(seed.state_dict(), folder / weights.url.rpartition("/")[2])
    config = load_encoder_config("torchvision/mobilenet_v3_small")
    encoder = load_encoder("torchvision/mobilenet_v3_small", config, pretrained=True)
    assert torch.equal(encoder.model.features[0][0].weight, seed.features[0][0].weight)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", _offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", _offline)
    with pytest.raises(UnreachableError, match=r"torchvision/resnet18: no weights found"):
        load_encoder("torchvision/resnet18", load_encoder_config("torchvision/resnet18"), pretrained=True)


def _offline(*args, **kwargs):
    raise OSError("no network")
