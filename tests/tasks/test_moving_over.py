"""Each key that docs/moving-over.md names does what the page says, in what the recipe becomes."""

from __future__ import annotations

import argparse
import csv
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoTokenizer, BertConfig, BertModel

from mmhf.cli.arguments import VERBS
from mmhf.errors import InputError
from mmhf.recipe import load_recipe
from mmhf.tasks import task_of
from mmhf.training.arguments import build_stage_plan, training_arguments
from mmhf.training.run_folder import choose_run_dir
from mmhf.training.tracking import _settings

PAGE = Path(__file__).parents[2] / "docs" / "moving-over.md"
FUSION, PLANTS, CAPTIONER, CLIP = (
    "image-text-classification",
    "image-classification",
    "image-captioning",
    "contrastive",
)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


class Built:
    """What a recipe becomes, each part of it when it is asked for."""

    def __init__(self, file: Path, overrides: list[str]) -> None:
        self.folder = str(file.parent / "run")
        self.resolved = load_recipe(file, overrides)
        self.recipe: Any = self.resolved.recipe
        self.task: Any = task_of(self.recipe)

    @functools.cached_property
    def args(self) -> Any:
        return training_arguments(self.recipe, self.folder, has_validation=True)

    @functools.cached_property
    def data(self) -> Any:
        return self.task.load_data()

    @functools.cached_property
    def processor(self) -> Any:
        return self.task.build_processor(self.data)

    @functools.cached_property
    def model(self) -> Any:
        return self.task.build_model(self.data, processor=self.processor, device="meta")

    @functools.cached_property
    def plan(self) -> Any:
        return build_stage_plan(self.model, self.recipe, self.args, self.task.num_train_rows(self.data))

    @functools.cached_property
    def trainer(self) -> Any:
        model = self.task.build_model(self.data, processor=self.processor)
        # Arguments of its own: those that were made in between have put accelerate's state back.
        args = training_arguments(self.recipe, self.folder, has_validation=True)
        plan = build_stage_plan(model, self.recipe, args, self.task.num_train_rows(self.data))
        return self.task.make_trainer(self.data, plan=plan, args=args, processor=self.processor)

    def rows(self, split: str) -> int:
        return int(self.data.num_rows(split))

    def all_rows(self) -> int:
        return sum(self.rows(split) for split in self.data.splits)

    def first(self, column: str) -> Any:
        table = self.data.splits["train"]
        return table.with_format("arrow").select_columns([column])[0][column][0].as_py()

    def texts(self) -> list[str]:
        return [text for table in self.data.splits.values() for text in table["text"][:]]

    def pictures(self) -> list[bytes]:
        """Some training images as they may be changed."""
        change = self.task.random_changes(self.recipe.data.augment, self.data, 0).augmentation
        torch.manual_seed(0)
        return [np.asarray(PICTURE if change is None else change(PICTURE)).tobytes() for _ in range(4)]

    def rates(self) -> list[dict[str, float]]:
        return [self.plan.learning_rates(step) for step in range(self.plan.num_steps)]

    def trained(self) -> set[str]:
        """The parts of the model that train in the first stage."""
        return {group.partition(".")[0] for group in self.plan.stages[0].curves}

    def optimizers(self) -> set[str]:
        """Kinds of the optimizers of the first stage."""
        vars(self).pop("trainer", None)
        self.trainer.create_optimizer()
        return {choice.optimizer_class.__name__ for choice in self.trainer.plan.optimizer_choices(0).values()}

    def option(self, name: str) -> Any:
        """An option of the optimizer, for weights that decay."""
        vars(self).pop("trainer", None)  # one of an earlier test has lost accelerate's state
        groups = self.trainer.create_optimizer().param_groups
        value = next(group for group in groups if group["decays"])[name]
        return tuple(value) if isinstance(value, list) else value


class Effect(NamedTuple):
    """What overrides change.

    Attributes:
        overrides (`list[str]`): The changes; `DIR` stands for the data's folder.
        probe (`Callable`): What is looked at.
        expected (`Any`): What it then is, and otherwise is not; absent: anything else than otherwise.
        given (`list[str]`): Overrides that both have.
    """

    overrides: list[str]
    probe: Callable[[Built], Any]
    expected: Any = None
    given: list[str] = []


def argument(name: str, value: str, expected: Any, *more: str) -> Effect:
    """A field of TrainingArguments."""
    return Effect([f"training.{name}={value}", *more], lambda built: getattr(built.args, name), expected)


