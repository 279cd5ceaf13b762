"""What a sweep searches: a YAML file of recipe keys with the values that each may take."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import Field, model_validator

from mmhf.errors import InputError
from mmhf.recipe.node import as_input_error
from mmhf.recipe.sections import PositiveInt, Section
from mmhf.recipe.training_sections import greater_is_better
from mmhf.recipe.validation import check_section
from mmhf.recipe.yaml_loader import load_yaml, parse_scalar

Number = int | float
ParameterValue = None | bool | int | float | str
"""What Optuna stores of a choice; a list or mapping is stored as JSON."""


class RangeSection(Section):
    """Numbers from `low` to `high`; whole ones if both are."""

    low: Number
    high: Number
    step: Number | None = None
    log: bool = False
    """Even in the logarithm."""

    @model_validator(mode="after")
    def _is_a_range(self) -> RangeSection:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step {self.step} is not above 0")
        if self.log and self.low <= 0:
            raise ValueError(f"log: true needs a low above 0, not {self.low}")
        if self.log and self.step is not None:
            raise ValueError("log: true and step exclude each other")
        return self

    @property
    def is_whole(self) -> bool:
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    def distribution(self) -> BaseDistribution:
        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(float(self.low), float(self.high), log=self.log, step=self.step)

    def grid(self) -> list[Number]:
        """Every value that `step` reaches from `low`; whole numbers need no step."""
        step = self.step or 1
        values = [self.low + index * step for index in range(math.floor((self.high - self.low) / step + 1e-9) + 1)]
        return values if self.is_whole else [round(value, 12) for value in values]


class PrunerSection(Section):
    """Trials whose metric after an epoch is worse than others' was are stopped."""

    kind: Literal["median", "hyperband"] = "median"
    """`median` stops what is worse than half of the others at that epoch, `hyperband` halves again and again."""
    startup_trials: PositiveInt = 5
    """`median`: trials that run to their end before any is stopped."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 1
    """Epochs for which no trial is stopped."""


class SpaceSection(Section):
    """The whole file."""

    metric: str
    """Name in `metrics.json` and in the evaluations while training, without the split, such as f1_macro."""
    direction: Literal["maximize", "minimize"] | None = None
    """Absent: what is better by the metric's name, `minimize` for a loss or a rank, else `maximize`."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    trials: PositiveInt | None = None
    """Absent: 20, or the whole grid."""
    seed: Annotated[int, Field(ge=0)] = 0
    pruner: PrunerSection | None = None
    """Absent: every trial runs to its end."""
    space: Annotated[dict[str, RangeSection | Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    """Recipe key, as in an override -> the values it may take, as a list or as `{low, high, log, step}`."""

    @model_validator(mode="after")
    def _has_a_grid(self) -> SpaceSection:
        for key, values in self.space.items():
            needs_step = isinstance(values, RangeSection) and not values.is_whole and values.step is None
            if self.sampler == "grid" and needs_step:
                raise ValueError(f"sampler: grid needs a step, or a list of values, for {key}")
        return self


@dataclass(frozen=True)
class SweepSpace:
    """A space that is complete and valid.

    Args:
        section (`SpaceSection`): What was written.
        path (`Path`): The file.
    """

    section: SpaceSection
    path: Path

    @property
    def num_trials(self) -> int:
        if self.section.sampler == "grid":
            return min(self.section.trials or len(self.grid()), len(self.grid()))
        return self.section.trials or 20

    @property
    def is_maximized(self) -> bool:
        section = self.section
        if section.direction is None:
            return greater_is_better(section.metric)
        return section.direction == "maximize"

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of each key."""
        return {
            key: values.distribution()
            if isinstance(values, RangeSection)
            else CategoricalDistribution(_choices(values))
            for key, values in self.section.space.items()
        }

    def grid(self) -> list[dict[str, ParameterValue]]:
        """All combinations, the last key changing fastest."""
        columns: list[Sequence[ParameterValue]] = [
            values.grid() if isinstance(values, RangeSection) else _choices(values)
            for values in self.section.space.values()
        ]
        return [dict(zip(self.section.space, row, strict=True)) for row in itertools.product(*columns)]

    def extremes(self) -> list[tuple[str, ParameterValue]]:
        """(key, value) pairs that show whether a key takes what the space gives it: all choices, both ends."""
        pairs: list[tuple[str, ParameterValue]] = []
        for key, values in self.section.space.items():
            tried = (values.low, values.high) if isinstance(values, RangeSection) else _choices(values)
            pairs += [(key, value) for value in tried]
        return pairs

    def identity(self) -> dict[str, Any]:
        """What must not change between processes that work on one study; the number of trials may."""
        return self.section.model_dump(mode="json", exclude={"trials"})


def as_overrides(values: Mapping[str, ParameterValue]) -> list[str]:
    """A trial's values as overrides of the recipe."""
    return [f"{key}={_as_text(value)}" for key, value in values.items()]


def load_space(path: str | Path) -> SweepSpace:
    """Read and validate a space.

    Raises:
        InputError: All that is wrong with it, a line each, with file, line, key and the nearest valid name.
    """
    path = Path(path)
    tree = load_yaml(path, str(path))
    values = tree.plain()
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a mapping with metric and space")
    section, problems = check_section(SpaceSection, values)
    if section is None:
        raise as_input_error(problems, tree)
    return SweepSpace(section, path)


def _choices(values: Sequence[Any]) -> list[ParameterValue]:
    choices = [json.dumps(value) if isinstance(value, dict | list) else value for value in values]
    return list(dict.fromkeys(choices))


def _as_text(value: ParameterValue) -> str:
    if isinstance(value, str):
        # Text that reads as a number or as null was text in the space too, and JSON is what a list was stored as.
        is_plain = value[:1] in ("{", "[") or (parse_scalar(value) == value and value.strip() == value)
        return value if is_plain else json.dumps(value)
    return json.dumps(value)
