"""A release teaches a run: its answers are asked for once, looked up at each step, and named in what comes of it."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mmhf
from mmhf.cli import main
from mmhf.data.images import decode_image
from mmhf.data.samplers import SampleKey
from mmhf.errors import InputError
from mmhf.inference.loading import load_model
from mmhf.recipe import recipe_from_dict
from mmhf.tasks import distillation, task_of
from mmhf.training.arguments import build_stage_plan, training_arguments
from mmhf.training.trainer import MMTrainer
from mmhf.verbs.own_data import resolve

VISION = {"backbone": "timm/test_efficientnet", "pretrained": False}
OTHER_VISION = {"backbone": "timm/test_resnet", "pretrained": False}
TRAINING = {
    "per_device_train_batch_size": 8,
    "max_steps": 3,
    "learning_rate": 3e-2,
    "logging_steps": 1,
    "report_to": "none",
    "eval_strategy": "no",
}
EVALUATION = {"splits": ["test"], "baselines": "off"}
SAMPLE = {"source": "sample", "image_size": 32, "limit": 24, "find_duplicates": "never"}
MOODS = ["negative", "neutral", "positive"]

Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def recipe(text_encoder_dir: Path) -> Make:
    """A recipe of a tiny model of a task, which trains for three steps; with changes of its sections."""
    text = {"backbone": str(text_encoder_dir), "pooling": "mean"}
    tower = {"width": 16, "layers": 1, "heads": 2}
    models: dict[str, Any] = {
        "image-classification": {"vision": VISION, "head": {"hidden_dim": 8}},
        "image-text-classification": {"vision": VISION, "text": text, "embedding_dim": 16},
        "contrastive": {
            "vision": {**tower, "patch_size": 8, "pooling": "avg"},
            "text": {**tower, "vocab_size": 300},
            "embedding_dim": 8,
        },
    }

    def make(task: str, folder: Path, **changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "task": task,
            "model": models[task],
            "data": SAMPLE if task == "image-classification" else {**SAMPLE, "max_length": 12},
            "training": {**TRAINING, "output_dir": str(folder)},
            "evaluation": EVALUATION,
        }
        for name, change in changes.items():
            values[name] = {**values[name], **change} if isinstance(values.get(name), dict) else change
        return copy.deepcopy(values)

    return make


@pytest.fixture(scope="module")
def teachers(recipe: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Task → a release that was trained for it; the classifier reads larger images than the students do."""
    folder, found = tmp_path_factory.mktemp("teachers"), {}
    for task, size in (("image-classification", 48), ("image-text-classification", 32), ("contrastive", 32)):
        release = {"repo": str(folder / f"{task}-releases"), "version": "1.0"}
        own = {"vision": OTHER_VISION} if task != "contrastive" else {"embedding_dim": 12}
        mmhf.train(recipe(task, folder / task, model=own, data={"image_size": size}, release=release))
        found[task] = f"{release['repo']}@v1.0"
    return found


def trainer_of(values: dict[str, Any], rows: list[dict[str, Any]] | None = None) -> MMTrainer:
    """The trainer of a recipe, or of one's own rows, before its first step."""
    task = task_of(resolve(values, train_dataset=rows, eval_dataset=rows and rows[:2]).recipe)
    data = task.load_data()
    args = training_arguments(
        task.recipe, str(task.recipe.training["output_dir"]), has_validation="validation" in data.splits
    )
    processor = task.build_processor(data)
    model = task.build_model(data, processor=processor)
    plan = build_stage_plan(model, task.recipe, args, task.num_train_rows(data))
    return task.make_trainer(data, plan=plan, args=args, processor=processor)


def read_all(trainer: MMTrainer, name: str) -> torch.Tensor:
    """What the teacher made of each training sample, as the rows of an epoch have it."""
    dataset: Any = trainer.train_dataset
    return torch.stack([row[name] for row in dataset.read_rows([SampleKey(at, 0) for at in range(len(dataset))])])


@pytest.mark.slow
def test_a_classifier_is_taught_by_another_architecture_of_larger_images(
    recipe: Make, teachers: dict[str, str], tmp_path: Path
) -> None:
    """With augmentation, what is looked up is what the teacher says of the image as it is."""
    teacher = teachers["image-classification"]
    augment = {"horizontal_flip": 0.5, "rotation": 20}
    values = recipe("image-classification", tmp_path / "run", teacher=teacher, data={"augment": augment})
    trainer = trainer_of(values)
    model, processor = load_model(Path(teacher.replace("@", "/")), device=torch.device("cpu"))
    table: Any = trainer.train_dataset.table
    images = [decode_image(each) for each in table["image"][:]]
    assert processor.size["height"] == 48
    with torch.no_grad():
        wanted = torch.cat([model(**processor(images=[each], return_tensors="pt")).logits for each in images])
    torch.testing.assert_close(read_all(trainer, "teacher_answers"), wanted, atol=1e-4, rtol=1e-4)
    assert wanted.std(dim=0).max() > 1e-3, "it says something else of each"


