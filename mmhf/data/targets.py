"""What is learnt of a row: a class, labels, or numbers. Reading, cutting and screening ask these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmhf.data.columns import codes_of, text_array
from mmhf.data.filters import blank_placeholders
from mmhf.data.images import shorten
from mmhf.data.label_sets import LABELS_TYPE, fixed_size_lists, label_matrix, label_places, read_label_sets
from mmhf.data.labels import (
    name_rare_labels,
    number_labels,
    sorted_by_value,
    sorted_labels,
    with_unified_labels,
    written_one_way,
)
from mmhf.data.numbers import as_lists, fault_of_number, number_columns, numbers_in
from mmhf.data.readers import Values
from mmhf.data.splits import Positions, require_samples
from mmhf.data.table import SourceTable
from mmhf.errors import InputError
from mmhf.recipe.data_sections import DataSectionBase
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.recipe.target_sections import MultiLabelSection, OrdinalSection, RegressionSection

_SHOWN = 5


class RowTarget(ABC):
    """The column that a task learns from, in a source's table and in the rows that are used."""

    column: str
    """Its name in both."""

    def __init__(self) -> None:
        self.label_ids: dict[str, int] = {}
        """Label value → class id, once the labels are numbered."""

    def columns_read(self, label: str) -> list[str]:
        """The columns of a table that hold it, where `label` is the column of labels."""
        return [label]

    def read_cells(self, columns: Mapping[str, Values]) -> tuple[pa.Array, dict[int, str]]:
        """The column of a source's table, of the columns that hold it, and what is wrong with cells of some rows."""
        (values,) = columns.values()
        return text_array(values), {}

    @abstractmethod
    def unify(self, table: pa.Table, source: SourceTable) -> pa.Table:
        """The table with each label written one way.

        Raises:
            InputError: the column holds no labels.
        """

    @abstractmethod
    def number(
        self, source: SourceTable, positions: Positions, parts: Mapping[str, Positions], names: Sequence[str] | None
    ) -> list[str]:
        """Give the labels ids: those of a model, where it has `names`; returns the names in the order of their ids.

        Raises:
            InputError: the labels are no classes, a split lacks some, or the model does not have one.
        """

    @abstractmethod
    def find_faulty(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Which rows of a source have something that cannot be used, (N,)."""

    @abstractmethod
    def fault_of(self, row: Mapping[str, Any]) -> str | None:
        """Why a row cannot be used; None: it can."""

    @abstractmethod
    def encode(self, rows: pa.Table) -> pa.Array:
        """The column of the rows that are used."""


class ClassTarget(RowTarget):
    """One class a row: the column `label`, an id.

    Args:
        section (`DataSectionBase`):
            Its `filters` say how many rows a label needs.
    """

    column = "label"

    def __init__(self, section: DataSectionBase) -> None:
        super().__init__()
        self.section = section

    def unify(self, table: pa.Table, source: SourceTable) -> pa.Table:
        return with_unified_labels(table, list(source.label_of or ()), source.origin())

    def number(
        self, source: SourceTable, positions: Positions, parts: Mapping[str, Positions], names: Sequence[str] | None
    ) -> list[str]:
        label_of = self._label_of(source, positions, parts, names)
        require_samples(source, parts, label_of, self.section.filters)
        origin = f"data source {self.section.source!r} ({source.origin()})"
        own, self.label_ids = number_labels(label_of, names, origin=origin)
        name_rare_labels(source, parts, label_of)
        return own

    def _label_of(
        self, source: SourceTable, positions: Positions, parts: Mapping[str, Positions], names: Sequence[str] | None
    ) -> Mapping[str, str]:
        """Label value → label name, in the order of the class ids."""
        if source.label_of is not None:
            return source.label_of
        require_any(source, positions, self.column)
        return sorted_labels(source, positions)

    def find_faulty(self, rows: pa.Table) -> NDArray[np.bool_]:
        known = pc.is_in(rows.column("label"), pa.array(list(self.label_ids), pa.string()))
        faulty: NDArray[np.bool_] = ~known.to_numpy()
        return faulty

    def fault_of(self, row: Mapping[str, Any]) -> str | None:
        label = row["label"]
        if label in self.label_ids:
            return None
        return "the label is missing" if label is None else f"unknown label {shorten(label)}"

    def encode(self, rows: pa.Table) -> pa.Array:
        ids = pa.array(list(self.label_ids.values()), pa.int64())
        return ids.take(pc.index_in(rows.column("label"), pa.array(list(self.label_ids), pa.string())))


class OrderedClassTarget(ClassTarget):
    """One class a row, of classes that have an order, which their ids follow.

    Args:
        section (`DataSectionBase`):
            See [`ClassTarget`].
        ordinal (`OrdinalSection`):
            The order.
    """

    def __init__(self, section: DataSectionBase, ordinal: OrdinalSection) -> None:
        super().__init__(section)
        self.order = ordinal.order

    def unify(self, table: pa.Table, source: SourceTable) -> pa.Table:
        known = self.order if source.label_of is None else list(source.label_of)
        return with_unified_labels(table, known, source.origin())

    def fault_of(self, row: Mapping[str, Any]) -> str | None:
        fault = super().fault_of(row)
        if fault is None or row["label"] is None:
            return fault
        guess = did_you_mean(nearest_names(row["label"], self.order))
        return f"the label {shorten(row['label'])} is not in data.ordinal.order{guess}"

    def _label_of(
        self, source: SourceTable, positions: Positions, parts: Mapping[str, Positions], names: Sequence[str] | None
    ) -> Mapping[str, str]:
        origin, order = source.origin(), self.order
        if names is not None and list(names) != order:
            raise InputError(f"{origin}: the model's order is {' < '.join(names)}, that of data.ordinal.order another")
        label_of = {name: name for name in order}
        if source.label_of is not None:
            own = source.label_of
            if missing := [name for name in own.values() if name not in order]:
                guess = did_you_mean(nearest_names(missing[0], order))
                raise InputError(f"{origin}: the label {shorten(missing[0])} is not in data.ordinal.order{guess}")
            label_of = dict(sorted(own.items(), key=lambda each: order.index(each[1])))
        codes, values = codes_of(source.column("label"))
        found = {label_of[value] for value in values if value in label_of}
        if names is None and (unknown := [name for name in order if name not in found]):
            others = [value for value in values if value not in label_of]
            guess = did_you_mean(nearest_names(unknown[0], others))
            raise InputError(f"{origin}: no row has the label {shorten(unknown[0])} of data.ordinal.order{guess}")
        if names is None and len(parts.get("train", ())):
            learnt = {label_of.get(values[code]) for code in np.unique(codes[parts["train"]]).tolist() if code >= 0}
            if lacking := [name for name in order if name not in learnt]:
                raise InputError(f"{origin}: no training row has the label {shorten(lacking[0])}; leave it out")
        return label_of


class NumberTarget(RowTarget):
    """One number a row, or several: the column `numbers`, a list of them; as texts in a source's table.

    Args:
        section (`DataSectionBase`):
            `missing` says what stands for an empty cell.
        regression (`RegressionSection`):
            The columns.
    """

    column = "numbers"

    def __init__(self, section: DataSectionBase, regression: RegressionSection) -> None:
        super().__init__()
        self.section = section
        self.names = regression.columns or [section.label_column]

    def columns_read(self, label: str) -> list[str]:
        return self.names

    def read_cells(self, columns: Mapping[str, Values]) -> tuple[pa.Array, dict[int, str]]:
        return as_lists([text_array(values) for values in columns.values()]), {}

    def unify(self, table: pa.Table, source: SourceTable) -> pa.Table:
        if not self.section.missing:
            return table
        cells = table.column(self.column).combine_chunks()
        blanked = blank_placeholders(pa.table({"cells": cells.flatten()}), self.section.missing).column("cells")
        lists = pa.FixedSizeListArray.from_arrays(blanked.combine_chunks(), len(self.names))
        return table.set_column(table.column_names.index(self.column), self.column, lists)

    def number(
        self, source: SourceTable, positions: Positions, parts: Mapping[str, Positions], names: Sequence[str] | None
    ) -> list[str]:
        self.label_ids = number_columns(self.names, names, origin=source.origin())
        return list(self.label_ids) if names is None else list(names)

    def find_faulty(self, rows: pa.Table) -> NDArray[np.bool_]:
        unread = np.isnan(numbers_in(rows.column(self.column), len(self.names)))
        return np.asarray(unread.any(axis=1))

    def fault_of(self, row: Mapping[str, Any]) -> str | None:
        faults = map(fault_of_number, self.names, row[self.column])
        return next((fault for fault in faults if fault is not None), None)

    def encode(self, rows: pa.Table) -> pa.Array:
        numbers = numbers_in(rows.column(self.column), len(self.names))
        ordered = np.empty_like(numbers)
        ordered[:, list(self.label_ids.values())] = numbers
        return fixed_size_lists(ordered)


class LabelSetTarget(RowTarget):
    """Any number of labels a row: the column `labels`, a list of 0 and 1, one a label. A training row has each.

    Args:
        section (`MultiLabelSection`):
            Which labels there are, and what a row without any means.
    """

    column = "labels"

    def __init__(self, section: MultiLabelSection) -> None:
        super().__init__()
        self.section = section
        self._num_labels = 0

    def columns_read(self, label: str) -> list[str]:
        return self.section.columns or [label]

    def read_cells(self, columns: Mapping[str, Values]) -> tuple[pa.Array, dict[int, str]]:
        return read_label_sets(columns, self.section)

    def unify(self, table: pa.Table, source: SourceTable) -> pa.Table:
        sets = table.column(self.column).combine_chunks()
        codes, values = codes_of(pc.list_flatten(sets))
        known = list(self.section.names or self.section.columns or ())
        labels = written_one_way(values, known)
        if self.section.columns is None and {"0", "1"} >= set(labels) and labels:
            raise InputError(
                f"{source.origin()}: the labels are {' and '.join(sorted(set(labels)))}: zeros and ones in a list do "
                "not say of what; name the labels of each row, or make columns and name them in "
                "data.multi_label.columns"
            )
        written, sets = sets, self._with_empty(sets, table, source)
        if labels == values:
            if sets is written:
                return table
            return table.set_column(table.column_names.index(self.column), self.column, sets)
        flat = pa.array(labels, pa.string()).take(pa.array(codes))
        offsets = np.concatenate([[0], np.cumsum(pc.fill_null(pc.list_value_length(sets), 0).to_numpy())])
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
        lists = pc.if_else(sets.is_valid(), lists, pa.scalar(None, LABELS_TYPE))
        return table.set_column(table.column_names.index(self.column), self.column, lists)

    def _with_empty(self, sets: pa.ListArray, table: pa.Table, source: SourceTable) -> pa.ListArray:
        """What the recipe says of rows that have nothing in the column."""
        empty = np.flatnonzero(
            sets.is_null().to_numpy(zero_copy_only=False) & table.column("fault").is_null().to_numpy()
        )
        if not len(empty) or self.section.empty == "missing":
            return sets
        if self.section.empty is None:
            row = table.column("row")[int(empty[0])]
            raise InputError(
                f"{source.origin()}, row {row}: has no labels, like {len(empty):,} of {len(table):,} rows; "
                "data.multi_label.empty says whether it has `none` of them or they are `missing`"
            )
        if self.section.columns is not None:
            return sets
        blank = np.zeros(len(sets), dtype=bool)
        blank[empty] = True
        return pc.if_else(pa.array(blank), pa.scalar([], LABELS_TYPE), sets)

    def number(
        self, source: SourceTable, positions: Positions, parts: Mapping[str, Positions], names: Sequence[str] | None
    ) -> list[str]:
        sets = source.column(self.column)
        given = self.section.names or self.section.columns
        if given is None:
            require_any(source, positions, self.column)
            found = codes_of(pc.list_flatten(sets.take(pa.array(positions)).combine_chunks()))[1]
            given = sorted_by_value(found)
        origin = source.origin()
        own, self.label_ids = number_labels({name: name for name in given}, names, origin=origin)
        self._num_labels = len(own)
        if names is None and len(parts.get("train", ())):
            train = sets.take(pa.array(parts["train"]))
            counts = label_matrix(train, self.label_ids, self._num_labels).sum(axis=0, dtype=np.int64)
            lacking = [name for name, count in zip(own, counts.tolist(), strict=True) if not count]
            if lacking:
                more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
                shown = ", ".join(map(shorten, lacking[:_SHOWN]))
                raise InputError(
                    f"{origin}: no training row has the label {shown}{more}; leave it out "
                    "(data.multi_label.names keeps the labels that it names, others: ignore passes over the rest)"
                )
        return own

    def find_faulty(self, rows: pa.Table) -> NDArray[np.bool_]:
        sets = rows.column(self.column)
        faulty: NDArray[np.bool_] = sets.is_null().to_numpy()
        if self.section.others == "raise":
            places, ids = label_places(sets, self.label_ids)
            faulty = faulty.copy()
            faulty[places[ids < 0]] = True
        return faulty

    def fault_of(self, row: Mapping[str, Any]) -> str | None:
        labels = row[self.column]
        if labels is None:
            return "the labels are missing"
        unknown = [label for label in labels if label not in self.label_ids]
        if not unknown or self.section.others == "ignore":
            return None
        return f"unknown label {shorten(unknown[0])}{did_you_mean(nearest_names(unknown[0], list(self.label_ids)))}"

    def encode(self, rows: pa.Table) -> pa.Array:
        return fixed_size_lists(label_matrix(rows.column(self.column), self.label_ids, self._num_labels))


def row_target(section: DataSectionBase) -> RowTarget:
    """What the rows of a section have."""
    target = section.target
    if isinstance(target, MultiLabelSection):
        return LabelSetTarget(target)
    if isinstance(target, RegressionSection):
        return NumberTarget(section, target)
    return OrderedClassTarget(section, target) if isinstance(target, OrdinalSection) else ClassTarget(section)


def require_any(source: SourceTable, positions: Positions, column: str) -> None:
    """Where no row has a label because none can be read, say why of the first.

    Raises:
        InputError: so it is.
    """
    labels, faults = (source.column(name).take(pa.array(positions)) for name in (column, "fault"))
    if len(labels) and labels.null_count == len(labels) and not faults.null_count:
        row, reason = source.column("row")[int(positions[0])], faults[0]
        raise InputError(f"{source.origin()}, row {row}: {reason}; no row can be read")
