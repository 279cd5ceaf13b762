"""What is learnt of a row, where it is not one class: any number of labels, numbers, or classes in an order."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from mmhf.recipe.sections import Section


class TargetSection(Section):
    """How a kind of target is read."""

    def columns_read(self) -> list[str] | None:
        """The columns that hold it; None: the column `columns.label`."""
        return None


class MultiLabelSection(TargetSection):
    """Any number of labels a row: a list or a text with several names in `columns.label`, or several columns."""

    separator: str | None = None
    """What stands between the labels of a text, such as `,`; absent: lists, also those written out in a text."""
    columns: Annotated[list[str], Field(min_length=2)] | None = None
    """Columns named after the labels, in place of `columns.label`: 1 or true where a row has it, else 0 or false."""
    names: Annotated[list[str], Field(min_length=2)] | None = None
    """The labels, in the order of their ids; absent: `columns`, or all that there are, sorted."""
    others: Literal["raise", "ignore"] = "raise"
    """Labels that are not among `names`: a bad row (`on_bad_row`), or as if they were not there."""
    empty: Literal["none", "missing"] | None = None
    """A row without labels has `none` of them, or they are `missing`, and it is a bad row (`on_bad_row`); of several
    columns, one without a value. Absent: such a row is an error."""

    @model_validator(mode="after")
    def _one_way_to_name_labels(self) -> MultiLabelSection:
        if self.columns is not None and self.separator is not None:
            raise ValueError("`columns` have a label each, and nothing to separate; remove `separator`")
        if self.columns is not None and self.names is not None:
            raise ValueError("`columns` name the labels already; remove `names`")
        if self.separator == "":
            raise ValueError("separator: is empty; leave it away where the column has lists")
        for name in ("columns", "names"):
            _refuse_twice(name, getattr(self, name) or [])
        if self.others == "ignore" and self.names is None:
            raise ValueError("others: ignore needs `names`: which labels to keep")
        return self

    def columns_read(self) -> list[str] | None:
        return self.columns


class RegressionSection(TargetSection):
    """A number a row, in `columns.label`, or several numbers, in columns of their own."""

    columns: Annotated[list[str], Field(min_length=1)] | None = None
    """Columns of numbers, in place of `columns.label`."""

    @model_validator(mode="after")
    def _each_once(self) -> RegressionSection:
        _refuse_twice("columns", self.columns or [])
        return self

    def columns_read(self) -> list[str] | None:
        return self.columns


def _read_name(value: object) -> object:
    """Grades are often whole numbers."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class OrdinalSection(TargetSection):
    """One class a row, of classes that have an order."""

    order: Annotated[list[Annotated[str, BeforeValidator(_read_name)]], Field(min_length=2)]
    """All classes, the lowest first."""

    @model_validator(mode="after")
    def _each_once(self) -> OrdinalSection:
        _refuse_twice("order", self.order)
        return self


def _refuse_twice(key: str, names: list[str]) -> None:
    if twice := next((each for each in names if names.count(each) > 1), None):
        raise ValueError(f"{key}: {twice!r} is given twice")
