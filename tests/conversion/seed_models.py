"""The models of the predecessors, as they save them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from transformers import DistilBertModel


def settle(module: nn.Module) -> nn.Module:
    """Give batch norms statistics of their own, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(1)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.copy_(0.1 * torch.randn(each.num_features, generator=generator))
            each.running_var.copy_(1 + 0.2 * torch.rand(each.num_features, generator=generator))
    return module.eval()


class FakeNewsBranches(nn.Module):
    """Two branches, each with an MLP, and one logit for a sigmoid."""

    def __init__(self, text: Path) -> None:
        super().__init__()
        self.vision_branch, self.text_branch = nn.Module(), nn.Module()
        self.vision_branch.backbone = models.efficientnet_b0(weights=None)
        self.vision_branch.backbone.classifier = nn.Identity()
        self.vision_branch.projection = self._projection(1280)
        self.text_branch.backbone = DistilBertModel.from_pretrained(text)
        self.text_branch.projection = self._projection(32)
        self.fusion = nn.Sequential(
            *(nn.Linear(48, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.25)),
            nn.Linear(8, 1),
        )

    def _projection(self, width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 24))

    def forward(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        image = self.vision_branch.projection(self.vision_branch.backbone(image))
        hidden = self.text_branch.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        text = self.text_branch.projection(hidden[:, 0])
        return self.fusion(torch.cat([image, text], dim=1))


class FakeNewsFlat(nn.Module):
    """The same with one linear layer a modality, and two logits."""

    def __init__(self, text: Path) -> None:
        super().__init__()
        self.cnn = models.efficientnet_b0(weights=None).features
        self.bert = DistilBertModel.from_pretrained(text)
        self.image_proj, self.text_proj = nn.Linear(1280, 24), nn.Linear(32, 24)
        self.fc1, self.fc2 = nn.Linear(48, 16), nn.Linear(16, 2)

    def forward(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        image = self.image_proj(self.cnn(image).mean([2, 3]))
        text = self.text_proj(self.bert(input_ids, attention_mask).last_hidden_state[:, 0])
        return self.fc2(functional.relu(self.fc1(torch.cat([image, text], dim=1))))


def plant_model(name: str, num_classes: int) -> nn.Module:
    """A torchvision classifier with the program's head."""

    def head(width: int, activation: nn.Module) -> nn.Sequential:
        layers = (nn.Dropout(0.3), nn.Linear(width, 512), activation, nn.Dropout(0.15), nn.Linear(512, num_classes))
        return nn.Sequential(*layers)

    if name == "resnet50":
        model: Any = models.resnet50(weights=None)
        model.fc = head(2048, nn.ReLU())
    elif name == "efficientnet_b0":
        model = models.efficientnet_b0(weights=None)
        model.classifier = head(1280, nn.SiLU())
    else:
        model = models.mobilenet_v3_small(weights=None)
        model.classifier = head(576, nn.Hardswish())
    return settle(model)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        query, key, value = self.qkv(hidden).view(shape).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden))
        return hidden + self.mlp(self.norm2(hidden))


@dataclass
class Config:
    img_size: int = 32
    patch_size: int = 8
    embed_dim: int = 32
    depth: int = 2
    num_heads: int = 2
    text_embed_dim: int = 24
    text_num_heads: int = 3
    text_depth: int = 3
    max_len: int = 12
    vocab_size: int = 400
    temperature: float = 0.07
    batch_size: int = 64
    num_epochs: int = 20
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4


class ImageTransformer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width, count = config.embed_dim, (config.img_size // config.patch_size) ** 2
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, count + 1, width))
        self.blocks = nn.ModuleList(Block(width, config.num_heads, False) for _ in range(config.depth))
        self.norm, self.proj = nn.LayerNorm(width), nn.Linear(width, 16)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch_embed(image).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            hidden = block(hidden)
        return self.proj(self.norm(hidden)[:, 0])


class TextTransformer(nn.Module):
    def __init__(self, config: Config, causal: bool) -> None:
        super().__init__()
        width = config.text_embed_dim
        self.token_embed = nn.Embedding(config.vocab_size, width)
        self.pos_embed = nn.Parameter(torch.randn(1, config.max_len, width))
        self.blocks = nn.ModuleList(Block(width, config.text_num_heads, causal) for _ in range(config.text_depth))
        self.norm, self.proj = nn.LayerNorm(width), nn.Linear(width, 16)

    def forward(self, text: Tensor, ends: Tensor) -> Tensor:
        hidden = self.token_embed(text) + self.pos_embed[:, : text.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return self.proj(self.norm(hidden)[torch.arange(len(text)), ends])


class ClipFromScratch(nn.Module):
    def __init__(self, config: Config, *, causal: bool = False) -> None:
        super().__init__()
        self.visual, self.text = ImageTransformer(config), TextTransformer(config, causal)
        self.temperature = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))

    def forward(self, image: Tensor, text: Tensor, ends: Tensor) -> Tensor:
        image, text = (
            functional.normalize(self.visual(image), dim=-1),
            functional.normalize(self.text(text, ends), dim=-1),
        )
        return image @ text.T * self.temperature.exp()


class ClinicalVision(nn.Module):
    """A backbone without its head, and its pooling."""

    def __init__(self, name: str, pooling: str) -> None:
        super().__init__()
        whole: Any = models.get_model(name, weights=None)
        if name.startswith("resnet"):
            self.model: Any = nn.Sequential(*list(whole.children())[:-2])
        elif name.startswith("vit"):
            whole.heads = nn.Identity()
            self.model = whole
        else:
            self.model = whole.features
        self.pooling = pooling

    def forward(self, image: Tensor) -> Tensor:
        features = self.model(image)
        if self.pooling == "cls":
            return features
        parts = {"avg": features.mean([2, 3]), "max": features.amax([2, 3])}
        return torch.cat([parts["avg"], parts["max"]], dim=1) if self.pooling == "concat" else parts[self.pooling]


class ClinicalClassifier(nn.Module):
    """Projections, fusion and classifier, with the classifiers of single modalities."""

    def __init__(self, image_width: int, text_width: int, strategy: str, hidden: list[int]) -> None:
        super().__init__()
        self.strategy = strategy
        self.vision_projection = nn.Sequential(
            nn.Linear(image_width, 20), nn.ReLU(), nn.Dropout(0.2), nn.Linear(20, 16)
        )
        self.text_projection = nn.Linear(text_width, 16)
        width = 16 if strategy == "weighted_sum" else 32
        if strategy == "weighted_sum":
            self.alpha_vision, self.alpha_text = nn.Parameter(torch.tensor(0.9)), nn.Parameter(torch.tensor(0.1))
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(0.3)]
            width = size
        self.final_classifier = nn.Sequential(*layers, nn.Linear(width, 3)) if hidden else nn.Linear(width, 3)
        self.aux_vision_classifier, self.aux_text_classifier = nn.Linear(16, 3), nn.Linear(16, 3)
        self.register_buffer("class_weights_tensor", torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        image = functional.normalize(self.vision_projection(image), dim=1)
        text = functional.normalize(self.text_projection(text), dim=1)
        if self.strategy == "weighted_sum":
            weights = torch.softmax(torch.stack([self.alpha_vision, self.alpha_text]), dim=0)
            return self.final_classifier(weights[0] * image + weights[1] * text)
        return self.final_classifier(torch.cat([image, text], dim=1))
