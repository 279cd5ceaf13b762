"""What frozen parts of a model are computed once in which stage, what that takes on disk, and what it saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from mmhf.conventions import ImageSize, Modality
from mmhf.data.augment import Flips
from mmhf.data.collators import RandomChanges
from mmhf.features.boundaries import in_eval_mode
from mmhf.features.parts import FeaturePart, HasFeatureParts
from mmhf.recipe.training_sections import CacheSection

if TYPE_CHECKING:
    from mmhf.training.stages import StagePlan

CONTENT: Mapping[str, Modality] = {"vision": "image", "text": "text"}
"""Part of a model → what of a sample it looks at."""

_FLOPS_PER_SECOND = {"cpu": 3e10}
_FLOPS_PER_SECOND_ELSEWHERE = 2e13
_SECONDS_TO_DECODE = {"image": 4e-3, "text": 5e-5}
_SECONDS_TO_FIND = 4e-6
_BYTES_READ_PER_SECOND = 1e9
_BYTES_WRITTEN_PER_SECOND = 3e8
_LEAST_GAIN = 1.2
_OWN_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class PartMeasure:
    """One sample's features: their shape, the dtype that the part gives, and the operations that make them."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    flops: int


@dataclass(frozen=True)
class PartChoice:
    """Whether one part's features are stored in one stage.

    Attributes:
        part (`FeaturePart`): The part.
        is_used (`bool`): Whether features are stored and read, at least in evaluation.
        for_training (`bool`): Whether training reads them, too.
        why (`str`): The reason, where one of the two is not so.
        shape (`tuple[int, ...]`): Of one sample's features.
        dtype (`torch.dtype`): In which they are stored.
        num_rows (`int`): Samples, evaluation included, times their views.
        passes (`float`): How often training meets each of its samples while the part stays as it is.
        gain (`float`): Time of the part and of what it reads in these passes, without and with stored features.
    """

    part: FeaturePart
    is_used: bool
    for_training: bool
    why: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    num_rows: int
    passes: float
    gain: float

    @property
    def num_bytes(self) -> int:
        """Bytes of all features."""
        return self.num_rows * _row_bytes(self.shape, self.dtype)

    def describe(self) -> str:
        """What `mmhf plan` says of it."""
        part = self.part.name if self.part.boundary is None else f"vision up to {self.part.boundary}"
        if not self.is_used:
            return f"{part} is not: {self.why}"
        shape = " × ".join(map(str, self.shape))
        size = (
            f"{self.num_rows:,} × {shape} {str(self.dtype).removeprefix('torch.')}, {self.num_bytes / 2**20:.1f} MiB"
        )
        gain = f"its {self.passes:.3g} passes about {self.gain:.2g} times as fast"
        return f"{part} ({size}; {gain})" if self.for_training else f"{part} in evaluation ({size}); {self.why}"


@dataclass(frozen=True)
class CacheSetting:
    """All that the choice depends on beside the plan.

    Attributes:
        section (`CacheSection`): What the recipe says.
        changes_in (`Callable[[int], RandomChanges]`): Index of a stage → what happens to its images at random.
        dropped (`Collection[str]`): Parts whose input is taken away at random.
        samples_per_epoch (`int`, *optional*): Training samples of an epoch; None for a stream, which is not cached.
        places (`Mapping[str, int]`): `image`, `text` → how many of them the training split has.
        evaluated (`Mapping[str, int]`): Likewise, of the split that is evaluated while training.
        image_size ([`ImageSize`], *optional*): Of the images; None: each has its own, and only whole encoders are
            stored.
        device_type (`str`): Where the parts run.
        least_side (`int`, *optional*): How long the shorter side of a decoded image is at least; None: it is whole.
        needed (`Collection[str]`): Parts whose features the task reads, whether or not that saves time.
    """

    section: CacheSection
    changes_in: Callable[[int], RandomChanges]
    dropped: Collection[str]
    samples_per_epoch: int | None
    places: Mapping[str, int]
    evaluated: Mapping[str, int]
    image_size: ImageSize | None
    device_type: str = "cpu"
    least_side: int | None = None
    needed: Collection[str] = ()


def measure_shapes(model: PreTrainedModel, part: FeaturePart, inputs: Mapping[str, Tensor]) -> PartMeasure | None:
    """As `measure_part`, of a model on the meta device."""
    if CONTENT[part.name] == "image":
        return measure_part(model, part, inputs)
    # Fake tensors rather than meta ones: encoders look at the values of an attention mask unless they see a fake.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return measure_part(model, part, {name: mode.from_tensor(value) for name, value in inputs.items()})


