"""The source `joined`: several data sets in one table, with a column that says which of them a row is of."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmhf.data.columns import IMAGE_TYPE, codes_of
from mmhf.data.images import ImageFault, shorten
from mmhf.data.labels import unify_labels, with_unified_labels
from mmhf.data.sources.clinical import HARMONISED
from mmhf.data.splits import cut_splits, require_groups_apart
from mmhf.data.table import (
    IMAGE_FEATURE,
    SPLITS,
    EmbeddedImages,
    Images,
    Part,
    Reading,
    SourceTable,
    Span,
    as_dataset,
    extra_column,
)
from mmhf.errors import InputError
from mmhf.recipe.data_sections import ClinicalDataSection, DataSectionBase, FilteredDataSection, TableDataSection
from mmhf.recipe.data_sources import JoinedCaptionsSection, JoinedClassesSection, JoinedDataSection
from mmhf.recipe.row_sections import FiltersSection, SplitSection

logger = logging.getLogger(__name__)

SECTIONS = (JoinedClassesSection, JoinedCaptionsSection)


class _Member(NamedTuple):
    """A data set that was read."""

    name: str
    source: SourceTable


class JoinedImages:
    """Images of several places, as `Images` asks for; a path begins with the number of its place, between NULs.

    Args:
        places (`Sequence[Images]`):
            The places.

    Raises:
        InputError: their images are read in different ways.
    """

    def __init__(self, places: Sequence[Images]) -> None:
        self.places = places
        kinds = [IMAGE_FEATURE if isinstance(each.feature, datasets.Image) else each.feature for each in places]
        if any(kind != kinds[0] for kind in kinds):
            raise InputError(
                "data.datasets: images behind URLs cannot be joined with images elsewhere; download them, or give all "
                "data sets one image_root"
            )
        self.feature: Any = kinds[0]

    @staticmethod
    def mark(images: pa.Array, places: pa.Array) -> pa.StructArray:
        """Images whose paths name their places, by number."""
        marks = pc.binary_join_element_wise("\0", places.cast(pa.string()), "\0", "")
        path = pc.binary_join_element_wise(marks, pc.struct_field(images, "path"), "")
        return pa.StructArray.from_arrays([path, pc.struct_field(images, "bytes")], fields=list(IMAGE_TYPE))

    def find_faults(self, images: Sequence[Mapping[str, Any] | None], *, read: bool) -> list[ImageFault | None]:
        """See `Images`."""
        of_place: dict[int | None, list[int]] = {}
        plain: list[Mapping[str, Any] | None] = []
        for position, image in enumerate(images):
            place, path = None, None if image is None else image["path"]
            if path is not None:
                number, path = path[1:].split("\0", 1)
                place = int(number)
            of_place.setdefault(place, []).append(position)
            plain.append(None if image is None else {"path": path, "bytes": image["bytes"]})
        faults: list[ImageFault | None] = [None] * len(images)
        for place, positions in of_place.items():
            judge: Images = EmbeddedImages() if place is None else self.places[place]
            found = judge.find_faults([plain[position] for position in positions], read=read)
            for position, fault in zip(positions, found, strict=True):
                faults[position] = fault
        return faults

    def keep_findings(self) -> None:
        """See `Images`."""
        for place in self.places:
            place.keep_findings()

    def locate(self, images: pa.StructArray) -> pa.StructArray:
        """See `Images`."""
        marked, content = images.field("path"), images.field("bytes")
        located = pa.nulls(len(images), pa.string())
        for number, place in enumerate(self.places):
            mark = f"\0{number}\0"
            is_there = pc.fill_null(pc.starts_with(marked, mark), False)
            if not pc.any(is_there).as_py():
                continue
            path = pc.if_else(is_there, pc.utf8_slice_codeunits(marked, len(mark)), pa.scalar(None, pa.string()))
            found = place.locate(pa.StructArray.from_arrays([path, content], fields=list(IMAGE_TYPE)))
            located = pc.coalesce(located, found.field("path"))
        return pa.StructArray.from_arrays([located, content], fields=list(IMAGE_TYPE))


def read_joined(
    section: JoinedDataSection, reading: Reading, *, readers: Mapping[type, Callable[[Any, Reading], SourceTable]]
) -> SourceTable:
    """Read data sets, and join them.

    Args:
        section (`JoinedDataSection`):
            The data sets, and what holds for all.
        reading (`Reading`):
            What the task reads; the column that says the data set need not be in any.
        readers (`Mapping`):
            Section → what reads a data set.

    Returns:
        `SourceTable`: the rows of the first data set, then those of the second, and so on. Ids begin with the data
        set's name and a slash; row numbers are those of each data set's own file.

    Raises:
        InputError: one or more data sets cannot be read, lack a column or have splits that `split` would cut again;
            the message names each.
    """
    if section.filters.has_text is not None and reading.label and not reading.text:
        raise InputError("data.filters.has_text: no texts are read here; filter by a column with data.filters.where")
    members, problems = [], []
    for name, given in section.datasets.items():
        extra = tuple(column for column in reading.extra_columns if column != section.column)
        try:
            member = _complete(given, section, reading)
            if isinstance(member, ClinicalDataSection) and section.column in HARMONISED:
                raise InputError(f"has a column {section.column!r} of its own; name another in data.column")
            source = readers[type(member)](member, replace(reading, extra_columns=extra, splits=None))
            _check_splits(source, member, section)
        except InputError as error:
            problems.append(f"data.datasets.{name}: {error}")
            continue
        members.append(_Member(name, _with_names(source) if reading.label else source))
    if problems:
        raise InputError("\n".join(problems))
    if reading.label and getattr(section, "labels", None) is None and section.target is None:
        _require_one_spelling(members)
    _name_lacking_splits(members, section)
    return _join(members, section)


def _complete(member: DataSectionBase, section: JoinedDataSection, reading: Reading) -> DataSectionBase:
    """A data set's section with what holds for all of them."""
    shared = {name: getattr(section, name) for name in section.shared_keys() if name in type(member).model_fields}
    # Filters are applied to the joined table; of each data set their columns are read.
    columns = [name for name in section.filters.columns() if name != section.column]
    shared["filters"] = FiltersSection(where={name: [] for name in columns})
    if section.split is not None and "split" in type(member).model_fields:
        split = section.split
        if isinstance(split, SplitSection) and split.group_by == section.column:
            split = split.model_copy(update={"group_by": None})
        shared["split"] = split
    if section.target is not None and "multi_label" not in type(member).model_fields:
        kind = next(name for name in ("multi_label", "regression", "ordinal") if getattr(section, name, None))
        raise InputError(f"data.{kind}: the source {member.source!r} has one class a row")
    member = member.model_copy(update=shared)
    return member.without_text() if isinstance(member, TableDataSection) and not reading.text else member


