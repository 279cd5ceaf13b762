"""The source `clinical`: dermatology data sets as their authors publish them, joined into one table."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from mmhf.data.columns import codes_of, image_array, text_array
from mmhf.data.readers import read_batches
from mmhf.data.remote.paths import AnyPath, data_path
from mmhf.data.sources.table import Roles, images_below, read_roles
from mmhf.data.table import Part, Reading, SourceTable, extra_column, make_rows
from mmhf.data.targets import RowTarget, row_target
from mmhf.errors import InputError
from mmhf.recipe.data_sections import ClinicalDataSection, ClinicalTableSection
from mmhf.recipe.nearest import did_you_mean, nearest_names

HARMONISED = ("id", "image", "text", "label", "group", "dataset", "source", "skin_type", "sex", "age", "site")
"""The columns that every data set gives; a value that it does not have is None."""

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
    site: str | None = None
    label_names: dict[str, str] = field(default_factory=dict)
    """Abbreviation → label."""


ADAPTERS = {
    "fitzpatrick17k": Adapter(id="md5hash", suffix=".jpg", label="label", skin_type="fitzpatrick_scale"),
    "ddi": Adapter(id="DDI_ID", image="DDI_file", label="disease", skin_type="skin_tone"),
    "isic2020": Adapter(
        id="image_name",
        suffix=".jpg",
        label="diagnosis",
        group="patient_id",
        sex="sex",
        age="age_approx",
        site="anatom_site_general_challenge",
    ),
    "ham10000": Adapter(
        id="image_id",
        suffix=".jpg",
        label="dx",
        group="lesion_id",
        sex="sex",
        age="age",
        site="localization",
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
        site="body_location",
    ),
}
"""Data set → where its own table has what."""


def read_clinical(section: ClinicalDataSection, reading: Reading) -> SourceTable:
    """Read data sets, and join them.

    Labels are written in small letters with blanks (`basal cell carcinoma`), HAM10000's abbreviations in full; skin
    types are `I-II`, `III-IV` and `V-VI`, as DDI has them; sexes are `female` and `male`; ages are years; sites of
    the body are written as labels are. Groups are patients (ISIC 2020) and lesions (HAM10000).

    Args:
        section (`ClinicalDataSection`):
            Where the data sets are, and how to split.
        reading (`Reading`):
            What the task reads; columns are of `HARMONISED`, or of a data set's own table.

    Returns:
        `SourceTable`: the rows; row numbers are those of each data set's own file.

    Raises:
        InputError: a table or a column is missing.
    """
    folder = data_path(section.versioned(section.path), section.cloud)
    if not folder.is_dir():
        raise InputError(f"data.path: no such folder: {folder}")
    wanted = [section.split.group_by, *section.filters.columns(), *reading.extra_columns]
    extra = list(dict.fromkeys(name for name in wanted if name is not None))
    origin = f"{folder} ({', '.join(section.tables)})"
    target = row_target(section)
    tables = [_harmonise(name, place, folder, extra, target=target) for name, place in section.tables.items()]
    table = pa.concat_tables(tables)
    for name in extra:
        if name not in HARMONISED and table.column(extra_column(name)).null_count == len(table):
            guess = did_you_mean(nearest_names(name, HARMONISED))
            raise InputError(
                f"{origin}: no table has a column {name!r} with any value{guess} (all have {', '.join(HARMONISED)})"
            )
    part = Part(origin, images_below(folder, table.column("image"), follow_links=section.follow_links))
    rows = make_rows({name: table.column(name) for name in table.column_names})
    return SourceTable(rows, {None: part}, section.labels, section.split)


def _harmonise(
    name: str, place: ClinicalTableSection, folder: AnyPath, extra: Sequence[str], *, target: RowTarget
) -> pa.Table:
    adapter = ADAPTERS[name]
    path = folder / place.table
    own = [column for column in extra if column not in HARMONISED]
    label = place.label or adapter.label
    roles = Roles(adapter.image or adapter.id, label, adapter.text, id=adapter.id, target=target)
    named = [*roles.named(), adapter.group, adapter.source, adapter.skin_type, adapter.sex, adapter.age]
    if adapter.site is not None:  # few tables have it, and none needs it
        own.append(adapter.site)
    batches = read_batches(path, named, optional=own)
    table = read_roles(batches, roles)
    given = {
        column: pa.chunked_array([text_array(batch.columns[column]) for batch in batches], pa.string())
        for column in dict.fromkeys([*(column for column in named if column is not None), *own])
    }
    count = len(table)

    def column(key: str | None, change: Callable[[str], str | None] = str) -> pa.Array:
        if key is None:
            return pa.nulls(count, pa.string())
        codes, values = codes_of(given[key])
        return pa.array([change(value) for value in values], pa.string()).take(pa.array(codes, mask=codes < 0))

    always = pa.array([name] * count, pa.string())
    harmonised = {
        "id": column(adapter.id, lambda value: f"{name}/{value}"),
        "image": column(adapter.image or adapter.id, lambda value: f"{place.images}/{value}{adapter.suffix}"),
        "text": column(adapter.text),
        "label": column(place.label or adapter.label, lambda value: _label(adapter.label_names.get(value, value))),
        "group": column(adapter.group, lambda value: f"{name}/{value}"),
        "dataset": always,
        "source": always if adapter.source is None else column(adapter.source),
        "skin_type": column(adapter.skin_type, _skin_type),
        "sex": column(adapter.sex, str.lower),
        "age": column(adapter.age, _age),
        "site": column(adapter.site, _label),
    }
    columns = {each: table.column(each) for each in table.column_names}
    columns["id"] = pc.coalesce(harmonised["id"], columns["id"])
    columns["image"] = image_array(harmonised["image"])
    columns["text"], columns["label"] = harmonised["text"], harmonised["label"]
    columns["fault"] = pc.binary_join_element_wise(f"{path}", columns["fault"], ": ")
    for key in extra:
        columns[extra_column(key)] = harmonised[key] if key in HARMONISED else given[key]
    return pa.table(columns)


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


READERS = {ClinicalDataSection: read_clinical}