@pytest.mark.slow
def test_answers_are_asked_for_once_and_by_teacher(
    recipe: Make, teachers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    load = distillation.load_model
    monkeypatch.setattr(
        distillation, "load_model", lambda path, **kwargs: [asked.append(path), load(path, **kwargs)][1]
    )
    cache = {"mode": "auto", "folder": str(tmp_path / "features")}
    student = recipe("image-classification", tmp_path / "run", cache=cache)
    first = trainer_of({**student, "teacher": teachers["image-classification"]})
    again = trainer_of({**student, "teacher": {"model": teachers["image-classification"], "weight": 0.2}})
    assert len(asked) == 1
    assert torch.equal(read_all(first, "teacher_answers"), read_all(again, "teacher_answers"))
    mmhf.train(
        recipe("image-classification", tmp_path / "other", model={"vision": OTHER_VISION}, training={"seed": 7})
    )
    other = trainer_of({**student, "teacher": str(tmp_path / "other")})
    assert len(asked) == 2 and len(list((tmp_path / "features").glob("teacher-*"))) == 2
    assert not torch.equal(read_all(first, "teacher_answers"), read_all(other, "teacher_answers"))


@pytest.mark.slow
def test_the_run_its_release_and_its_card_name_the_teacher(
    recipe: Make, teachers: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    release = {"repo": str(tmp_path / "releases"), "version": "0.1"}
    teacher = {"model": teachers["image-classification"], "temperature": 3.0, "weight": 0.7}
    run = mmhf.train(recipe("image-classification", tmp_path / "run", teacher=teacher, release=release))
    own = mmhf.train(recipe("image-classification", tmp_path / "own"))
    histories = [
        json.loads((Path(each.folder) / "trainer_state.json").read_text())["log_history"] for each in (run, own)
    ]
    first, alone = (history[0]["loss"] for history in histories)
    assert first != pytest.approx(alone, abs=1e-3)
    repo = teachers["image-classification"].partition("@")[0]
    commit = json.loads((Path(repo) / "v1.0" / "release.json").read_text())["commit"]
    named = {"repo": repo, "revision": "v1.0", "commit": commit}
    assert json.loads((tmp_path / "run" / "lineage.json").read_text())["teacher"] == named
    assert json.loads((tmp_path / "releases" / "v0.1" / "release.json").read_text())["extra"]["teacher"] == named
    assert main(["lineage", str(tmp_path / "releases")]) == 0
    assert f"taught by {repo}@v1.0" in capsys.readouterr().out.replace("\n", "")
    card = (tmp_path / "releases" / "v0.1" / "README.md").read_text()
    assert f"- Taught by `{repo}@v1.0` (commit `{commit[:12]}`)." in card
    assert "70% of the loss" in (tmp_path / "run" / "report.html").read_text()


def history_of(run: Path) -> list[Any]:
    logged = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry["loss"]) for entry in logged if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image-text-classification", "contrastive"])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    task: str, recipe: Make, teachers: dict[str, str], tmp_path: Path
) -> None:
    """The second start finds what the first one asked the teacher."""
    saving = {"save_strategy": "steps", "save_steps": 1}
    runs = []
    for name in ("whole", "stopped"):
        values = recipe(task, tmp_path / name, teacher=teachers[task], training=saving)
        if name == "stopped":
            with pytest.MonkeyPatch.context() as patch:
                step = MMTrainer.log

                def log(self: MMTrainer, *args: Any, step: Any = step, **kwargs: Any) -> None:
                    if self.state.global_step == 2:
                        raise KeyboardInterrupt
                    step(self, *args, **kwargs)

                patch.setattr(MMTrainer, "log", log)
                with pytest.raises(KeyboardInterrupt):
                    mmhf.train(values)
            assert (tmp_path / name / "checkpoint-1").is_dir()
        runs.append(Path(mmhf.train(values).folder))
    hashes = [hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest() for run in runs]
    assert hashes[0] == hashes[1]
    assert history_of(runs[0]) == history_of(runs[1]) and len(history_of(runs[0])) == 3


