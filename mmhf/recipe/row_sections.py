"""Which rows of a table are used, and how they are split: `filters:`, `split:` and `fold:`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from mmhf.recipe.sections import Fraction, PositiveInt, Section

Scalar = str | bool | int | float


class ConditionSection(Section):
    """A condition on the values of a column. Numbers are compared as numbers, whatever their type in the table."""

    min: float | int | None = None
    """The smallest number that passes; values that are not numbers do not."""
    max: float | int | None = None
    """The largest number that passes."""
    exclude: list[Scalar | None] = []
    """Values that do not pass; null stands for a missing value."""
    or_missing: bool = False
    """Rows without a value pass too."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> ConditionSection:
        if self.min is None and self.max is None and not self.exclude:
            raise ValueError("give `min`, `max` or `exclude`")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min = {self.min:g} is above max = {self.max:g}, so no row passes")
        if self.or_missing and None in self.exclude:
            raise ValueError("`or_missing` lets rows without a value pass, and `exclude` names null; remove one")
        return self


class FiltersSection(Section):
    """Filters on rows, applied in this order. The plan and the report say how many rows each filter kept."""

    datasets: Annotated[list[str], Field(min_length=1)] | None = None
    """Values of the column `dataset_column` to keep, such as `[fitzpatrick17k, ddi]`; absent: all."""
    dataset_column: str = "dataset"
    sub_sources: dict[str, Annotated[list[str], Field(min_length=1)]] = {}
    """Data set → values of `sub_source_column` to keep, such as `{derm1m: [pubmed]}`; other data sets stay whole."""
    sub_source_column: str = "source"
    where: dict[str, ConditionSection | list[Scalar | None] | Scalar] = {}
    """Column → its required value, a list of allowed ones (null: missing), or `min`, `max`, `exclude`."""
    has_text: bool | None = None
    """true: only rows with a text, false: only rows without; absent: both."""
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Keep this share of each label's rows, rounded up, drawn by `seed`; absent: all."""
    seed: int = 42
    min_samples_per_label: PositiveInt | None = None
    """Leave out labels with fewer rows than this, counted after the other filters. If the splits are given, a label
    with enough rows in total but too few in `train` is an error."""
    min_samples_per_split: Annotated[int, Field(ge=0)] = 1
    """With `min_samples_per_label`: a label with fewer rows than this in any split is an error; 0 allows none."""

    @model_validator(mode="after")
    def _sub_sources_are_of_chosen_data_sets(self) -> FiltersSection:
        for name in self.sub_sources:
            if self.datasets is not None and name not in self.datasets:
                raise ValueError(f"sub_sources.{name}: {name!r} is not among `datasets`")
        return self

    def columns(self) -> list[str]:
        """The columns that these filters read, except for the label and the text."""
        names = [self.dataset_column] if self.datasets is not None or self.sub_sources else []
        return [*names, *([self.sub_source_column] if self.sub_sources else []), *self.where]


class SplitSection(Section):
    """How one table is split."""

    validation: Fraction = 0.1
    test: Fraction = 0.1
    stratify: bool = True
    """Keep the proportions of the labels in each split."""
    group_by: str | None = None
    """Rows with the same value in this column (a patient, an author) stay in one split."""
    seed: int = 42

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> SplitSection:
        if self.validation + self.test >= 1.0:
            raise ValueError(f"validation + test = {self.validation + self.test:g} leaves no rows to train on")
        return self


class FoldSection(Section):
    """One fold of a cross-validation; `mmhf train --folds` trains each of them."""

    number: PositiveInt
    """Which one, from 1. Its rows are the validation split, those of the other folds the training split."""
    of: Annotated[int, Field(ge=2)]
    """How many folds the rows of training and validation are cut into, stratified and grouped as `split` says. The
    test split stays as it is."""

    @model_validator(mode="after")
    def _is_there(self) -> FoldSection:
        if self.number > self.of:
            raise ValueError(f"number = {self.number} is more than of = {self.of}")
        return self
