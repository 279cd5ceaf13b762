"""The source `clinical`: dermatology data sets as their authors publish them, joined into one table."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmhf.data.readers import TableFile, as_text, read_table
from mmhf.data.remote.paths import AnyPath, data_path
from mmhf.data.sources.table import UNCUT, TableLayout, cut_tables
from mmhf.data.table import SourceData
from mmhf.errors import InputError
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.recipe.schema import ClinicalDataSection, ClinicalTableSection, ColumnsSection

HARMONISED = ("id", "image", "text", "label", "group", "dataset", "source", "skin_type", "sex", "age")
"""The columns that every data set gives; a value that it does not have is None."""

_COLUMNS = ColumnsSection(image="image", text="text", label="label", id="id")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_YEARS = re.compile(r"(\d+(?:\.\d+)?)[\s-]*(?:years?|yrs?|y/?o)\b", re.IGNORECASE)
_HAM10000_LABELS = {
    "akiec": "actinic keratosis",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "nevus",
    "vasc": "vascular lesion",
}


@dataclass(frozen=True)
class Adapter:
    """Where a data set has what the joined table has; None: it does not."""

    id: str
    """Its values name the rows, and are unique within the data set."""
    label: str
    image: str | None = None
    """Absent: the id with `suffix`."""
    suffix: str = ""
    text: str | None = None
    group: str | None = None
    source: str | None = None
    """Absent: the data set's name."""
    skin_type: str | None = None
    sex: str | None = None
    age: str | None = None
    label_names: dict[str, str] = field(default_factory=dict)
    """Abbreviation → label."""

    def columns(self, label: str | None) -> list[str | None]:
        """The columns to read, with another label if one is given."""
        own = [self.id, label or self.label, self.image, self.text, self.group, self.source]
        return [*own, self.skin_type, self.sex, self.age]


ADAPTERS = {
    "fitzpatrick17k": Adapter(id="md5hash", suffix=".jpg", label="label", skin_type="fitzpatrick_scale"),
    "ddi": Adapter(id="DDI_ID", image="DDI_file", label="disease", skin_type="skin_tone"),
    "isic2020": Adapter(
        id="image_name", suffix=".jpg", label="diagnosis", group="patient_id", sex="sex", age="age_approx"
    ),
    "ham10000": Adapter(
        id="image_id",
        suffix=".jpg",
        label="dx",
        group="lesion_id",
        sex="sex",
        age="age",
        label_names=_HAM10000_LABELS,
    ),
    "derm1m": Adapter(
        id="filename",
        image="filename",
        label="disease_label",
        text="caption",
        source="source",
        sex="gender",
        age="age",
    ),
}
"""Data set → where its own table has what."""


def read_clinical(
    section: ClinicalDataSection, splits: Collection[str] | None = None, *, extra_columns: Sequence[str] = ()
) -> SourceData:
    """Read data sets, join them, keep the rows that pass the filters, and cut them into splits.

    Labels are written in small letters with blanks (`basal cell carcinoma`), HAM10000's abbreviations in full; skin
    types are `I-II`, `III-IV` and `V-VI`, as DDI has them; sexes are `female` and `male`; ages are years. Groups are
    patients (ISIC 2020) and lesions (HAM10000).

    Args:
        section (`ClinicalDataSection`):
            Where the data sets are, filters and how to split.
        splits (`Collection[str]`, *optional*):
            Splits to keep; absent: all.
        extra_columns (`Sequence[str]`, *optional*):
            Further columns to keep: of `HARMONISED`, or of a data set's own table.

    Returns:
        `SourceData`: the rows.

    Raises:
        InputError: a table or a column is missing, or what `read_table_source` raises.
    """
    folder = data_path(section.versioned(section.path), section.cloud)
    if not folder.is_dir():
        raise InputError(f"data.path: no such folder: {folder}")
    wanted = [section.split.group_by, *section.filters.columns(), *extra_columns]
    own = list(dict.fromkeys(name for name in wanted if name is not None and name not in HARMONISED))
    parts = [_harmonise(name, place, folder, own) for name, place in section.tables.items()]
    origin = f"{folder} ({', '.join(section.tables)})"
    _require_own(own, parts, origin)
    layout = TableLayout(_COLUMNS, folder, extra_columns)
    return cut_tables({UNCUT: _join(parts, origin)}, section, layout, splits)


def _harmonise(name: str, place: ClinicalTableSection, folder: AnyPath, own: Sequence[str]) -> TableFile:
    adapter = ADAPTERS[name]
    table = read_table(folder / place.table, adapter.columns(place.label), optional=own)
    count = len(table.rows)

    def column(key: str | None, change: Callable[[str], str | None] = str) -> list[str | None]:
        if key is None:
            return [None] * count
        values = [as_text(value) for value in table.columns[key]]
        changed = {value: change(value) for value in set(values) if value is not None}
        return [None if value is None else changed[value] for value in values]

    columns: dict[str, list[Any]] = {
        "id": column(adapter.id, lambda value: f"{name}/{value}"),
        "image": column(adapter.image or adapter.id, lambda value: f"{place.images}/{value}{adapter.suffix}"),
        "text": column(adapter.text),
        "label": column(place.label or adapter.label, lambda value: _label(adapter.label_names.get(value, value))),
        "group": column(adapter.group, lambda value: f"{name}/{value}"),
        "dataset": [name] * count,
        "source": [name] * count if adapter.source is None else column(adapter.source),
        "skin_type": column(adapter.skin_type, _skin_type),
        "sex": column(adapter.sex, str.lower),
        "age": column(adapter.age, _age),
        **{key: table.columns[key] for key in own},
    }
    return TableFile(table.origin, columns, table.rows, table.malformed)


def _label(value: str) -> str:
    return " ".join(re.sub(r"[-_]", " ", value).lower().split())


def _skin_type(value: str) -> str | None:
    """Fitzpatrick's 1 to 6, or DDI's 12, 34 and 56; -1 is unknown."""
    pairs = {"I-II": ("1", "2", "12"), "III-IV": ("3", "4", "34"), "V-VI": ("5", "6", "56")}
    return next((pair for pair, values in pairs.items() if value.removesuffix(".0") in values), None)


def _age(value: str) -> str:
    """Years as a number; what says none stays as it is."""
    if _NUMBER.fullmatch(value):
        return value.removesuffix(".0")
    found = _YEARS.search(value)
    return found[1] if found else value


def _require_own(own: Sequence[str], parts: Sequence[TableFile], origin: str) -> None:
    for name in own:
        if all(value is None for part in parts for value in part.columns[name]):
            guess = did_you_mean(nearest_names(name, HARMONISED))
            raise InputError(
                f"{origin}: no table has a column {name!r} with any value{guess} (all have {', '.join(HARMONISED)})"
            )


def _join(parts: Sequence[TableFile], origin: str) -> TableFile:
    """One table of all; row numbers stay those of each data set's own file."""
    columns = {name: [value for part in parts for value in part.columns[name]] for name in parts[0].columns}
    malformed: dict[int, str] = {}
    start = 0
    for part in parts:
        malformed.update({start + position: f"{part.origin}: {why}" for position, why in part.malformed.items()})
        start += len(part.rows)
    return TableFile(origin, columns, [row for part in parts for row in part.rows], malformed)
