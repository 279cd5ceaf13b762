"""The `filters:` section: which rows of a table are used."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from mmhf.recipe.sections import PositiveInt, Section

Scalar = str | bool | int | float


class ConditionSection(Section):
    """What the values of a column must be; numbers are compared as numbers, whatever type the table gives them."""

    min: float | int | None = None
    """The smallest number that passes; a value that is no number does not."""
    max: float | int | None = None
    """The largest number that passes."""
    exclude: list[Scalar | None] = []
    """Values that do not pass; null = rows without a value."""
    or_missing: bool = False
    """Rows without a value pass, too."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> ConditionSection:
        if self.min is None and self.max is None and not self.exclude:
            raise ValueError("give `min`, `max` or `exclude`")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min = {self.min:g} is above max = {self.max:g}, so that no row passes")
        if self.or_missing and None in self.exclude:
            raise ValueError("`or_missing` lets rows without a value pass, and `exclude` names null; remove one")
        return self


class FiltersSection(Section):
    """Which rows of a table are used, in this order; a plan and the report say how many each filter left."""

    datasets: Annotated[list[str], Field(min_length=1)] | None = None
    """Values of the column `dataset_column` to keep, such as `[fitzpatrick17k, ddi]`; absent: all."""
    dataset_column: str = "dataset"
    sub_sources: dict[str, Annotated[list[str], Field(min_length=1)]] = {}
    """Data set → values of `sub_source_column` to keep of it, such as `{derm1m: [pubmed]}`; others stay whole."""
    sub_source_column: str = "source"
    where: dict[str, ConditionSection | list[Scalar | None] | Scalar] = {}
    """Column → the value that it must have, those that it may have (null: none), or `min`, `max`, `exclude`."""
    has_text: bool | None = None
    """true: only rows with a text, false: only rows without; absent: both."""
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Keep this share of each label's rows, rounded up, drawn by `seed`; absent: all."""
    seed: int = 42
    min_samples_per_label: PositiveInt | None = None
    """Leave out labels with fewer rows, counted when the other filters are through. Where the splits are given, a
    label that has this many rows, but not in `train`, is an error."""
    min_samples_per_split: Annotated[int, Field(ge=0)] = 1
    """With `min_samples_per_label`: a label with fewer rows in any split is an error; 0 = it may be absent."""

    @model_validator(mode="after")
    def _sub_sources_are_of_chosen_data_sets(self) -> FiltersSection:
        for name in self.sub_sources:
            if self.datasets is not None and name not in self.datasets:
                raise ValueError(f"sub_sources.{name}: {name!r} is not among `datasets`")
        return self

    def columns(self) -> list[str]:
        """The columns that these filters read, but for those of label and text."""
        names = [self.dataset_column] if self.datasets is not None or self.sub_sources else []
        return [*names, *([self.sub_source_column] if self.sub_sources else []), *self.where]
