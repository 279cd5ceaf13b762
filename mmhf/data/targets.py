"""What is learnt of a row: one class, or any number of labels. Reading, cutting and screening ask these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmhf.data.columns import codes_of
from mmhf.data.images import shorten
from mmhf.data.label_sets import LABELS_TYPE, fixed_size_lists, label_matrix, label_places
from mmhf.data.labels import (
    name_rare_labels,
    number_labels,
    sorted_by_value,
    sorted_labels,
    unify_labels,
    with_unified_labels,
)
from mmhf.data.splits import Positions, require_samples
from mmhf.data.table import SourceTable
from mmhf.errors import InputError
from mmhf.recipe.data_sections import DataSectionBase, MultiLabelSection
from mmhf.recipe.nearest import did_you_mean, nearest_names

_SHOWN = 5


class RowTarget(ABC):
    """The column that a task learns from, in a source's table and in the rows that are used."""

    column: str
    """Its name in both."""

    def __init__(self) -> None:
        self.label_ids: dict[str, int] = {}
        """Label value → class id, once the labels are numbered."""

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
        label_of = source.label_of
        if label_of is None:
            require_any(source, positions, self.column)
            label_of = sorted_labels(source, positions)
        require_samples(source, parts, label_of, self.section.filters)
        origin = f"data source {self.section.source!r} ({source.origin()})"
        own, self.label_ids = number_labels(label_of, names, origin=origin)
        name_rare_labels(source, parts, label_of)
        return own

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

    def unify(self, table: pa.Table, source: SourceTable) -> pa.Table:
        sets = table.column(self.column).combine_chunks()
        codes, values = codes_of(pc.list_flatten(sets))
        known = list(self.section.names or self.section.columns or ())
        unified = unify_labels([*values, *known])
        named = {unified[name]: name for name in known}
        labels = [value if value in known else named.get(unified[value], unified[value]) for value in values]
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
    return ClassTarget(section) if section.label_sets is None else LabelSetTarget(section.label_sets)


def require_any(source: SourceTable, positions: Positions, column: str) -> None:
    """Where no row has a label because none can be read, say why of the first.

    Raises:
        InputError: so it is.
    """
    labels, faults = (source.column(name).take(pa.array(positions)) for name in (column, "fault"))
    if len(labels) and labels.null_count == len(labels) and not faults.null_count:
        row, reason = source.column("row")[int(positions[0])], faults[0]
        raise InputError(f"{source.origin()}, row {row}: {reason}; no row can be read")