def recipe_value(key: str, value: str, expected: Any, *given: str) -> Effect:
    """A value that only the whole run acts on; the tests of that run do the rest."""

    def probe(built: Built) -> Any:
        values: Any = built.recipe
        for part in key.split("."):
            values = getattr(values, part, None) if not isinstance(values, dict) else values.get(part)
        return values

    return Effect([f"{key}={value}"], probe, expected, list(given))


def changes_model(*overrides: str) -> Effect:
    """Layers or settings of the model."""
    return Effect(list(overrides), lambda built: (str(built.model), built.model.config.to_dict()))


def of_model(override: str, attribute: str, expected: Any, *given: str) -> Effect:
    """A value of the model's configuration."""
    return Effect([override], lambda built: built.model.config.to_dict()[attribute], expected, list(given))


def augments(change: str) -> Effect:
    return Effect([f"data.augment.{change}"], lambda built: built.pictures())


def schedules(*overrides: str, given: tuple[str, ...] = ()) -> Effect:
    return Effect(list(overrides), lambda built: built.rates(), None, list(given))


def optimizes(override: str, option: str, expected: Any, *given: str) -> Effect:
    return Effect([override], lambda built: built.option(option), expected, list(given))


def loses(override: str, attribute: str, expected: Any = None) -> Effect:
    return Effect([override], lambda built: getattr(built.task.loss_settings(built.data), attribute), expected)


def stage(**values: object) -> str:
    """One stage of two epochs."""
    return f"stages=[{yaml.safe_dump({'name': 'a', 'epochs': 2, **values}, default_flow_style=True).strip()}]"


def refused(built: Built) -> str | None:
    """Why the recipe cannot be trained here."""
    try:
        built.args, built.data  # noqa: B018
    except InputError as error:
        return str(error).partition(":")[0]
    return None


def groups_torn(built: Built) -> bool:
    """Whether rows of one site are in several splits."""
    sites = [
        {int(name) % 10 for name in built.data.splits[split]["id"][:]} for split in ("train", "validation", "test")
    ]
    return bool(sites[0] & sites[1] or sites[0] & sites[2] or sites[1] & sites[2])


def sampled(built: Built) -> list[float]:
    weights = built.task.torch_dataset(built.data, "train").weights
    return [] if weights is None else [round(float(weight), 6) for weight in weights]


