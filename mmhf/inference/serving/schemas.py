"""What requests and answers look like, in JSON and as forms."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal, TypeVar

from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from mmhf.inference.serving.limits import RefusedError

JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data"
_MOST_PARTS = 2000


def _image_content(value: object) -> object:
    """The bytes of an image that is given as base64 or as a data URL."""
    if not isinstance(value, str):
        return value
    head, comma, data = value.partition(",")
    if comma and head.startswith("data:"):
        if not head.endswith(";base64"):
            raise ValueError("a data URL of an image needs ;base64")
        value = data
    elif "://" in value[:32]:
        raise ValueError("URLs are not fetched; send the image itself, as base64, a data URL or a file of a form")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except ValueError as error:
        raise ValueError("is neither base64 nor a data URL") from error


Content = Annotated[
    bytes,
    BeforeValidator(_image_content),
    WithJsonSchema({"type": "string", "description": "An image file as base64, or as a data URL."}),
]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Input(_Schema):
    """One image, one text, or both, and values of the columns that the model reads besides."""

    image: Content | None = None
    text: str | None = None
    columns: dict[str, Any] | None = Field(
        None, description="Column → value, of those in `/v1/models`; one that is not named is missing."
    )


def _as_list(value: object) -> object:
    return [value] if isinstance(value, dict) else value


Inputs = Annotated[
    list[Input], BeforeValidator(_as_list), Field(min_length=1, description="One input, or a list of them.")
]


class Generation(_Schema):
    """How captions are written, where it differs from the model's own way."""

    max_new_tokens: int | None = Field(None, ge=1, le=256)
    num_beams: int | None = Field(None, ge=1, le=8)
    length_penalty: float | None = None
    do_sample: bool | None = None
    temperature: float | None = Field(None, gt=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    repetition_penalty: float | None = Field(None, gt=0)
    no_repeat_ngram_size: int | None = Field(None, ge=0)


class Request(_Schema):
    """What all requests have."""

    model: str | None = Field(None, description="Name of `/v1/models`; only needed where several can answer.")
    inputs: Inputs


class PredictRequest(Request):
    """Inputs to classify, or to write captions for."""

    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Two classes: predict the second from here on. Several labels: give each from here on.",
    )
    generation: Generation = Generation()
    stream: bool = Field(False, description="Captioners, one input: send the caption while it is written.")


class EmbedRequest(Request):
    """Images and texts to embed."""

    dimensions: int | None = Field(
        None, ge=1, description="Models trained with `contrastive.matryoshka`: the first so many numbers, of length 1."
    )


class SearchRequest(Request):
    """Images or texts to look for."""

    index: str | None = Field(None, description="Name of an index; only needed where there are several.")
    among: Literal["image", "text"] | None = Field(None, description="Absent: images, where there are any.")
    top: int = Field(10, ge=1, le=100)
    approximate: bool = False


class ZeroShotRequest(Request):
    """Images to classify among labels that the request names."""

    labels: list[str] = Field(min_length=1)
    template: str = Field("This is a photo of {}.", description="The label takes the place of {}.")


class Prediction(BaseModel):
    """A label, several of them, numbers, or a caption."""

    label: str | None = None
    labels: list[str] | None = Field(None, description="Models of several labels, the most probable first.")
    confidence: float | None = None
    probabilities: dict[str, float] | None = None
    numbers: dict[str, float] | None = Field(None, description="Models of numbers, by name.")
    abstained: bool | None = Field(None, description="Models with an abstention threshold.")
    caption: str | None = None
    note: str | None = Field(None, description="What the answer could not rest on.")


class Answer(BaseModel):
    """Which model answered."""

    model_config = ConfigDict(protected_namespaces=())
    model: str
    version: str | None


class PredictAnswer(Answer):
    """A prediction for each input, in their order."""

    predictions: list[Prediction]


class Embedding(BaseModel):
    """Embeddings of length 1 of what the input has."""

    image: list[float] | None = None
    text: list[float] | None = None


