"""The section about what becomes of a trained model: its release, and what the model card says."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, model_validator

from mmhf.recipe.sections import Section

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TAKEN = re.compile(r"best|main|releasing-.*|v?\d.*")


class CardSection(Section):
    """What a model card says that no program can know."""

    license: str | None = None
    """The Hub's identifier, such as `apache-2.0`; `other` needs `license_name`."""
    license_name: str | None = None
    license_link: str | None = None
    language: list[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]] = []
    """ISO 639 codes, such as `en`."""
    datasets: list[str] = []
    """Hub names of the data sets, where they are on the Hub."""
    tags: list[str] = []
    summary: str | None = None
    """One or two sentences under the title."""
    intended_use: str | None = None
    limits: str | None = None
    """Where it fails, what it must not be used for, what its data lacks."""

    @model_validator(mode="after")
    def _names_its_license(self) -> CardSection:
        if self.license == "other" and self.license_name is None:
            raise ValueError("`license: other` needs `license_name`, and should have `license_link`")
        return self


class ReleaseSection(Section):
    repo: str
    """Folder that holds the versions of one model; with `push`, a repository of the Hub, `ORG/NAME`."""
    version: Annotated[str, Field(pattern=r"^v?\d+(\.\d+){0,2}([-_.][0-9A-Za-z]+)*$")]
    """In quotes, as "1.8": YAML reads an unquoted 1.10 as 1.1."""
    include_frozen: bool = False
    """Captioners: store the encoders that were never trained, too, and not only where they come from."""
    push: bool = False
    """Release to the Hub and not to a folder."""
    private: bool = False
    """A repository that the push creates is private."""
    channel: Annotated[str, Field(pattern=r"^[A-Za-z][\w.-]*$")] | None = None
    """Branch of the Hub that follows this version; absent: `main`."""
    best_metric: str | None = None
    """The tag `best` follows the version that is best by this number of metrics.json, such as `test_f1_macro`."""
    greater_is_better: bool | None = None
    """For `best_metric`; absent: known by its name, false for a loss, an error or a rank."""
    card: CardSection = CardSection()

    @model_validator(mode="after")
    def _names_a_hub_repository(self) -> ReleaseSection:
        if self.push and not _HUB_ID.fullmatch(self.repo):
            raise ValueError(f"`push: true` needs a `repo` of the form ORG/NAME, got {self.repo!r}")
        for_hub = {"private": self.private, "channel": self.channel, "best_metric": self.best_metric}
        for key in (key for key, value in for_hub.items() if value and not self.push):
            raise ValueError(f"`{key}` is for the Hub; set `push: true`")
        if self.channel is not None and _TAKEN.fullmatch(self.channel):
            raise ValueError(f"a channel cannot be called {self.channel!r}; choose a name such as `experimental`")
        return self