FLICKR, FILES = "data={source: flickr30k, path: DIR/flickr}", ["data.path=null", "data.train=DIR/t.csv"]
SCHEDULED = stage(train="all", schedule="cosine", warmup=0.1)
FOLDER = ["data={source: image_folder, path: DIR/plants}", "data.find_duplicates=never"]
VERSIONED = ["data.path=DIR/{version}/t.csv", "data.image_root=DIR/imgs", "data.version=v1"]
EFFECTS: dict[str, Effect] = {
    "training.output_dir": Effect(
        ["training.output_dir=DIR/mine"], lambda built: choose_run_dir(built.resolved, resume=False).name, "mine"
    ),
    "training.run_name": argument("run_name", "trial", "trial"),
    "training.report_to": argument("report_to", "tensorboard", ["tensorboard"]),
    "training.project": Effect(
        ["training.project=derm"],
        lambda built: _settings(built.args, Path("run"), "x").get("WANDB_PROJECT"),
        "derm",
    ),
    "training.num_train_epochs": Effect(["training.num_train_epochs=7"], lambda built: built.plan.num_epochs, 7),
    "training.per_device_train_batch_size": Effect(
        ["training.per_device_train_batch_size=2"], lambda built: built.plan.num_steps
    ),
    "training.learning_rate": schedules("training.learning_rate=3e-4"),
    "training.weight_decay": optimizes("training.weight_decay=0.2", "weight_decay", 0.2),
    "training.dataloader_num_workers": argument("dataloader_num_workers", "3", 3),
    "training.dataloader_prefetch_factor": argument(
        "dataloader_prefetch_factor", "4", 4, "training.dataloader_num_workers=3"
    ),
    "training.seed": argument("seed", "7", 7),
    "training.full_determinism": argument("full_determinism", "true", True),
    "training.bf16": argument("bf16", "true", True, "training.use_cpu=true"),
    "training.fp16": Effect(["training.fp16=true"], refused, "training.fp16"),  # this test's CPU cannot
    "training.use_cpu": argument("use_cpu", "true", True),
    "training.max_grad_norm": argument("max_grad_norm", "0.25", 0.25),
    "training.metric_for_best_model": argument("metric_for_best_model", "loss", "loss"),
    "training.load_best_model_at_end": argument("load_best_model_at_end", "true", True),
    "training.save_total_limit": argument("save_total_limit", "null", None),
    "training.resume_from_checkpoint": argument("resume_from_checkpoint", "DIR/c", "DIR/c"),
    "init_from": recipe_value("init_from", "releases/fakeddit@v1.6", "releases/fakeddit@v1.6"),
    "release.version": recipe_value("release", "{repo: r, version: '1.8'}", None),
    "tracking.mlflow_uri": Effect(
        ["tracking.mlflow_uri=http://host:5000"],
        lambda built: _settings(built.args, Path("run"), built.recipe.tracking.mlflow_uri)["MLFLOW_TRACKING_URI"],
        "http://host:5000",
    ),
    "optimizer.name": Effect(["optimizer.name=sgd"], lambda built: built.optimizers(), {"SGD"}),
    "optimizer.betas": optimizes("optimizer.betas=[0.8, 0.9]", "betas", (0.8, 0.9), "optimizer={name: adamw}"),
    "optimizer.eps": optimizes("optimizer.eps=1e-5", "eps", 1e-5, "optimizer={name: adamw}"),
    "optimizer.momentum": optimizes("optimizer.momentum=0.8", "momentum", 0.8, "optimizer={name: sgd}"),
    "optimizer.weight_decay": optimizes("optimizer.weight_decay=0.3", "weight_decay", 0.3, "optimizer={name: adamw}"),
    "early_stopping.patience": Effect(
        ["early_stopping.patience=3"],
        lambda built: built.trainer.stages.early_stopping.patience,
        3,
        ["early_stopping={patience: 9}"],
    ),
    "early_stopping.min_delta": Effect(
        ["early_stopping.min_delta=0.25"],
        lambda built: built.trainer.stages.early_stopping.min_delta,
        0.25,
        ["early_stopping={patience: 9}"],
    ),
    "checkpoints.every_epochs": Effect(
        ["checkpoints.every_epochs=5"], lambda built: built.trainer.stages.save_every, 5
    ),
    "evaluation.every_epochs": Effect(
        ["evaluation.every_epochs=3"], lambda built: built.trainer.stages.evaluate_every, 3
    ),
    "stages[].train": Effect(["stages.0.train=[head]"], lambda built: built.trained(), {"head"}, [stage()]),
    "stages[].epochs": Effect(["stages.0.epochs=5"], lambda built: built.plan.num_epochs, 5, [stage()]),
    "stages[].learning_rate": schedules("stages.0.learning_rate={all: 1e-4, vision: 1e-5}", given=(stage(),)),
    "stages[].schedule": schedules("stages.0.schedule=cosine", given=(stage(),)),
    "stages[].warmup": schedules("stages.0.warmup=0.5", given=(SCHEDULED,)),
    "stages[].min_lr": schedules("stages.0.min_lr=1e-7", given=(SCHEDULED,)),
    "stages[].decay_rate": schedules("stages.0.decay_rate=0.9", given=(stage(schedule="step"),)),
    "stages[].decay_every": schedules("stages.0.decay_every=2", given=(stage(schedule="step"),)),
    "stages[].cycle_beta1": Effect(
        ["stages.0.cycle_beta1=[0.85, 0.95]"],
        lambda built: built.plan.cycled_beta1(0),
        None,
        [stage(schedule="one_cycle", warmup=0.1)],
    ),
    "stages[].optimizer": Effect(
        ["stages.0.optimizer={name: sgd}"], lambda built: built.optimizers(), {"SGD"}, [stage()]
    ),
    "data.path": Effect(["data.path=DIR/other.csv"], lambda built: built.all_rows(), 20),
    "data.train": Effect(["data.train=DIR/other.csv"], lambda built: built.rows("train"), 20, FILES),
    "data.validation": Effect(
        ["data.validation=DIR/other.csv"],
        lambda built: built.rows("validation"),
        20,
        [*FILES, "data.validation=DIR/t.csv"],
    ),
    "data.test": Effect(
        ["data.test=DIR/other.csv"], lambda built: built.rows("test"), 20, [*FILES, "data.test=DIR/t.csv"]
    ),
    "data.image_root": Effect(
        ["data.image_root=DIR/imgs2"], lambda built: Path(built.first("image")["path"]).parent.name, "imgs2"
    ),
    "data.limit": Effect(["data.limit=5"], lambda built: built.rows("train"), 5),
    "data.columns.text": Effect(
        ["data.columns.text=title"], lambda built: built.first("text").partition(" ")[0], "title"
    ),
    "data.columns.image": Effect(
        ["data.columns.image=photo"], lambda built: Path(built.first("image")["path"]).name[0], "p"
    ),
    "data.columns.label": Effect(["data.columns.label=kind"], lambda built: built.data.label_names, ["x", "y"]),
    "data.split.validation": Effect(["data.split.validation=0.5"], lambda built: built.rows("validation"), 20),
    "data.split.test": Effect(["data.split.test=0.3"], lambda built: built.rows("test"), 12),
    "data.split.seed": Effect(["data.split.seed=7"], lambda built: built.data.splits["test"]["id"][:]),
    "data.split.group_by": Effect(
        ["data.split.group_by=site", "data.split.stratify=false"], groups_torn, False, ["data.columns.id=number"]
    ),
    "data.image_size": Effect(
        ["data.image_size=48"],
        lambda built: tuple(built.processor(images=[PICTURE], return_tensors="pt")["pixel_values"].shape[-2:]),
        (48, 48),
    ),
    "data.max_length": Effect(
        ["data.max_length=6"], lambda built: built.processor(text=["a dog " * 30])["input_ids"].shape[1], 6
    ),
    "data.version": Effect(["data.version=v2"], lambda built: built.all_rows(), 20, VERSIONED),
    "data.missing": Effect(
        ["data.missing=[No * information]"], lambda built: "No age information" in built.texts(), False
    ),
    "data.mean_std": Effect(
        ["data.mean_std=computed"],
        lambda built: [round(each, 3) for each in built.processor.image_processor.image_mean],
    ),
    "data.cloud.cache_dir": recipe_value("data.cloud.cache_dir", "DIR/cache", "DIR/cache"),
    "data.cloud.max_bytes": recipe_value("data.cloud.max_bytes", "1000000", 1_000_000),
    "data.filters.min_samples_per_label": Effect(
        ["data.filters.min_samples_per_label=10"],
        lambda built: built.data.label_names,
        ["often", "usual"],
        ["data.columns.label=seldom", "data.split.stratify=false"],
    ),
    "data.filters.min_samples_per_split": Effect(
        ["data.filters.min_samples_per_split=30"], refused, None, ["data.filters.min_samples_per_label=2"]
    ),
    "data.filters.datasets": Effect(["data.filters.datasets=[derm1m]"], lambda built: built.all_rows(), 20),
    "data.filters.sub_sources": Effect(
        ["data.filters.sub_sources={derm1m: [pubmed]}"], lambda built: built.all_rows(), 30
    ),
    "data.filters.has_text": Effect(["data.filters.has_text=true"], lambda built: built.all_rows(), 39),
    "data.filters.fraction": Effect(["data.filters.fraction=0.5"], lambda built: built.all_rows(), 20),
    "data.filters.where": Effect(["data.filters.where={site: {max: 4}}"], lambda built: built.all_rows(), 20),
    "data.augment.horizontal_flip": augments("horizontal_flip=1.0"),
    "data.augment.vertical_flip": augments("vertical_flip=1.0"),
    "data.augment.rotation": augments("rotation=45"),
    "data.augment.grayscale": augments("grayscale=1.0"),
    "data.augment.color_jitter.brightness": augments("color_jitter.brightness=0.9"),
    "data.augment.color_jitter.contrast": augments("color_jitter.contrast=0.9"),
    "data.augment.color_jitter.saturation": augments("color_jitter.saturation=0.9"),
    "data.augment.color_jitter.hue": augments("color_jitter.hue=0.4"),
    "data.augment.affine.scale": augments("affine.scale=[0.3, 0.4]"),
    "data.augment.affine.translate": augments("affine.translate=[0.4, 0.4]"),
    "model.embedding_dim": of_model("model.embedding_dim=24", "embedding_dim", 24),
    "model.fusion.hidden_dims": of_model("model.fusion.hidden_dims=[12]", "hidden_dims", [12]),
    "model.fusion.dropout": changes_model("model.fusion.dropout=0.25"),
    "model.fusion.activation": changes_model("model.fusion.activation=gelu"),
    "model.fusion.strategy": changes_model("model.fusion.strategy=weighted_sum"),
    "model.fusion.normalize": changes_model("model.fusion.normalize=true"),
    "model.image_projection.hidden_dims": changes_model("model.image_projection.hidden_dims=[20]"),
    "model.text_projection.hidden_dims": changes_model("model.text_projection.hidden_dims=[20]"),
    "model.image_projection.activation": changes_model("model.image_projection.activation=gelu")._replace(
        given=["model.image_projection.hidden_dims=[20]"]
    ),
    "model.image_projection.dropout": changes_model("model.image_projection.dropout=0.25")._replace(
        given=["model.image_projection.hidden_dims=[20]"]
    ),
    "model.text_projection.dropout": changes_model("model.text_projection.dropout=0.25")._replace(
        given=["model.text_projection.hidden_dims=[20]"]
    ),
    "model.vision.backbone": of_model("model.vision.backbone=timm/test_vit", "vision_backbone", "timm/test_vit"),
    "model.vision.pretrained": Effect(  # fresh weights need no network
        ["model.vision.pretrained=false"],
        lambda built: built.recipe.model.vision.pretrained,
        False,
        ["model.vision.pretrained=true"],
    ),
    "model.vision.pooling": of_model("model.vision.pooling=max", "vision_pooling", "max"),
    "model.text.backbone": Effect(
        ["model.text.backbone=DIR/bert"], lambda built: built.model.text.config.hidden_size, 48
    ),
    "model.text.pooling": of_model("model.text.pooling=cls", "text_pooling", "cls"),
    "model.text.embeddings": Effect(["model.text.embeddings=DIR/none.parquet"], refused),
    "model.freeze_vision": Effect(["model.freeze_vision=true"], lambda built: "vision" in built.trained(), False),
    "model.freeze_text": Effect(["model.freeze_text=true"], lambda built: "text" in built.trained(), False),
    "model.modalities.mask": Effect(
        ["model.modalities.mask=image"], lambda built: built.task.collator_options(is_training=True).get("masking")
    ),
    "model.modalities.dropout.image": Effect(
        ["model.modalities.dropout.image=0.3"], lambda built: built.task.dropped_parts(), {"vision"}
    ),
    "model.modalities.dropout.text": Effect(
        ["model.modalities.dropout.text=0.3"], lambda built: built.task.dropped_parts(), {"text"}
    ),
    "loss.auxiliary_weight": loses("loss.auxiliary_weight=0.3", "auxiliary_weights", {"image": 0.3, "text": 0.3}),
    "loss.focal_gamma": loses("loss.focal_gamma=2", "focal_gamma", 2.0),
    "loss.label_smoothing": loses("loss.label_smoothing=0.2", "label_smoothing", 0.2),
    "loss.class_weights": loses("loss.class_weights=[1.0, 3.0]", "class_weights", [1.0, 3.0]),
    "sampling.by": Effect(["sampling={by: site}"], sampled),
    "sampling.power": Effect(["sampling.power=0.5"], sampled, None, ["sampling={by: seldom}"]),
}
OF_TASK: dict[tuple[str, str], Effect] = {
    (PLANTS, "data.path"): Effect(["data.path=DIR/plants2/raw"], lambda built: built.all_rows(), 8, FOLDER),
    (PLANTS, "data.folder"): Effect(
        ["data.folder=raw"],
        lambda built: built.data.label_names,
        ["c", "d"],
        [*FOLDER, "data.path=DIR/plants2", "data.folder=segmented"],
    ),
    (PLANTS, "model.head.dropout"): of_model("model.head.dropout=[0.4, 0.1]", "head_dropout", [0.4, 0.1]),
    (PLANTS, "model.head.hidden_dim"): of_model("model.head.hidden_dim=24", "head_hidden_dim", 24),
    **{
        (PLANTS, f"unfreeze_on_plateau.{name}"): Effect(
            [f"unfreeze_on_plateau.{name}={value}"],
            lambda built, name=name: getattr(built.trainer.stages.unfreeze_on_plateau, name),  # type: ignore[misc]
            expected,
            ["unfreeze_on_plateau={metric: accuracy, patience: 9}", stage()],
        )
        for name, value, expected in (
            ("metric", "f1_macro", "f1_macro"),
            ("patience", "5", 5),
            ("min_delta", "0.25", 0.25),
        )
    },
    (CAPTIONER, "model.language.backbone"): Effect(
        ["model.language.backbone=qwen2"], lambda built: type(built.model.language).__name__, "Qwen2ForCausalLM"
    ),
    (CAPTIONER, "model.projector.hidden_dims"): of_model(
        "model.projector.hidden_dims=[24]", "projector_hidden_dims", [24]
    ),
    (CAPTIONER, "model.projector.prefix_length"): of_model(
        "model.projector.prefix_length=3", "prefix_length", 3, "model.vision.features=avg"
    ),
    (CAPTIONER, "model.freeze_vision"): Effect(
        ["model.freeze_vision=false"], lambda built: "vision" in built.trained(), True
    ),
    (CAPTIONER, "model.freeze_language"): Effect(
        ["model.freeze_language=false"], lambda built: "language" in built.trained(), True
    ),
    (CAPTIONER, "evaluation.generate"): recipe_value("evaluation.generate", "false", False),
    (CAPTIONER, "evaluation.generate_rows"): recipe_value("evaluation.generate_rows", "7", 7),
    (CAPTIONER, "data.max_length"): Effect(
        ["data.max_length=6"], lambda built: built.processor(text=["a dog " * 30])["input_ids"].shape[1], 6
    ),
    (CLIP, "data.path"): Effect(["data.path=DIR/flickr2"], lambda built: built.all_rows(), 12, [FLICKR]),
    (CLIP, "model.vision.patch_size"): Effect(
        ["model.vision.patch_size=16"], lambda built: built.model.vision.config.patch_size, 16
    ),
    (CLIP, "model.vision.width"): Effect(
        ["model.vision.width=48"], lambda built: built.model.vision.config.hidden_size, 48
    ),
    (CLIP, "model.vision.layers"): Effect(
        ["model.vision.layers=1"], lambda built: built.model.vision.config.num_hidden_layers, 1
    ),
    (CLIP, "model.vision.heads"): Effect(
        ["model.vision.heads=4"], lambda built: built.model.vision.config.num_attention_heads, 4
    ),
    (CLIP, "model.text.width"): Effect(["model.text.width=48"], lambda built: built.model.text.config.hidden_size, 48),
    (CLIP, "model.text.layers"): Effect(
        ["model.text.layers=1"], lambda built: built.model.text.config.num_hidden_layers, 1
    ),
    (CLIP, "model.temperature.start"): of_model("model.temperature.start=0.1", "initial_temperature", 0.1),
    (CLIP, "model.temperature.learn"): Effect(
        ["model.temperature.learn=false"], lambda built: "temperature" in built.trained(), False
    ),
    (CLIP, "contrastive.batch_size"): Effect(
        ["contrastive.batch_size=16"], lambda built: built.args.gradient_accumulation_steps, 4
    ),
    (CLIP, "training.metric_for_best_model"): argument("metric_for_best_model", "loss", "loss"),
    (CAPTIONER, "training.save_total_limit"): argument("save_total_limit", "null", None),
}