def _check_splits(source: SourceTable, member: DataSectionBase, section: JoinedDataSection) -> None:
    given = _given_splits(source)
    if isinstance(member, FilteredDataSection) and source.cut is None and member.split.group_by is not None:
        require_groups_apart(source, cut_splits(source, np.arange(len(source.rows))), member.split.group_by)
    if section.split is not None and given:
        raise InputError(
            f"has splits of its own ({', '.join(given)}), and data.split cuts all data sets together; remove "
            "data.split, or join the files of this one into one table without splits"
        )


def _given_splits(source: SourceTable) -> list[str]:
    found = {*codes_of(source.column("split"))[1], *(split for split in source.parts if split is not None)}
    return [split for split in SPLITS if split in found]


def _with_names(source: SourceTable) -> SourceTable:
    """A data set whose labels are the names that it gives them; a row whose label has none is a bad one."""
    if source.label_of is None or "label" not in source.rows.column_names:
        return source
    image = source.rows.select_columns("image")
    table = with_unified_labels(source.rows.remove_columns("image").data.table, list(source.label_of), source.origin())
    codes, values = codes_of(table.column("label"))
    names = pa.array([source.label_of.get(value, value) for value in values] + [None], pa.string())
    unknown = [None if value in source.label_of else f"unknown label {shorten(value)}" for value in values]
    codes = np.where(codes < 0, len(values), codes)
    reason = pc.coalesce(
        table.column("fault").combine_chunks(), pa.array([*unknown, None], pa.string()).take(pa.array(codes))
    )
    table = table.set_column(table.column_names.index("label"), "label", names.take(pa.array(codes)))
    table = table.set_column(table.column_names.index("fault"), "fault", reason)
    return replace(source, rows=datasets.concatenate_datasets([image, as_dataset(table)], axis=1))


