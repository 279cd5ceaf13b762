"""A released model as the teacher of a run: whether it fits, and its answers to the training samples."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedModel

from mmhf.conventions import TEACHER_EMBEDS, Content
from mmhf.data.datasets import RowDataset
from mmhf.data.loading import LoadedData
from mmhf.errors import InputError, UnreachableError
from mmhf.features.choice import PartMeasure, part_seconds
from mmhf.features.column import FeatureColumn
from mmhf.features.fill import Filler, Lacking, Source, find_lacking, gathered_digests, make_room_for
from mmhf.features.keys import answers_store_name
from mmhf.features.parts import FeaturePart
from mmhf.features.stage import features_folder
from mmhf.features.store import FeatureLayout, FeatureStore
from mmhf.files import CONFIG_FILE, RELEASE_FILE
from mmhf.hub.releases import ResolvedModel, resolve_model
from mmhf.inference.loading import load_model, model_type_of
from mmhf.models.family import families
from mmhf.models.naflex import NaflexImageProcessor
from mmhf.models.targets import Target, target_of
from mmhf.parallel import failing_together
from mmhf.recipe.training_sections import TeacherSection, cache_section
from mmhf.training.boundary import beside_training
from mmhf.training.trainer import MMTrainer

if TYPE_CHECKING:
    from mmhf.tasks.base import Task

logger = logging.getLogger(__name__)

_CONFIG_FILES = [CONFIG_FILE, RELEASE_FILE, "*processor_config.json"]
_SHOWN_CLASSES = 5


@dataclass(frozen=True)
class Teacher:
    """A released model whose answers are learnt.

    Attributes:
        section (`TeacherSection`): What the recipe says.
        source ([`ResolvedModel`]): Where it is; of a repository of the Hub, only its configuration files.
        config (`PreTrainedConfig`): Its config.
    """

    section: TeacherSection
    source: ResolvedModel
    config: PreTrainedConfig

    def __str__(self) -> str:
        return str(self.source.reference)

    def order_of(self, label_names: Sequence[str], target: Target) -> tuple[int, ...] | None:
        """For each of the data's labels its number among the teacher's; None where they are the same.

        Raises:
            InputError: They are others, or something else is learnt.
        """
        if (own := target_of(self.config)) is not target:
            raise InputError(
                f"teacher {self}: its rows had {own.learns}, those of the data have {target.learns}; name another "
                "teacher, or see data.multi_label, data.regression and data.ordinal"
            )
        names = [str(name) for name in (self.config.id2label or {}).values()]
        lacking, foreign = sorted({*label_names} - {*names}), sorted({*names} - {*label_names})
        if lacking or foreign:
            found = [f"{what} {_some(each)}" for what, each in (("lacks", lacking), ("has", foreign)) if each]
            raise InputError(
                f"teacher {self}: its classes are not those of the data, it {' and '.join(found)}; name a teacher "
                "that was trained on the same classes"
            )
        order = tuple(map(names.index, label_names))
        return None if order == tuple(range(len(order))) else order

    def width_of(self, part: FeaturePart) -> int:
        """Numbers of what it makes of a sample."""
        config: Any = self.config
        return int(config.embedding_dim) if part.feature in TEACHER_EMBEDS else len(config.id2label)


def find_teacher(section: TeacherSection, task: str) -> Teacher:
    """The release that a recipe names as its teacher; of the Hub, configuration files are fetched at most.

    Args:
        section (`TeacherSection`): What the recipe says.
        task (`str`): The recipe's task, which has to be that of the teacher.

    Raises:
        UnreachableError: The Hub does not answer.
        InputError: There is no such release, or it is a model of another task.
    """
    try:
        source = resolve_model(section.model, verify=False, only=_CONFIG_FILES)
        model_type = model_type_of(source.path)
    except UnreachableError as error:
        raise UnreachableError(f"teacher: {error}") from error
    except InputError as error:
        raise InputError(f"teacher: {error}") from error
    family = families().get(model_type)
    if family is None or family.task != task:
        is_for = f"a {model_type} model" if family is None else f"a model of the task {family.task}"
        raise InputError(f"teacher {source.reference}: is {is_for}; a teacher has the student's task, {task}")
    return Teacher(section, source, AutoConfig.from_pretrained(source.path, local_files_only=True))


class AnsweringModel(nn.Module):
    """What a teacher answers, row by row, as features that can be stored.

    Args:
        model (`PreTrainedModel`): A classifier or a dual encoder.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model

    @property
    def device(self) -> torch.device:
        """Where it is."""
        device: torch.device = self.model.device
        return device

    def compute_features(self, part: FeaturePart, **inputs: Tensor) -> Tensor:
        """(B, C) answers of a classifier, or (B, D) embeddings; those of images times the teacher's logit scale."""
        if part.feature in TEACHER_EMBEDS:
            output = self.model(**inputs)
            embeds: Tensor
            if part.feature == TEACHER_EMBEDS[1]:
                embeds = output.text_embeds.float()
            else:
                embeds = output.image_embeds.float() * self.model.similarity_scale.float()
            return embeds
        given = dict(inputs)
        # By themselves, encoders run on all rows, also those that lack the modality: what a row is given does not
        # depend on the others.
        if "pixel_values" in given:
            given["image_features"] = self.model.image_features(given.pop("pixel_values"))
        if "input_ids" in given:
            tokens, mask = given.pop("input_ids"), given.pop("attention_mask")
            given["text_features"] = self.model.text_features(tokens, mask)
        answers: Tensor = self.model(**given).logits.float()
        return answers


