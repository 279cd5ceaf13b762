"""The pages of the documentation that are generated: the recipe key by key, and the functions for Python.

A hook of mkdocs (see mkdocs.yml); `python docs/reference.py` prints both.
"""

from __future__ import annotations

import mmhf  # (first: it makes torchvision importable beside a CPU build of torch)

import configparser  # isort: skip
import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from mmhf.recipe.by_task import RECIPE_BY_TASK
from mmhf.recipe.editor_schema import field_descriptions
from mmhf.recipe.schema_tree import alternatives, is_section, tag_of
from mmhf.recipe.sections import Section
from mmhf.recipe.training_arguments import training_fields

# What a key may be set to, by its name or, where sections differ, by section and name. Switches and keys with a few
# words to choose from need none: another choice than the default is shown.
EXAMPLES: dict[str, Any] = {
    "affine": {"translate": [0.1, 0.1]},
    "asymmetric": {"gamma_negative": 2.0},
    "gamma_negative": 2.0,
    "gamma_positive": 0.0,
    "margin": 0.1,
    "patch_dropout": 0.5,
    "stochastic_depth": 0.1,
    "matryoshka": [64, 128, 512],
    "matryoshka_weights": [2.0, 1.0, 1.0],
    "multi_label": {"separator": ","},
    "fold": {"number": 1, "of": 5},
    "number": 1,
    "of": 5,
    "huber_delta": 1.0,
    "order": ["none", "mild", "severe"],
    "ordinal": {"order": ["none", "mild", "severe"]},
    "regression": {"columns": ["age"]},
    "RegressionSection.columns": ["age", "weight"],
    "MultiLabelSection.columns": ["dog", "beach"],
    "names": ["dog", "beach"],
    "separator": ",",
    "alpha": 32,
    "apart": "vendor",
    "attention_dropout": 0.1,
    "augment": {"horizontal_flip": 0.5},
    "auxiliary_weight": 0.3,
    "backbone": "timm/resnet50.a1_in1k",
    "batch_size": 64,
    "best_metric": "f1_macro",
    "betas": [0.9, 0.95],
    "bootstrap": 200,
    "brightness": 0.2,
    "by": "site",
    "cache": "off",
    "cache_dir": "/fast-disk/copies",
    "caption": "json",
    "CaptionColumnsSection.captions": ["caption_1", "caption_2"],
    "categories": ["sex", "site"],
    "card": {"license": "apache-2.0"},
    "carry_best": "f1_macro",
    "changes": ["training.learning_rate: 1e-3 → 1e-4"],
    "channel": "stable",
    "checkpoints": {"every_epochs": 5},
    "class_weights": "balanced",
    "clip": "openai/clip-vit-base-patch32",
    "cloud": {"connections": 32},
    "color_jitter": {"brightness": 0.2},
    "FusionModelSection.columns": {"numbers": ["age"], "categories": ["site"]},
    "ModalityDropoutSection.columns": 0.2,
    "AuxiliaryWeightsSection.columns": 0.3,
    "column": "origin",
    "columns": {"image": "photo"},
    "config": {"num_hidden_layers": 2},
    "connections": 32,
    "contrast": 0.2,
    "NeighbourVotesSection.count": 16,
    "contrastive": {"batch_size": 1024},
    "cutmix": 1.0,
    "cycle_beta1": [0.85, 0.95],
    "data": {"source": "sample"},
    "dataset_column": "origin",
    "CardSection.datasets": ["nlphuji/flickr30k"],
    "JoinedClassesSection.datasets": {"a": {"source": "table", "path": "a.csv"}, "b": {"source": "sample"}},
    "JoinedCaptionsSection.datasets": {"a": {"source": "table", "path": "a.csv"}, "b": {"source": "sample"}},
    "datasets": ["ham10000"],
    "decay": 0.9999,
    "decay_every": 5,
    "decay_rate": 0.5,
    "distortion": 0.3,
    "ModalitiesSection.dropout": {"text": 0.3},
    "ClassifierHeadSection.dropout": [0.2, 0.1],
    "dropout": 0.1,
    "early_stopping": {"patience": 3},
    "ema": {"decay": 0.999},
    "embedding_dim": 256,
    "embeddings": "embeddings/{version}.parquet",
    "epoch_samples": 100_000,
    "epochs": 5,
    "eps": 1e-6,
    "evaluation": {"splits": ["test"]},
    "every_epochs": 5,
    "exact": False,
    "exclude": ["unknown"],
    "fill": 255,
    "filters": {"has_text": True},
    "focal_gamma": 2.0,
    "CacheSection.folder": "/fast-disk/features",
    "folder": "color",
    "fraction": 0.1,
    "fusion": {"strategy": "gated"},
    "gaussian_blur": {"probability": 0.2},
    "generate_rows": 50,
    "generate_seed": 7,
    "generation": {"num_beams": 4},
    "grayscale": 0.1,
    "group_by": "patient_id",
    "head": {"hidden_dim": None},
    "heads": 4,
    "hidden_dim": 256,
    "hidden_dims": [512],
    "history": [{"until_step": 500, "sections": {"training": {"learning_rate": 1e-3}}}],
    "horizontal_flip": 0.5,
    "hue": 0.05,
    "id": "photo_id",
    "WebDatasetSection.image": ["jpg"],
    "ModalityDropoutSection.image": 0.1,
    "AuxiliaryWeightsSection.image": 0.3,
    "image": "photo",
    "image_dir": "public_image_set",
    "image_projection": {"hidden_dims": [512]},
    "image_root": "photos",
    "image_size": 128,
    "images": "ISIC_2020/images",
    "init_from": "releases/fakeddit@v1.6",
    "teacher": "releases/fakeddit@v1.8",
    "TeacherSection.model": "releases/fakeddit@v1.8",
    "TeacherSection.temperature": 4.0,
    "TeacherSection.weight": 0.3,
    "intended_use": "Research on product photos.",
    "kernel_size": 7,
    "ColumnsSection.label": "kind",
    "ClinicalTableSection.label": "target",
    "label_smoothing": 0.1,
    "labels": {"0": "real", "1": "fake"},
    "LanguageModelSection.backbone": "Qwen/Qwen3-1.7B-Base",
    "FusionTextSection.backbone": "google-bert/bert-base-uncased",
    "TextTowerSection.backbone": "pypi/all-minilm-l6-v2",
    "CaptionVisionSection.backbone": "pypi/efficientnet-lite0",
    "CardSection.language": ["en"],
    "language": {"backbone": "Qwen/Qwen3-0.6B-Base"},
    "layer_decay": 0.8,
    "layers": 6,
    "learning_rate": {"vision": 1e-5, "head": 1e-3},
    "length_penalty": 0.8,
    "license": "apache-2.0",
    "license_link": "https://example.org/licence",
    "license_name": "my-licence",
    "limit": 1000,
    "limit_seed": 7,
    "limits": "Photographs: it has seen drawings alone.",
    "log_model": ["mlflow", "wandb"],
    "logit_adjustment": 1.0,
    "groups": ["vision", "text:last 4"],
    "lora": {"rank": 16},
    "ReleaseSection.lora": "keep",
    "FusionRecipe.loss": {"label_smoothing": 0.1},
    "ImageClassificationRecipe.loss": {"label_smoothing": 0.1},
    "magnitude": 7,
    "max": 90,
    "max_bytes": 100_000_000_000,
    "max_length": 64,
    "max_new_tokens": 20,
    "metric": "f1_macro",
    "min": 18,
    "min_rows": 20,
    "min_delta": 0.001,
    "min_lr": 1e-7,
    "min_samples_per_label": 10,
    "min_samples_per_split": 2,
    "missing": ["n/a", "unknown"],
    "mix_probability": 0.5,
    "mixup": 0.2,
    "mlflow_uri": "http://127.0.0.1:5000",
    "mlp_ratio": 2.0,
    "modalities": {"stand_in": "learnt"},
    "model": {"vision": {"pretrained": False}},
    "momentum": 0.9,
    "StageSection.name": "head",
    "CaptionHubSection.name": "english",
    "HubDataSection.name": "english",
    "no_repeat_ngram_size": 3,
    "num_beams": 4,
    "numbers": ["age"],
    "num_ops": 3,
    "optimizer": {"name": "sgd", "momentum": 0.9},
    "patch_size": 32,
    "path": "data/photos",
    "CaptionTableSection.path": "data/captions.csv",
    "TableDataSection.path": "data/posts.csv",
    "CaptionHubSection.path": "my-name/captions",
    "HubDataSection.path": "my-name/photos",
    "patience": 3,
    "perspective": {"distortion": 0.3},
    "power": 0.5,
    "prefetch": 4,
    "prepared": "prepared/mine",
    "prefix_length": 10,
    "probability": 0.3,
    "projector": {"kind": "transformer"},
    "prompt": "A drawing of",
    "prompt_missing": "unknown",
    "rand_augment": {"magnitude": 7},
    "random_erasing": {"probability": 0.2},
    "random_resized_crop": {"scale": [0.6, 1.0]},
    "rank": 16,
    "ratio": [0.9, 1.1],
    "readers": 4,
    "release": {"repo": "releases/photos", "version": "1.0"},
    "repetition_penalty": 1.2,
    "ReleaseSection.repo": "releases/photos",
    "repo": "lmms-lab/flickr30k",
    "retries": 8,
    "revision": "refs/convert/parquet",
    "rotation": 15,
    "sampling": {"by": "label"},
    "saturation": 0.2,
    "scale": [0.8, 1.0],
    "sections": {"training": {"learning_rate": 1e-3}},
    "seed": 7,
    "shear": 5,
    "shuffle_buffer": 10_000,
    "sigma": [0.1, 1.0],
    "split": {"validation": 0.2, "test": 0.2},
    "split_column": "split",
    "FusionEvaluationSection.splits": ["test"],
    "ClassificationEvaluationSection.splits": ["test"],
    "CaptionEvaluationSection.splits": ["test"],
    "ContrastiveEvaluationSection.splits": ["test"],
    "splits": {"train": "train", "test": "held_out"},
    "stages": [{"name": "head", "epochs": 5, "train": ["head"]}],
    "StageSection.start": "linear_probe",
    "start": 0.05,
    "steps": 500,
    "stream": {"shuffle_buffer": 10_000},
    "sub_source_column": "site",
    "sub_sources": {"isic": ["2019", "2020"]},
    "subgroup_min_rows": 30,
    "subgroups": ["skin_tone"],
    "summary": "Tells fake posts from real ones.",
    "table": "ISIC_2020/train.csv",
    "tables": {"isic2020": {"table": "ISIC_2020/train.csv", "images": "ISIC_2020/images"}},
    "tags": ["plants"],
    "target_accuracy": 0.95,
    "target_modules": ["q_proj", "v_proj"],
    "GenerationSection.temperature": 0.7,
    "NeighbourVotesSection.temperature": 0.1,
    "temperature": {"start": 0.05},
    "templates": ["a drawing of {}."],
    "ImageSplitSection.test": 0.2,
    "SplitSection.test": 0.2,
    "ClinicalSplitSection.test": 0.2,
    "WebDatasetSection.test": "shards/test-{000..004}.tar",
    "test": "data/test.csv",
    "FusionModelSection.text": {"backbone": "google-bert/bert-base-uncased"},
    "DualEncoderModelSection.text": {"layers": 4},
    "ModalityDropoutSection.text": 0.3,
    "AuxiliaryWeightsSection.text": 0.1,
    "text": "title",
    "text_projection": {"hidden_dims": [512]},
    "TextTowerSection.tokenizer": "openai/clip-vit-base-patch32",
    "tokenizer": {"vocab_size": 4096},
    "top_k": 50,
    "top_p": 0.9,
    "tracking": {"mlflow_uri": "http://127.0.0.1:5000"},
    "WebDatasetSection.train": "shards/train-{000..099}.tar",
    "StageSection.train": ["head", "vision:last 2"],
    "train": "data/train.csv",
    "training": {"learning_rate": 1e-4},
    "translate": [0.1, 0.1],
    "unfreeze_on_plateau": {"patience": 2},
    "until_step": 500,
    "ImageSplitSection.validation": 0.2,
    "SplitSection.validation": 0.2,
    "ClinicalSplitSection.validation": 0.2,
    "WebDatasetSection.validation": "shards/validation-{000..004}.tar",
    "validation": "data/validation.csv",
    "ReleaseSection.version": "1.8",
    "version": "v2",
    "vertical_flip": 0.5,
    "CacheSection.views": 4,
    "ViewsSection.horizontal_flip": True,
    "ViewsSection.vertical_flip": True,
    "views": {"horizontal_flip": True},
    "center_crops": [0.875],
    "vision": {"pretrained": False},
    "vocab_size": 8192,
    "StageSection.warmup": 0.1,
    "weight_decay": 0.05,
    "hard_negatives": {"per_sample": 3},
    "quantization": {"bits": 8},
    "neighbours": {"count": 6},
    "votes": {"weight": 0.3},
    "NeighboursSection.count": 6,
    "whiten": 1.0,
    "NeighboursSection.before": "Like ",
    "NeighboursSection.between": "; ",
    "NeighboursSection.after": ", but this one:",
    "per_sample": 3,
    "first_epoch": 2,
    "below_own": 0.9,
    "weights": {"a": 2.0, "b": 1.0},
    "where": {"age": {"min": 18}},
    "width": 256,
    "zero_shot": {"data": {"source": "image_folder", "path": "photos"}},
}
FUNCTIONS = ("init", "plan", "train", "evaluate", "predict", "pipeline", "load_recipe", "Run")
_HEAD = """# Recipes, key by key

Generated from the schema that recipes are checked against. `mmhf plan --schema` writes it as JSON Schema for editors.
Overrides on the command line are written with dots: `training.learning_rate=1e-4`. `extends: NAME` takes another
recipe as the base.

"""