def rows_of_the_page() -> list[tuple[str, str, str]]:
    """Task, what stands in the column `recipe` between backticks, and the remark."""
    found = []
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        task = re.search(r"^Task: (\S+)$", section, re.M)
        assert task, section.splitlines()[0]
        rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")][1:]
        found += [(task[1], key, row[3]) for row in rows for key in re.findall(r"`([^`]+)`", row[2])]
    return found


KEYS = sorted({(task, key) for task, key, _ in rows_of_the_page() if not key.startswith("mmhf ")})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, text_encoder_dir: Path) -> Path:
    """A folder of tables, images and small recipes, one a task."""
    folder = tmp_path_factory.mktemp("moving")
    _write_data(folder, text_encoder_dir)
    tower: dict[str, Any] = {"backbone": "timm/test_efficientnet", "pretrained": False}
    table = {"source": "table", "path": str(folder / "t.csv"), "image_root": str(folder / "imgs"), "image_size": 32}
    sample = {"source": "sample", "image_size": 32, "max_length": 12, "limit": 24}
    small = {"width": 32, "layers": 2, "heads": 2}
    language = {"backbone": "qwen3", "pretrained": False, "tokenizer": {"vocab_size": 300}}
    language["config"] = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 64,
    }  # fmt: skip
    recipes: dict[str, dict[str, Any]] = {
        FUSION: {
            "model": {"vision": tower, "text": {"backbone": str(text_encoder_dir), "pooling": "mean"}},
            "data": {**table, "max_length": 16},
        },
        PLANTS: {"model": {"vision": tower, "head": {"hidden_dim": 8}}, "data": table},
        CAPTIONER: {"model": {"vision": {**tower, "features": "patches"}, "language": language}, "data": sample},
        CLIP: {
            "model": {"vision": {**small, "patch_size": 8}, "text": {**small, "vocab_size": 300}},
            "data": sample,
        },
    }
    for task, values in recipes.items():
        training = {"per_device_train_batch_size": 4, "output_dir": str(folder / "run")}
        (folder / f"{task}.yaml").write_text(yaml.safe_dump({"task": task, **values, "training": training}))
    return folder