@torch.no_grad()
def measure_part(model: PreTrainedModel, part: FeaturePart, inputs: Mapping[str, Tensor]) -> PartMeasure | None:
    """Run a part on one sample.

    Args:
        model (`PreTrainedModel`): The model.
        part (`FeaturePart`): One of its parts.
        inputs (`Mapping[str, Tensor]`): One sample of the largest shape.

    Returns:
        `PartMeasure`, or None where the shape of its features is not the same for all samples.
    """
    assert isinstance(model, HasFeatureParts)
    given = {name: inputs[name] for name in part.inputs if name in inputs}
    shorter = {name: value[:, : max(value.shape[1] // 2, 1)] for name, value in given.items() if value.dim() == 2}
    counter = FlopCounterMode(display=False)
    with in_eval_mode(model):
        with counter:
            features = model.compute_features(part, **given)
        # What is pooled, (1, D), is as wide for a shorter text.
        has_one_shape = (
            not shorter or features.dim() == 2 or model.compute_features(part, **shorter).shape == features.shape
        )
    return PartMeasure(tuple(features.shape[1:]), features.dtype, counter.get_total_flops()) if has_one_shape else None


def choose_parts(
    plan: StagePlan, setting: CacheSetting, measure: Callable[[FeaturePart], PartMeasure | None]
) -> list[list[PartChoice]]:
    """Choose, for each stage, the parts whose features are stored.

    A part may be where the stage trains none of its groups: an encoder, or what lies below the first group that
    trains. Under `mode: auto` it is where that takes less time (by the operations of the part, by rough constants for
    decoding, reading and writing, and by how often training meets each sample), where a stage starts from a linear
    probe, and where the task needs them.

    Args:
        plan (`StagePlan`): The stages.
        setting (`CacheSetting`): What else counts.
        measure (`Callable`): Measures a part; asked only where it matters.

    Returns:
        `list[list[PartChoice]]`: for each stage its frozen parts.
    """
    model = plan.model
    chosen: list[list[PartChoice]] = [[] for _ in plan.stages]
    if setting.section.mode == "off" or not isinstance(model, HasFeatureParts):
        return chosen
    for encoder in model.feature_parts():
        for part, run in _frozen_runs(plan, model, encoder, setting):
            most = sum(stage_epochs(plan, index) for index in run) * _repeats(encoder, setting)
            if _must_pay(plan, part, run, setting) and most < _LEAST_GAIN:
                for index in run:
                    chosen[index].append(_refused(_nothing(part), f"training meets each sample {most:.2g} times"))
                continue
            measured = measure(part)
            for index in run:
                chosen[index].append(_choose(plan, part, index, run, setting, measured))
    return chosen


def stored_dtype(section: CacheSection, measured: PartMeasure) -> torch.dtype:
    """In which a part's features are stored: the recipe's, or the part's own."""
    return measured.dtype if section.dtype is None else _OWN_DTYPES[section.dtype]


def _choose(
    plan: StagePlan,
    part: FeaturePart,
    index: int,
    run: Sequence[int],
    setting: CacheSetting,
    measured: PartMeasure | None,
) -> PartChoice:
    if measured is None:
        return _refused(_nothing(part), "its features have no fixed shape")
    content = CONTENT[part.name]
    obstacles = {stage: _obstacle(part, stage, setting) for stage in run}
    views = num_views(setting, index) if content == "image" else None
    places = setting.places.get(content, 0) * (views or 1)
    epochs = sum(stage_epochs(plan, stage) for stage in run if obstacles[stage] is None)
    passes = epochs * (setting.samples_per_epoch or 0) / max(places, 1)
    dtype = stored_dtype(setting.section, measured)
    evaluated = setting.evaluated.get(content, 0)
    for_training = obstacles[index] is None
    if not for_training:
        places, passes = 0, sum(stage_epochs(plan, stage) for stage in run)
    gain = _gain(measured, dtype, content, passes, setting.device_type)
    choice = PartChoice(
        part, True, for_training, obstacles[index] or "", measured.shape, dtype, places + evaluated, passes, gain
    )
    if choice.num_rows == 0:
        return _refused(choice, obstacles[index] or "there are no samples to store")
    limit = setting.section.max_bytes
    if limit is not None and choice.num_bytes > limit:
        return _refused(choice, f"{choice.num_bytes:,} bytes are more than cache.max_bytes")
    if _must_pay(plan, part, run, setting) and gain < _LEAST_GAIN:
        why = f"{passes:.3g} passes would be only {gain:.2g} times as fast"
        return _refused(choice, why)
    return choice


def _must_pay(plan: StagePlan, part: FeaturePart, run: Sequence[int], setting: CacheSetting) -> bool:
    """Whether features are stored only where that saves time; a linear probe needs them in any case."""
    is_needed = part.name in setting.needed or any(plan.stages[stage].section.start is not None for stage in run)
    return setting.section.mode == "auto" and not is_needed


def _nothing(part: FeaturePart) -> PartChoice:
    return PartChoice(part, False, False, "", (), torch.float32, 0, 0.0, 1.0)


def _refused(choice: PartChoice, why: str) -> PartChoice:
    return PartChoice(
        choice.part, False, False, why, choice.shape, choice.dtype, choice.num_rows, choice.passes, choice.gain
    )


def _obstacle(part: FeaturePart, stage: int, setting: CacheSetting) -> str | None:
    """Why training cannot read a frozen part's features; None where it can."""
    if setting.samples_per_epoch is None:
        return "the training split is a stream"
    if part.name in setting.dropped:
        return "its input is dropped at random"
    if CONTENT[part.name] != "image":
        return None
    if setting.changes_in(stage).mixer is not None:
        return "images are mixed"
    if setting.changes_in(stage).augmentation is not None and num_views(setting, stage) is None:
        return "images change at random; cache.views would keep some views of each"
    return None


def num_views(setting: CacheSetting, stage: int) -> int | None:
    """Views of each image that a stage stores: the recipe's number, or all where they are few; None = as it is."""
    augmentation = setting.changes_in(stage).augmentation
    if augmentation is None or setting.section.views is not None:
        return None if augmentation is None else setting.section.views
    return augmentation.num_views if isinstance(augmentation, Flips) else None


def _frozen_runs(
    plan: StagePlan, model: HasFeatureParts, encoder: FeaturePart, setting: CacheSetting
) -> list[tuple[FeaturePart, list[int]]]:
    """The largest frozen part of an encoder, and the stretch of stages in which that is so and its weights stay."""
    runs: list[tuple[FeaturePart, list[int]]] = []
    for index, stage in enumerate(plan.stages):
        few = setting.section.mode == "auto" and stage_epochs(plan, index) * _repeats(encoder, setting) < _LEAST_GAIN
        # To find where an encoder can be cut takes some passes, which one epoch of a stage would not pay for.
        part = model.part_below(encoder, stage.curves, image_size=None if few else setting.image_size)
        if part is None:
            continue
        if runs and runs[-1][0] == part and runs[-1][1][-1] == index - 1:
            runs[-1][1].append(index)
        else:
            runs.append((part, [index]))
    return runs


def stage_epochs(plan: StagePlan, index: int) -> float:
    """Passes over the training data that a stage makes."""
    stage = plan.stages[index]
    return stage.num_steps / stage.steps_per_epoch if stage.steps_per_epoch else 0.0


def _repeats(encoder: FeaturePart, setting: CacheSetting) -> float:
    """How often an epoch meets each image, or text."""
    places = setting.places.get(CONTENT[encoder.name], 0)
    return setting.samples_per_epoch / places if places and setting.samples_per_epoch is not None else 1.0


def _row_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def part_seconds(measured: PartMeasure, content: Modality, device_type: str) -> float:
    """About how long one sample takes to be decoded and to pass through a part."""
    speed = _FLOPS_PER_SECOND.get(device_type, _FLOPS_PER_SECOND_ELSEWHERE)
    return measured.flops / speed + _SECONDS_TO_DECODE[content]


def _gain(measured: PartMeasure, dtype: torch.dtype, content: Modality, passes: float, device_type: str) -> float:
    """How many times as fast these passes are. All constants are rough: they decide where it is clear, no more."""
    size = _row_bytes(measured.shape, dtype)
    compute = part_seconds(measured, content, device_type)
    read = _SECONDS_TO_FIND + size / _BYTES_READ_PER_SECOND
    write = size / _BYTES_WRITTEN_PER_SECOND
    return passes * compute / (compute + write + passes * read) if passes >= 1 else 1.0
