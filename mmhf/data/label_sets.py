"""Several labels a row: lists, separated texts or columns of zeros and ones, as one column of lists."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmhf.conventions import as_text
from mmhf.data.columns import encodable
from mmhf.data.images import shorten
from mmhf.data.readers import Values
from mmhf.recipe.target_sections import MultiLabelSection

LABELS_TYPE = pa.list_(pa.string())
_TRUTH = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


def read_label_sets(columns: Mapping[str, Values], section: MultiLabelSection) -> tuple[pa.ListArray, dict[int, str]]:
    """Read the labels of each row.

    Args:
        columns (`Mapping[str, Values]`):
            The column of lists or texts, or those that `section.columns` names.
        section (`MultiLabelSection`):
            How they are written.

    Returns:
        `tuple`: lists of label values, null for a row that says nothing of its labels, and what is wrong with rows
        that cannot be read, which are null, too.
    """
    lists = {name: values if isinstance(values, list) else values.to_pylist() for name, values in columns.items()}
    faults: dict[int, str] = {}
    rows: list[list[str] | None] = []
    for position, cells in enumerate(zip(*lists.values(), strict=True)):
        try:
            if section.columns is None:
                rows.append(_labels_in(cells[0], next(iter(lists)), section.separator))
            else:
                rows.append(_labels_of(dict(zip(lists, cells, strict=True)), section.empty == "none"))
        except ValueError as error:
            faults[position] = str(error)
            rows.append(None)
    return pa.array(rows, LABELS_TYPE), faults


def _labels_in(value: Any, column: str, separator: str | None) -> list[str] | None:
    """The labels of one field; None for an empty one."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str):
        value = value.split(separator) if separator is not None else _written_list(value, column)
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if not isinstance(value, list | tuple | set):
        raise ValueError(
            f"{column} is {shorten(str(value))}, not a list of labels; data.multi_label says how to read it"
        )
    if nested := next((each for each in value if isinstance(each, list | tuple | dict | set)), None):
        raise ValueError(f"{column} holds {shorten(str(nested))}, where a label is a name or a number")
    labels = [text for each in value if (text := encodable(as_text(each))) is not None]
    return list(dict.fromkeys(labels)) or None


def _written_list(text: str, column: str) -> Any:
    text = text.strip()
    if not text:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list | tuple | set):
            return list(value)
    raise ValueError(
        f"{column} is the text {shorten(text)} and no list; data.multi_label.separator says what stands between labels"
    )


def _labels_of(cells: Mapping[str, Any], blank_is_none: bool) -> list[str] | None:
    """The columns in which a row has a 1; None where one has no value."""
    labels: list[str] = []
    is_whole = True
    for name, cell in cells.items():
        text = as_text(cell)
        if text is None:
            is_whole = is_whole and blank_is_none
        elif text.lower() not in _TRUTH:
            raise ValueError(f"{name} is {shorten(text)}, where 1 or true stands for a label and 0 or false for none")
        elif _TRUTH[text.lower()]:
            labels.append(name)
    return labels if is_whole else None


def label_matrix(sets: pa.Array | pa.ChunkedArray, label_ids: Mapping[str, int], num_labels: int) -> NDArray[np.int8]:
    """(N, C) of 0 and 1: which labels each row has; labels without an id are passed over.

    Args:
        sets (`pa.ListArray`):
            The labels of each row; null stands for none.
        label_ids (`Mapping[str, int]`):
            Label value → id, from 0 to C - 1.
        num_labels (`int`):
            C.
    """
    rows, ids = label_places(sets, label_ids)
    matrix = np.zeros((len(sets), num_labels), dtype=np.int8)
    matrix[rows[ids >= 0], ids[ids >= 0]] = 1
    return matrix


def label_places(
    sets: pa.Array | pa.ChunkedArray, label_ids: Mapping[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every label of every row: the row's position, and the label's id, -1 for one without."""
    array = sets.combine_chunks() if isinstance(sets, pa.ChunkedArray) else sets
    places = pc.index_in(pc.list_flatten(array), pa.array(list(label_ids), pa.string()))
    ids = np.append(np.array(list(label_ids.values()), dtype=np.int64), -1)
    found = ids[pc.fill_null(places, len(label_ids)).to_numpy(zero_copy_only=False)]
    return pc.list_parent_indices(array).to_numpy(zero_copy_only=False).astype(np.int64), found


def fixed_size_lists(matrix: NDArray[Any]) -> pa.FixedSizeListArray:
    """A matrix as a column of Arrow: a list a row."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