def _write_data(folder: Path, text_encoder_dir: Path) -> None:
    for images in ("imgs", "imgs2"):
        (folder / images).mkdir()
        for number in range(40):
            pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8)
            for name in (f"{number}.png", f"p{number}.png"):
                Image.fromarray(pixels).save(folder / images / name)
    header = ["number", "image", "photo", "text", "title", "label", "kind", "site", "seldom", "dataset", "source"]
    rows = [
        [
            number, f"{number}.png", f"p{number}.png",
            ["", "No age information"][number] if number < 2 else f"text {number}",
            f"title {number}", "ab"[number % 2], "xy"[number // 2 % 2], number % 10,
            "rare" if number % 8 == 0 else ("often", "usual")[number // 2 % 2], "derm1m" if number < 20 else "ddi",
            "pubmed" if number % 2 else "youtube",
        ]
        for number in range(40)
    ]  # fmt: skip
    for name, count in {"t.csv": 40, "other.csv": 20, "v1/t.csv": 40, "v2/t.csv": 20}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with (folder / name).open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([header, *rows[:count]])
    folders = {"plants/a": 6, "plants/b": 6, **{f"plants2/{each}": 4 for each in ("raw/c", "raw/d")}}
    for name, count in {**folders, "plants2/segmented/e": 4, "plants2/segmented/f": 4}.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (20, 24), (6 * number, 99, 3)).save(folder / name / f"{number}.png")
    for name, count in {"flickr": 20, "flickr2": 12}.items():
        (folder / name / "images").mkdir(parents=True)
        lines = [f"{number}.jpg#{each}\tdog {number} runs" for number in range(count) for each in range(2)]
        (folder / name / "results_20130124.token").write_text("\n".join(lines))
        for number in range(count):
            Image.new("RGB", (20, 24), (6 * number, 9, 3)).save(folder / name / "images" / f"{number}.jpg")
    AutoTokenizer.from_pretrained(text_encoder_dir).save_pretrained(folder / "bert")
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=4096, **sizes)).save_pretrained(folder / "bert")