def learn_from(teacher: Teacher, task: Task[Any, Any], trainer: MMTrainer) -> None:
    """Put a teacher's answers beside the training rows; those that the store lacks are computed, in one pass.

    All processes call it before the first step. The teacher is loaded only where something is lacking, and is gone
    when that is done.

    Raises:
        InputError: The rows are a stream, the answers cannot be stored, or the release is damaged.
    """
    dataset = trainer.train_dataset
    if not isinstance(dataset, RowDataset) or not isinstance(dataset.table, datasets.Dataset):
        raise InputError("teacher: its answers are looked up for each sample of a table; the training split is none")
    columns = dict(_columns(teacher, task, trainer, dataset))
    lacking = {content: find_lacking([column]) for content, column in columns.items()}
    for content, column in columns.items():
        make_room_for(len(lacking[content]), column.store, max_bytes=cache_section(task.recipe.cache).max_bytes)
    if any(map(len, lacking.values())):
        with beside_training():
            _ask(teacher, task, trainer, lacking)
    counts = [
        f"{len(lacking[content]):,} of {len(column.digests):,} {content}s" for content, column in columns.items()
    ]
    logger.info("Teacher %s: asked about %s, the other answers were there", teacher, " and ".join(counts))
    for column in columns.values():
        column.bind()
        dataset.beside[column.feature] = column


def _columns(
    teacher: Teacher, task: Task[Any, Any], trainer: MMTrainer, dataset: RowDataset
) -> Iterator[tuple[Content, FeatureColumn]]:
    """What a teacher is shown → the column of its answers."""
    folder = features_folder(cache_section(task.recipe.cache))
    for content, part in task.asked_of_teacher.items():
        name = answers_store_name(
            part,
            teacher.source.commit,
            precision=str(trainer.accelerator.mixed_precision),
            device=trainer.args.device,
            # By these, and by nothing else of the recipe, a teacher's collator goes.
            given=(task.recipe.data.on_bad_image, task.recipe.data.on_empty_text) if content == "row" else None,
        )
        with failing_together():
            store = FeatureStore(folder / name, FeatureLayout((teacher.width_of(part),), torch.float32))
        digests = gathered_digests(dataset, content)
        yield content, FeatureColumn(part.feature, content, store, torch.float32, digests)


def _ask(teacher: Teacher, task: Task[Any, Any], trainer: MMTrainer, lacking: Mapping[Content, Lacking]) -> None:
    """Load a teacher and store what it makes of samples."""
    args, dataset = trainer.args, trainer.train_dataset
    assert isinstance(dataset, RowDataset)
    path = resolve_model(teacher.section.model).path
    model, processor = load_model(path, task=task.recipe.task, device=args.device)
    collator = task.teacher_collator(processor, teacher.config)
    filler = Filler(
        AnsweringModel(model), trainer.accelerator.autocast, args.dataloader_num_workers, not args.disable_tqdm
    )
    for content, rows in lacking.items():
        if len(rows):
            part, column = task.asked_of_teacher[content], rows.columns[0]
            read = RowDataset(dataset.table) if content == "row" else dataset
            filled = filler.fill(part, column.store, rows, [Source(read, collator, is_training=False)])
            logger.info("%s %ss shown to the teacher in %.1f s", f"{filled.num_rows:,}", content, filled.seconds)


def describe_teacher(task: Task[Any, Any], teacher: Teacher, data: LoadedData | None, device_type: str) -> str:
    """What `mmhf plan` says of a teacher: what it is, what it counts, and what its one pass over the data takes."""
    rows = None if data is None else data.splits.get("train")
    family = families()[teacher.config.model_type]
    with torch.device("meta"):
        model = family.load("model")(teacher.config).eval()
    told = f"{teacher}, {model.num_parameters():,} parameters, {teacher.section.weight:.0%} of the loss"
    if data is None or not isinstance(rows, datasets.Dataset):
        return told
    dataset = task.torch_dataset(data, "train")
    assert isinstance(dataset, RowDataset)
    seconds, shown = 0.0, []
    for content, part in task.asked_of_teacher.items():
        count = dataset.num_places("image" if content == "row" else content)
        measured = _measure(task, teacher, AnsweringModel(model), part)
        seconds += count * part_seconds(measured, "text" if content == "text" else "image", device_type)
        shown.append(f"{count:,} {content}s")
    return f"{told}; asked once about {' and '.join(shown)}, which takes about {seconds:.0f} s"


def _measure(task: Task[Any, Any], teacher: Teacher, model: AnsweringModel, part: FeaturePart) -> PartMeasure:
    """One sample's answers, of a model on the meta device, with images of the teacher's own size."""
    examples = dict(task.example_inputs(1, "meta"))
    if "pixel_values" in part.inputs:
        images = AutoImageProcessor.from_pretrained(teacher.source.path, local_files_only=True)
        if isinstance(images, NaflexImageProcessor):  # a strip of as many patches, as no shape is read out of it
            side = images.patch_size
            pixel_values = torch.zeros(1, 3, side, side * images.max_num_patches)
        else:
            blank = torch.zeros(3, 32, 32, dtype=torch.uint8)
            pixel_values = images(images=[blank], return_tensors="pt")["pixel_values"]
        examples["pixel_values"] = pixel_values.to("meta")
    if "input_ids" in examples:
        examples["attention_mask"] = torch.ones_like(examples["input_ids"])
    given = {name: examples[name] for name in part.inputs if name in examples}
    counter = FlopCounterMode(display=False)
    # Fake tensors rather than meta ones, as encoders look at the values of an attention mask unless they see a fake.
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode, counter:
        answers = model.compute_features(part, **{name: mode.from_tensor(value) for name, value in given.items()})
    return PartMeasure(tuple(answers.shape[1:]), answers.dtype, counter.get_total_flops())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    return ", ".join(names[:_SHOWN_CLASSES]) + more
