"""What all sections of a recipe are made of, and what a recipe may say of data behind URLs."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]
SplitName = Literal["train", "validation", "test"]


class Section(BaseModel):
    """Base of all sections: exact types, no unknown keys, read-only once validated."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def changed(self) -> dict[str, Any]:
        """The keys whose values are not the defaults, which a resolved recipe names too."""
        fields = type(self).model_fields
        return {name: value for name, value in self if value != fields[name].default}


_USER_AND_SECRET = re.compile(r"(\w://)[^/@\s]*:[^/@\s]*@")
_SECRET_PARAMETERS = re.compile(r"(signature|credential|accesskeyid|token|secret|password|apikey|^sig$|^key$)")


class SecretValueError(ValueError):
    """A value holds a secret, so that no message may repeat it."""


def require_no_secret(place: str) -> str:
    """Refuse a URL that holds credentials, such as `s3://KEY:SECRET@bucket` or a signed `https://` URL.

    Args:
        place (`str`):
            A path or URL.

    Returns:
        `str`: the same.

    Raises:
        SecretValueError: it holds credentials, which the message does not repeat.
    """
    if "://" not in place:
        return place
    parts = urlsplit(place.partition("{")[0])  # the braces of shards are no part of a host
    names = (re.sub(r"[-_]", "", name).lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True))
    if ":" in parts.netloc.rpartition("@")[0] or any(_SECRET_PARAMETERS.search(name) for name in names):
        raise SecretValueError(
            f"the {parts.scheme}:// URL holds credentials; leave them out, and give them as docs/cloud.md says "
            "(environment variables, or the files that the cloud's own tools write)"
        )
    return place


def hide_secrets(text: str) -> str:
    """Replace users and passwords in the URLs of a message."""
    return _USER_AND_SECRET.sub(r"\1***@", text)


DataPath = Annotated[str, AfterValidator(require_no_secret)]
"""A local path or a URL that fsspec opens."""


class CloudSection(Section):
    """How files behind URLs (`gs://`, `s3://`, `hf://`, ...) are fetched, and kept on this machine."""

    cache_dir: str | None = None
    """Folder of the copies, which runs and processes may share; absent: in the cache of `datasets`
    (`HF_DATASETS_CACHE`)."""
    max_bytes: PositiveInt = 50_000_000_000
    """Size of that folder; what was used longest ago is removed first."""
    connections: PositiveInt = 16
    """Files that each process, and each of its workers, fetches at once."""
    prefetch: Annotated[int, Field(ge=0)] = 2
    """Batches that each process, or each of its workers, fetches ahead of the one that it is at."""
    retries: Annotated[int, Field(ge=0)] = 4
    """How often a failed request is tried again, after 1, 2, 4, ... seconds."""
