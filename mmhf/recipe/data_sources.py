"""All sources that a recipe's `data:` can name: those of one data set, and several data sets joined."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_serializer, model_validator

from mmhf.recipe.caption_data_sections import (
    CaptionDataSectionBase,
    CaptionHubSection,
    CaptionSampleSection,
    CaptionTableSection,
    Flickr30kSection,
    ImageSplitSection,
    WebDatasetSection,
)
from mmhf.recipe.data_sections import (
    ClinicalDataSection,
    DataSectionBase,
    FakedditDataSection,
    FilteredDataSection,
    HubDataSection,
    ImageFolderDataSection,
    SampleDataSection,
    SampleVendor,
    TableDataSection,
    TargetDataSection,
)
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.recipe.row_sections import SplitSection
from mmhf.recipe.sections import PositiveFloat

DatasetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
"""Stands before the ids of a data set's rows, with a slash."""

_FILES = ("path", "train", "validation", "test", "repo")
_WITHIN = ("folder", "name", "splits", "tables")
"""What chooses among that which lies in one place."""


class JoinedDataSection(DataSectionBase):
    """Several data sets in one table. A column says which of them a row is of, and ids begin with its name."""

    source: Literal["joined"]
    datasets: Mapping[str, DataSectionBase]
    """Name → where a data set is, and which columns it has. What holds for all, such as `image_size`, stands beside
    `datasets`."""
    column: str = "dataset"
    """The column that says which data set a row is of."""
    weights: dict[str, PositiveFloat] | None = None
    """Data set → its share of an epoch's samples, in proportion to the others': rows are drawn with replacement, as
    many as there are. Absent: every row once an epoch."""
    split: SplitSection | ImageSplitSection | None = None
    """How all rows are split together; absent: each data set keeps its own splits, or is cut as it says."""
    find_duplicates: Literal["near", "exact", "never"] = "near"

    @field_serializer("datasets")
    def _without_shared_keys(self, given: Mapping[str, DataSectionBase]) -> dict[str, Any]:
        return {name: member.model_dump(exclude=self.shared_keys()) for name, member in given.items()}

    @model_validator(mode="after")
    def _fit_together(self) -> JoinedDataSection:
        shared = self.shared_keys()
        for name, member in self.datasets.items():
            for key in member.changed():
                if key in shared and key in member.model_fields_set:
                    raise ValueError(f"datasets.{name}.{key}: holds for all data sets; set data.{key}")
            if member.is_stream():
                raise ValueError(
                    f"datasets.{name}: is a stream, and streams cannot be joined; read it as a table, or train on it "
                    "alone"
                )
            if self.split is not None and "split" in member.changed():
                raise ValueError(f"datasets.{name}.split: `split` cuts all data sets together; remove one of the two")
        cuts = [member for member in self.datasets.values() if isinstance(member, FilteredDataSection)]
        if self.fold is not None and self.split is None and any(member.split.group_by for member in cuts):
            raise ValueError("fold: folds are cut out of the joined rows; set `split.group_by` beside `datasets`")
        self._check_places()
        self._check_weights()
        return self

    def of_one_source(self) -> list[DataSectionBase]:
        return list(self.datasets.values())

    def is_on_hub(self) -> bool:
        return any(member.is_on_hub() for member in self.datasets.values())

    @classmethod
    def shared_keys(cls) -> set[str]:
        """Keys that hold for all data sets, so that none has its own."""
        bases = (DataSectionBase, TargetDataSection, CaptionDataSectionBase)
        return {name for base in bases if issubclass(cls, base) for name in base.model_fields} - {"source"}

    def _check_places(self) -> None:
        owners: dict[tuple[str, ...], str] = {}
        for name, member in self.datasets.items():
            for place in _places(member):
                if place in owners:
                    raise ValueError(
                        f"datasets.{name}: is {place[0]} like datasets.{owners[place]}, so that each row would be "
                        "there twice; remove one, and set `weights` to see its rows more often"
                    )
                owners[place] = name

    def _check_weights(self) -> None:
        names = list(self.datasets)
        for name in self.weights or ():
            if name not in names:
                raise ValueError(
                    f"weights.{name}: there is no such data set{did_you_mean(nearest_names(name, names))}"
                )
        if self.weights is not None and (lacking := [name for name in names if name not in self.weights]):
            raise ValueError(f"weights: {lacking[0]} has none; give each data set one, such as `{lacking[0]}: 1.0`")


def _places(member: DataSectionBase) -> Iterator[tuple[str, ...]]:
    """The files, folders or repositories that a data set is read from."""
    if isinstance(member, SampleDataSection | CaptionSampleSection):
        vendors = get_args(SampleVendor) if member.vendor is None else (member.vendor,)
        yield from ((f"the embedded drawings by {vendor}",) for vendor in vendors)
        return
    within = [str(value) for value in member.model_dump(include=set(_WITHIN)).values()]
    for place in member.model_dump(include=set(_FILES)).values():
        if place is None:
            continue
        place = member.versioned(place) if isinstance(member, FilteredDataSection) else place
        is_local = "://" not in place and not member.is_on_hub()
        yield (os.path.realpath(place) if is_local else place.rstrip("/"), *within)


_SinglePairs = FakedditDataSection | TableDataSection | ClinicalDataSection | SampleDataSection | HubDataSection
_SingleImages = _SinglePairs | ImageFolderDataSection
_SingleCaptions = CaptionSampleSection | Flickr30kSection | CaptionTableSection | CaptionHubSection | WebDatasetSection


class JoinedClassesSection(JoinedDataSection, TargetDataSection):
    """Data sets with labels. One that has `labels` gives the names of its own; the names are then joined."""

    datasets: Annotated[
        dict[DatasetName, Annotated[_SingleImages, Field(discriminator="source")]], Field(min_length=2)
    ]
    split: SplitSection | None = None
    labels: dict[str, str] | None = None
    """Label, after a data set's own `labels` → label name, in the order of the class ids; absent: sorted."""


class JoinedCaptionsSection(CaptionDataSectionBase, JoinedDataSection):
    source: Literal["joined"]
    datasets: Annotated[
        dict[DatasetName, Annotated[_SingleCaptions, Field(discriminator="source")]], Field(min_length=2)
    ]
    split: ImageSplitSection | None = None


PairDataSection = Annotated[_SinglePairs | JoinedClassesSection, Field(discriminator="source")]
"""Sources of images with texts."""
DataSection = Annotated[_SingleImages | JoinedClassesSection, Field(discriminator="source")]
"""Sources of images."""
CaptionDataSection = Annotated[_SingleCaptions | JoinedCaptionsSection, Field(discriminator="source")]
"""Sources of images with captions."""