def recipe_reference() -> str:
    """A heading a section, a row a key: type, default, an example, meaning."""
    parts, waiting, seen = [_HEAD], [], set()
    for task, recipe in RECIPE_BY_TASK.items():
        parts.append(f"## task: {task}\n\n{_table(recipe)}\n")
        waiting += [section for name in recipe.model_fields for section in _sections_in(recipe, name)]
    while waiting:
        section = waiting.pop(0)
        if section in seen:
            continue
        seen.add(section)
        tag = tag_of(section)
        chosen = f" (`{tag[0]}: {tag[1]}`)" if tag else ""
        about = inspect.cleandoc(section.__doc__) if section.__doc__ and "__doc__" in vars(section) else ""
        parts.append(f"## {section.__name__}{chosen}\n\n{about}\n\n{_table(section)}\n")
        waiting += [found for name in section.model_fields for found in _sections_in(section, name)]
    names = ", ".join(f"`{name}`" for name in training_fields())
    parts.append(f"## training\n\nAny field of `transformers.TrainingArguments` by its own name: {names}.\n")
    return "\n".join(parts)


def python_reference() -> str:
    """The functions that stand behind the verbs, with their own documentation."""
    parts = ["# Python\n\nEach verb of the command line is a function; `mmhf.NAME` also has the models' classes.\n"]
    for name in FUNCTIONS:
        found = getattr(mmhf, name)
        parts.append(
            f"## mmhf.{name}\n\n```python\n{_signature(name, found)}\n```\n\n{_as_markdown(inspect.getdoc(found))}\n"
        )
    return "\n".join(parts)