@pytest.fixture(scope="module")
def built(place: Path) -> Callable[[str, list[str]], Built]:
    known: dict[tuple[str, ...], Built] = {}

    def build(task: str, overrides: list[str]) -> Built:
        key = (task, *overrides)
        if key not in known:
            known[key] = Built(place / f"{task}.yaml", [each.replace("DIR", str(place)) for each in overrides])
        return known[key]

    return build


@pytest.mark.slow
@pytest.mark.parametrize(("task", "key"), KEYS)
def test_each_key_has_the_effect_that_it_stands_for(built, place: Path, task: str, key: str) -> None:
    effect = OF_TASK.get((task, key)) or EFFECTS[key]
    before = effect.probe(built(task, effect.given))
    after = effect.probe(built(task, [*effect.given, *effect.overrides]))
    assert after != before
    if effect.expected is not None:
        expected = effect.expected
        assert after == (expected.replace("DIR", str(place)) if isinstance(expected, str) else expected)


@pytest.mark.parametrize(
    ("verb", "remark"), sorted({(key, said) for _, key, said in rows_of_the_page() if "mmhf " in key})
)
def test_each_verb_has_the_flags_that_its_remark_names(verb: str, remark: str) -> None:
    parser = argparse.ArgumentParser()
    VERBS[verb.split()[1]](parser)
    assert set(re.findall(r"--[a-z-]+", remark)) <= parser._option_string_actions.keys()
