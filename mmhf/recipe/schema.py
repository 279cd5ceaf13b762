"""What the recipes of all tasks share: every key that a user may write, its type, its default and what it means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from mmhf.recipe.data_sections import DataSectionBase
from mmhf.recipe.node import Problem
from mmhf.recipe.sections import ModelSection, Section
from mmhf.recipe.training_sections import (
    CacheChoice,
    CheckpointsSection,
    EmaSection,
    EvaluationSection,
    HistorySection,
    OptimizerSection,
    PlateauSection,
    StageSection,
    TeacherChoice,
    TrackingSection,
)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TAKEN = re.compile(r"best|main|releasing-.*|v?\d.*")


class CardSection(Section):
    """The parts of a model card that only people can write."""

    license: str | None = None
    """The Hub's identifier, such as `apache-2.0`; `other` needs `license_name`."""
    license_name: str | None = None
    license_link: str | None = None
    language: list[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]] = []
    """ISO 639 codes, such as `en`."""
    datasets: list[str] = []
    """Hub names of the data sets, if they are on the Hub."""
    tags: list[str] = []
    summary: str | None = None
    """One or two sentences under the title."""
    intended_use: str | None = None
    limits: str | None = None
    """Known failures, misuse, and gaps in the data."""

    @model_validator(mode="after")
    def _names_its_license(self) -> CardSection:
        if self.license == "other" and self.license_name is None:
            raise ValueError("`license: other` needs `license_name`, and should have `license_link`")
        return self


class ReleaseSection(Section):
    repo: str
    """Folder that holds the versions of one model; with `push`, a repository of the Hub, `ORG/NAME`."""
    version: Annotated[str, Field(pattern=r"^v?\d+(\.\d+){0,2}([-_.][0-9A-Za-z]+)*$")]
    """In quotes, as "1.8": YAML reads an unquoted 1.10 as 1.1."""
    include_frozen: bool = False
    """Also store the encoders that are else only referred to: those that captioners have never trained, and those
    whose weights have few bits."""
    lora: Literal["merge", "keep"] | None = None
    """With `model.lora`: `merge` adds the changes to the weights, so that nobody needs peft; `keep` stores the changes
    apart, and of an encoder that is as it was, only where it comes from. Absent: `merge`, unless the encoder is stored
    as a reference anyway."""
    push: bool = False
    """Release to the Hub and not to a folder."""
    private: bool = False
    """Create the repository as a private one."""
    channel: Annotated[str, Field(pattern=r"^[A-Za-z][\w.-]*$")] | None = None
    """Branch on the Hub that is moved to this version; absent: `main`."""
    best_metric: str | None = None
    """The tag `best` is kept at the version that is best by this metric, such as `test_f1_macro`."""
    greater_is_better: bool | None = None
    """For `best_metric`; absent: derived from its name, false for a loss, an error or a rank."""
    card: CardSection = CardSection.model_construct()

    @model_validator(mode="after")
    def _names_a_hub_repository(self) -> ReleaseSection:
        if self.push and not _HUB_ID.fullmatch(self.repo):
            raise ValueError(f"`push: true` needs a `repo` of the form ORG/NAME, got {self.repo!r}")
        for_hub = {"private": self.private, "channel": self.channel, "best_metric": self.best_metric}
        for key in (key for key, value in for_hub.items() if value and not self.push):
            raise ValueError(f"`{key}` is for the Hub; set `push: true`")
        if self.channel is not None and _TAKEN.fullmatch(self.channel):
            raise ValueError(f"a channel cannot be called {self.channel!r}; choose a name such as `experimental`")
        return self


RECIPE_BY_TASK: dict[str, type[RecipeBase]] = {}
"""Task → its recipe; the class is in the module of this folder that is called `FAMILY_recipe.py`."""


class RecipeBase(Section):
    """What the recipes of all tasks have in common."""

    reads_labels: ClassVar[bool] = True
    """Whether rows have a label; otherwise they have captions."""
    reads_texts: ClassVar[bool] = False
    """Whether rows also have a text."""
    can_be_taught: ClassVar[bool] = True
    """Whether the model has answers that a teacher's can be compared with."""

    task: str
    init_from: str | None = None
    """A release to start from, `REPO@vX.Y`; absent = start from the backbones."""
    teacher: TeacherChoice | None = None
    """A release whose answers are learnt beside the data, `REPO@vX.Y` or a section; for classifiers and dual
    encoders. Its answers to the training samples are computed once and stored."""
    model: ModelSection
    data: DataSectionBase
    training: dict[str, Any] = {}
    """Any field of `transformers.TrainingArguments`, by its own name; null removes an inherited one."""
    optimizer: OptimizerSection | None = None
    """Absent: `training.optim` and related fields."""
    stages: Annotated[list[StageSection], Field(min_length=1)] | None = None
    """Absent = one stage that trains everything for `training.num_train_epochs`."""
    early_stopping: PlateauSection | None = None
    """End the run when the metric stalls."""
    unfreeze_on_plateau: PlateauSection | None = None
    """Go on to the next stage when the metric stalls; after the last one, end the run."""
    ema: EmaSection | None = None
    """Absent = the plain weights are evaluated and saved."""
    cache: CacheChoice = "auto"
    """Store the features of frozen encoders, so that each sample is computed once."""
    checkpoints: CheckpointsSection = CheckpointsSection.model_construct()
    evaluation: EvaluationSection = EvaluationSection.model_construct()
    tracking: TrackingSection = TrackingSection.model_construct()
    release: ReleaseSection | None = None
    history: list[HistorySection] = []
    """Of a run that was changed on the way: its parts are trained again as they were. `history=[]` trains all of it as
    the rest of the recipe says."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """A recipe class that says which task it belongs to is the recipe of that task."""
        super().__pydantic_init_subclass__(**kwargs)
        for task in get_args(cls.model_fields["task"].annotation):
            RECIPE_BY_TASK[task] = cls

    def pairs_per_step(self) -> int | None:
        """Pairs of one optimizer step, over all processes; None: as many as `training` accumulates."""
        return None

    def why_no_probe(self, stage: StageSection) -> str | None:
        """Why a stage's `start: linear_probe` means nothing in this recipe; None where it does."""
        return "only image classifiers and dual encoders have linear layers on stored features; remove it"

    def problems(self) -> Iterator[Problem]:
        """Contradictions that only recipes of this task can have; `combination_problems` finds the others."""
        yield from ()