class EmbedAnswer(Answer):
    """Embeddings for each input, in their order."""

    embeddings: list[Embedding]


class FoundRow(BaseModel):
    """A row of the index."""

    row: int
    score: float = Field(description="Cosine similarity.")
    values: dict[str, Any]


class SearchAnswer(Answer):
    """For each input the rows that are nearest, the nearest first."""

    index: str
    results: list[list[FoundRow]]


class ServedModelCard(BaseModel):
    """A model that is served."""

    name: str
    version: str | None
    commit: str
    task: str
    reads: list[str]
    labels: list[str] | None = None
    columns: dict[str, str | list[str]] | None = Field(
        None, description="Columns that inputs have besides: `number`, `text`, or the categories that the model knows."
    )
    indexes: list[str] | None = None


class ModelList(BaseModel):
    """The models that are served."""

    models: list[ServedModelCard]


class Refusal(BaseModel):
    """Why a request was not answered."""

    error: str


Body = TypeVar("Body", bound=Request)


class _FormParser(MultiPartParser):
    """Keeps files in memory: the whole body is there already, and no longer than allowed."""

    spool_max_size = 1 << 40


async def parse_request(kind: type[Body], body: bytes, headers: Headers) -> Body:
    """A request out of its body.

    A form has the parts `image`, `text` and `columns` (JSON), as often as there are inputs, and the other fields by
    their names.

    Raises:
        RefusedError: It is neither JSON nor a form, or has not the fields that it needs.
    """
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if content_type == FORM_TYPE:
            return kind.model_validate(await _form_values(body, headers, kind))
        if content_type == JSON_TYPE or content_type.endswith("+json"):
            return await asyncio.to_thread(kind.model_validate_json, body)
    except ValidationError as error:
        raise RefusedError(422, _sentence(error)) from None
    raise RefusedError(415, f"The body has to be {JSON_TYPE} or {FORM_TYPE}.")


async def _form_values(body: bytes, headers: Headers, kind: type[Request]) -> dict[str, Any]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _FormParser(
        headers, stream(), max_files=_MOST_PARTS, max_fields=_MOST_PARTS, max_part_size=max(len(body), 1)
    )
    values: dict[str, Any] = {}
    images: list[bytes | str] = []
    texts: list[str] = []
    columns: list[Any] = []
    try:
        parts = (await parser.parse()).multi_items()
    except MultiPartException as error:
        raise RefusedError(400, f"The form cannot be read: {error.message.rstrip('.')}.") from None
    for name, part in parts:
        value = await part.read() if isinstance(part, UploadFile) else part
        if name == "image":
            images.append(value)
        elif isinstance(value, bytes):
            raise RefusedError(422, f"{name[:80]}: is a file; only images are.")
        elif name == "text":
            texts.append(value)
        elif name == "columns":
            columns.append(_json_value(name, value))
        elif name == "labels":
            values.setdefault(name, []).append(value)
        elif name in values:
            raise RefusedError(422, f"{name[:80]}: is given twice.")
        else:
            values[name] = _json_value(name, value) if name == "generation" else value
    if images and texts and len(images) != len(texts):
        raise RefusedError(422, f"The form has {len(images)} images and {len(texts)} texts.")
    count = max(len(images), len(texts))
    if columns and len(columns) != count:
        raise RefusedError(422, f"The form has columns for {len(columns)} of {count} inputs.")
    parts_of: dict[str, list[Any]] = {"image": images, "text": texts, "columns": columns}
    values["inputs"] = [
        {name: given[at] if given else None for name, given in parts_of.items()} for at in range(count)
    ]
    return values


def _json_value(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RefusedError(422, f"{name}: is no JSON.") from None


def _sentence(error: ValidationError) -> str:
    """What is wrong first, without the value."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(each)[:80] for each in first["loc"])
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] == "json_invalid":
        return f"The body is no JSON: {message.removeprefix('Invalid JSON: ')}."
    return f"{where}: {message}." if where else f"{message}."


def example_image() -> str:
    """A small drawing as a data URL, for the examples."""
    picture = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