def _signature(name: str, found: Any) -> str:
    """A call with a line for each parameter, as it would be written."""
    signature = inspect.signature(found)
    parameters, has_star = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not has_star:
            parameters.append("*")
            has_star = True
        kind = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        default = getattr(parameter.default, "__name__", repr(parameter.default))
        given = "" if parameter.default is parameter.empty else f" = {default}"
        parameters.append(f"{parameter.name}{kind}{given}")
    inside = "".join(f"    {parameter},\n" for parameter in parameters)
    returned = "" if signature.return_annotation in (signature.empty, None) else f" -> {signature.return_annotation}"
    return f"{name}({chr(10) if inside else ''}{inside}){returned}"


def _as_markdown(text: str | None) -> str:
    """A docstring in Hugging Face's form as Markdown: a list for each of its sections."""
    lines: list[str] = []
    for line in (text or "").splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Yields|Raises):", line):
            lines += ["", f"**{line.removesuffix(':')}**", ""]
        elif re.match(r"    \S", line):
            lines.append(f"- {line.strip()}")
        elif line.startswith("     "):
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
    return re.sub(r"\[(`[^`]+`)\](?!\()", r"\1", "\n".join(lines))


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages; called by mkdocs."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "recipe.md", content=recipe_reference()))
    files.append(File.generated(config, "python.md", content=python_reference()))
    return files


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Links to files outside of docs/ lead to the repository; called by mkdocs."""
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
    in_repository = f"]({setup['metadata']['url']}/blob/main/"
    return markdown.replace("](../", in_repository).replace("](upstream/", f"{in_repository}docs/upstream/")


def _sections_in(section: type[Section], name: str) -> Iterator[type[Section]]:
    for member in _members(section.model_fields[name].annotation):
        if is_section(member):
            yield member


def _members(annotation: Any) -> Iterator[Any]:
    for member in alternatives(annotation):
        if get_origin(member) in (list, dict):
            for inner in get_args(member):
                yield from _members(inner)
        else:
            yield member


def _table(section: type[Section]) -> str:
    about = field_descriptions(section)
    rows = ["| key | type | default | example | |", "|---|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if field.is_required():
            default = "required"
        elif isinstance(field.default, Section):
            default = "its own defaults"
        else:
            default = _written(field.default)
        text = " ".join(about.get(name, "").split()).replace("|", "\\|")
        rows.append(
            f"| `{name}` | {_type(field.annotation)} | {default} | {_written(example_of(section, name))} | {text} |"
        )
    return "\n".join(rows)


def example_of(section: type[Section], name: str) -> Any:
    """A value for a key that is not its default."""
    for key in (f"{section.__name__}.{name}", name):
        if key in EXAMPLES:
            return EXAMPLES[key]
    field = section.model_fields[name]
    words = [
        word for member in _members(field.annotation) if get_origin(member) is Literal for word in get_args(member)
    ]
    return next((word for word in words if word != field.default), words[0]) if words else not field.default


def _written(value: Any) -> str:
    """A value as a recipe has it, in code."""
    if isinstance(value, Section):
        return ""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000, allow_unicode=True)
    return f"`{text.removesuffix(chr(10)).removesuffix('...').strip()}`".replace("|", "\\|")


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(member) for member in get_args(annotation)))
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is list:
        return f"list of {_type(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return f"mapping to {_type(get_args(annotation)[1])}"
    if is_section(annotation):
        return f"[{annotation.__name__}](#{_anchor(annotation)})"
    words = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        type(None): "null",
        Any: "anything",
    }
    return words.get(annotation, "anything")


def _anchor(section: type[Section]) -> str:
    tag = tag_of(section)
    title = f"{section.__name__} ({tag[0]}: {tag[1]})" if tag else section.__name__
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower())).strip("-")


if __name__ == "__main__":
    sys.stdout.write(recipe_reference() + python_reference())