def _require_one_spelling(members: Sequence[_Member]) -> None:
    """Refuse labels of two data sets that differ in case, blanks, hyphens and the like alone."""
    owners: dict[str, tuple[str, str]] = {}
    for name, source in members:
        usable = source.column("label").filter(pc.is_null(source.column("fault")))
        for label in sorted(set(unify_labels(codes_of(usable)[1]).values())):
            folded = " ".join(re.split(r"[\s_-]+", label.casefold()))
            owner, other = owners.setdefault(folded, (name, label))
            if other != label and owner != name:
                raise InputError(
                    f"data.datasets: the label {shorten(other)} of {owner} is written {shorten(label)} in {name}; "
                    f"data.datasets.{name}.labels names it as {owner} does, data.labels keeps both as they are"
                )


def _name_lacking_splits(members: Sequence[_Member], section: JoinedDataSection) -> None:
    """Warn of splits that some data sets have and others do not."""
    has: dict[str, set[str]] = {}
    for name, source in members:
        cut = source.cut if section.split is None else section.split
        own = set(_given_splits(source))
        if cut is not None:
            own |= {"train", *(split for split in ("validation", "test") if getattr(cut, split) > 0)}
        has[name] = own
    for split in SPLITS:
        lacking = [name for name, own in has.items() if split not in own]
        if lacking and len(lacking) < len(has):
            logger.warning("data.datasets: %s has no rows of %s", split, ", ".join(lacking))


def _join(members: Sequence[_Member], section: JoinedDataSection) -> SourceTable:
    parts: list[Part] = []
    tables, images, spans, used, bad_examples = [], [], [], [], []
    start = 0
    for name, source in members:
        tables.append(_named_rows(name, source, section.column))
        places, offset = _places(source, first=len(parts)), 0
        for chunk in source.column("image").chunks:
            images.append(JoinedImages.mark(chunk, places.slice(offset, len(chunk))))
            offset += len(chunk)
        parts += source.parts.values()
        used.append(start + (np.arange(len(source.rows)) if source.used is None else source.used))
        spans.append(Span(start, start + len(source.rows), source.cut))
        bad_examples += [example._replace(id=f"{name}/{example.id}") for example in source.bad_examples]
        start += len(source.rows)
    rows = as_dataset(pa.concat_tables(tables, promote_options="default"))
    shown = datasets.Dataset(
        pa.table({"image": pa.chunked_array(images, IMAGE_TYPE)}),
        datasets.DatasetInfo(features=datasets.Features({"image": IMAGE_FEATURE})),
        fingerprint="images",
    )
    origin = "; ".join(f"{name} ({source.origin()})" for name, source in members)
    return SourceTable(
        datasets.concatenate_datasets([shown, rows], axis=1),
        {None: Part(origin, JoinedImages([part.images for part in parts]))},
        getattr(section, "labels", None),
        section.split,
        np.concatenate(used),
        bad_examples=bad_examples,
        cut_apart=() if section.split is not None else spans,
    )


def _named_rows(name: str, source: SourceTable, column: str) -> pa.Table:
    """The rows of a data set without their images: ids and a column say of which it is."""
    table = source.rows.remove_columns("image").data.table
    if extra_column(column) in table.column_names:
        raise InputError(f"data.datasets.{name}: has a column {column!r} of its own; name another in data.column")
    ids = pc.binary_join_element_wise(f"{name}/", table.column("id"), "")
    table = table.set_column(table.column_names.index("id"), "id", ids)
    return table.append_column(extra_column(column), pa.repeat(name, len(table)))


def _places(source: SourceTable, *, first: int) -> pa.Array:
    """The number of the part that each row's image is in, counted from `first`."""
    split, named = source.column("split").combine_chunks(), list(source.parts)
    numbers = pa.repeat(first + named.index(None) if None in named else first, len(split))
    for number, name in enumerate(named):
        if name is not None:
            numbers = pc.if_else(pc.fill_null(pc.equal(split, name), False), first + number, numbers)
    return numbers