@pytest.mark.slow
def test_a_teacher_of_pairs_sees_what_each_row_has(recipe: Make, teachers: dict[str, str], tmp_path: Path) -> None:
    """Some rows have no text, which is missing for both; whatever rows are together, the answers are the same."""
    task = "image-text-classification"
    data = mmhf.load_dataset(recipe(task, tmp_path / "run"), splits=["train"])["train"]
    names = data.features["label"].names
    rows = [
        {"image": row["image"], "text": row["text"] if at % 3 else "", "label": names[row["label"]]}
        for at, row in enumerate(data)
    ]
    values = recipe(task, tmp_path / "run", teacher=teachers[task])
    values["data"] = {"image_size": 32, "max_length": 12, "on_empty_text": "mask", "find_duplicates": "never"}
    found = []
    for order in (slice(None), slice(None, None, -1)):
        values["cache"] = {"mode": "auto", "folder": str(tmp_path / f"features {order.step}")}
        trainer = trainer_of(values, rows[order])
        answers = read_all(trainer, "teacher_answers")
        found.append(answers if order.step is None else answers.flip(0))
    assert torch.equal(*found)
    model, processor = load_model(Path(teachers[task].replace("@", "/")), device=torch.device("cpu"))
    for number in (0, 1):
        row = rows[number]
        inputs = processor(images=[decode_image(row["image"])], text=[row["text"] or None], masks=True)
        with torch.no_grad():
            torch.testing.assert_close(found[0][number], model(**inputs).logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_dual_encoder_is_taught_the_similarities_of_all_captions(
    recipe: Make, teachers: dict[str, str], tmp_path: Path
) -> None:
    """A sample has the embedding of the caption that it is drawn with, in each epoch another one."""
    trainer = trainer_of(recipe("contrastive", tmp_path / "run", teacher=teachers["contrastive"]))
    model, processor = load_model(Path(teachers["contrastive"].replace("@", "/")), device=torch.device("cpu"))
    dataset: Any = trainer.train_dataset
    for epoch in (0, 1):
        rows = dataset.read_rows([SampleKey(at, epoch) for at in range(8)])
        with torch.no_grad():
            images = [decode_image(row["image"]) for row in rows]
            embeds = [
                model(**processor(images=[each], text=[row["caption"]]))
                for each, row in zip(images, rows, strict=True)
            ]
        wanted = torch.cat([each.logits_per_image for each in embeds])
        own = torch.stack([row["teacher_image_embeds"] for row in rows])
        texts = torch.stack([row["teacher_text_embeds"] for row in rows])
        torch.testing.assert_close((own * texts).sum(dim=1, keepdim=True), wanted, atol=1e-4, rtol=1e-4)
    plain = trainer_of(recipe("contrastive", tmp_path / "plain"))
    losses = []
    for each in (trainer, plain):
        each.train()
        losses.append([entry["loss"] for entry in each.state.log_history if "loss" in entry])
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)


def renamed(release: str, folder: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """A run folder with the files of a release, and another config."""
    shutil.copytree(release.replace("@", "/"), folder)
    for name in ("release.json", "complete"):
        (folder / name).unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def refusal(recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What is said of a student's recipe before its model is built, by `plan` and by `train` alike."""

    def refuse(task: str, teacher: Any, **changes: Any) -> str:
        values = recipe(task, tmp_path / "run", teacher=teacher, **changes)
        with monkeypatch.context() as patch:
            patch.setattr(type(task_of(recipe_from_dict(values, name="x").recipe)), "build_processor", _never)
            with pytest.raises(InputError) as raised:
                mmhf.train(values)
        planned = mmhf.plan(values)
        assert str(raised.value) in planned.problems, planned.problems
        return str(raised.value)

    return refuse


def _never(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("the student was built")


@pytest.mark.slow
def test_a_teacher_that_does_not_fit_is_named_before_the_student_is_built(
    refusal: Callable[..., str], teachers: dict[str, str], tmp_path: Path
) -> None:
    fitting = teachers["image-classification"]
    assert "did you mean v1.0?" in refusal("image-classification", fitting.replace("v1.0", "v1.1"))
    assert refusal("image-classification", str(tmp_path / "nowhere")).startswith("teacher: ")
    other = refusal("contrastive", fitting)
    assert "is a model of the task image-classification" in other and "contrastive" in other

    def rename(config: dict[str, Any]) -> None:
        config["id2label"]["0"] = "dragons"
        config["label2id"] = {name: int(number) for number, name in config["id2label"].items()}

    foreign = refusal("image-classification", renamed(fitting, tmp_path / "foreign", rename))
    assert "it lacks " in foreign and "has dragons" in foreign
    kinds = refusal("image-classification", fitting, data={"ordinal": {"order": MOODS}})
    assert "its rows had one label, those of the data have one of several labels in an order" in kinds


@pytest.mark.slow
def test_classes_are_matched_by_name(recipe: Make, teachers: dict[str, str], tmp_path: Path) -> None:
    def turn(config: dict[str, Any]) -> None:
        names = list(config["id2label"].values())[::-1]
        config["id2label"] = {str(number): name for number, name in enumerate(names)}
        config["label2id"] = {name: number for number, name in enumerate(names)}

    turned = renamed(teachers["image-classification"], tmp_path / "turned", turn)
    trainer = trainer_of(recipe("image-classification", tmp_path / "run", teacher=turned))
    count = trainer.plan.model.config.num_labels
    assert trainer.teaching is not None and trainer.teaching.order == tuple(reversed(range(count)))
    straight = trainer_of(recipe("image-classification", tmp_path / "run", teacher=teachers["image-classification"]))
    assert straight.teaching is not None and straight.teaching.order is None


@pytest.mark.slow
def test_a_teacher_that_changed_stops_a_run_from_going_on(
    recipe: Make, teachers: dict[str, str], tmp_path: Path
) -> None:
    teacher = renamed(teachers["image-classification"], tmp_path / "teacher", lambda config: None)
    values = recipe("image-classification", tmp_path / "run", teacher=teacher)
    mmhf.train(values)
    (tmp_path / "run" / "metrics.json").unlink()
    config = Path(teacher) / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(InputError, match="its teacher .* when the run began"):
        mmhf.train(values)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image-classification", "image-text-classification", "contrastive"])
def test_a_plan_shows_the_teacher_and_its_pass(
    task: str, recipe: Make, teachers: dict[str, str], tmp_path: Path
) -> None:
    planned = mmhf.plan(recipe(task, tmp_path / "run", teacher=teachers[task]))
    told = planned.run["teacher"]
    assert not any("teacher" in problem for problem in planned.problems)
    assert teachers[task] in told and "50% of the loss" in told
    shown = {"contrastive": "24 images and ", "image-classification": "24 images"}.get(task, "24 rows")
    assert shown in told and " s" in told


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "captioner": ({"task": "image-captioning"}, "teacher: classifiers and dual encoders learn from a teacher"),
    "no store": ({"cache": "off"}, "remove `cache: off`"),
    "mixed images": ({"data": {"source": "sample", "augment": {"mixup": 0.2}}}, "has no answer to mixed ones"),
    "mixed in a stage": (
        {"stages": [{"name": "all", "epochs": 1, "augment": {"cutmix": 1.0}}]},
        "stages.0.augment.cutmix: a teacher sees each image alone",
    ),
    "numbers": (
        {"data": {"source": "sample", "regression": {}}, "teacher": {"model": "x", "temperature": 2.0}},
        "teacher.temperature: numbers have no temperature",
    ),
    "weight": ({"teacher": {"model": "x", "weight": 1.5}}, "teacher.weight"),
    "key": ({"teacher": {"model": "x", "temprature": 1.5}}, "did you mean temperature?"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_recipes_that_a_teacher_cannot_go_with(name: str) -> None:
    changes, message = REFUSED[name]
    values = {"task": "image-classification", "data": {"source": "sample"}, "teacher": "x", **changes}
    with pytest.raises(InputError) as raised:
        recipe_from_dict(values, name="x")
    assert message in str(raised.value)


@pytest.mark.slow
def test_the_quickstart_is_taught_by_the_release_of_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["data.image_size=32", "data.limit=60", "evaluation.baselines=off", "evaluation.splits=[test]"]
    teacher = ["model.vision={backbone: timm/test_efficientnet, pretrained: false}", "cache=off"]
    stages = ["stages=[{name: all, epochs: 1}]"]
    mmhf.train("quickstart/image_classifier", [*small, *teacher, *stages])
    run = mmhf.train("quickstart/distillation", [*small, *stages])
    assert json.loads((Path(run.folder) / "lineage.json").read_text())["teacher"]["revision"] == "v0.1"
    assert (tmp_path / "releases" / "quickstart_distillation" / "v0.1" / "release.json").is_file()
