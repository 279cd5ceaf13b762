"""The endpoints, over models that are loaded."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from datetime import date
from typing import Any, TypeVar

import torch
from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse

from mmhf._version import __version__
from mmhf.errors import DamagedError, InputError
from mmhf.inference.inputs import IMAGE, TEXT
from mmhf.inference.serving.batcher import QueueFullError
from mmhf.inference.serving.gate import RELOAD, Gate, refusal
from mmhf.inference.serving.limits import RETRY, RefusedError, read_body
from mmhf.inference.serving.metrics import Metrics
from mmhf.inference.serving.page import PAGE, PAGE_HEADERS, describe
from mmhf.inference.serving.schemas import (
    Answer,
    EmbedAnswer,
    Embedding,
    EmbedRequest,
    FoundRow,
    Input,
    ModelList,
    PredictAnswer,
    Prediction,
    PredictRequest,
    Refusal,
    SearchAnswer,
    SearchRequest,
    ZeroShotRequest,
    parse_request,
)
from mmhf.inference.serving.services import CaptionStream, EmbedService, PredictService
from mmhf.inference.serving.shelf import Index, Served, Shelf

PREDICT, EVENTS_TYPE = "/v1/predict", "text/event-stream"
Made = TypeVar("Made")


def create_app(shelf: Shelf, *, key: str | None = None) -> FastAPI:
    """An ASGI application over the models of a shelf; it has the endpoints that one of them can answer.

    Args:
        shelf ([`Shelf`]): Loaded.
        key (`str`, *optional*): The API key that requests need.
    """
    metrics = Metrics(shelf.waiting)
    shelf.on_batch, shelf.under_way = metrics.batch, lambda: metrics.under_way
    endpoints = Endpoints(shelf, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await shelf.close()

    app = FastAPI(title="mmhf", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.endpoints = endpoints
    _add_routes(app, shelf, endpoints)
    describe(app, shelf)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(HTTPException, _no_endpoint)
    paths = frozenset(str(getattr(route, "path", "")) for route in app.routes)
    app.add_middleware(Gate, limits=shelf.limits, metrics=metrics, endpoints=paths, key=key)
    return app


def _add_routes(app: FastAPI, shelf: Shelf, endpoints: Endpoints) -> None:
    """The endpoints that a model of the shelf can answer, and those of the server itself."""

    def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: {"model": Refusal} for status in statuses}

    def add(path: str, function: Callable[..., Any], summary: str, answer: type[BaseModel], method: str) -> None:
        answers: dict[int | str, dict[str, Any]] = {200: {"model": answer}}
        if path == PREDICT:
            answers[200]["content"] = {EVENTS_TYPE: {"schema": {"type": "string", "description": "With `stream`."}}}
        statuses = (400, 401, 404, 408, 413, 415, 422, 429, 504) if method == "POST" else (401,)
        app.add_api_route(
            path,
            function,
            methods=[method],
            summary=summary,
            responses={**answers, **refusals(*statuses)},
            response_class=JSONResponse,
        )

    if any(isinstance(served.service, PredictService) for served in shelf):
        add(PREDICT, endpoints.predict, "Classify inputs, or write captions for them", PredictAnswer, "POST")
    if any(isinstance(served.service, EmbedService) for served in shelf):
        add("/v1/embed", endpoints.embed, "Embed images and texts", EmbedAnswer, "POST")
        add("/v1/zero-shot", endpoints.zero_shot, "Classify images among labels of yours", PredictAnswer, "POST")
    if any(served.indexes for served in shelf):
        add("/v1/search", endpoints.search, "Search an index by image or text", SearchAnswer, "POST")
    add("/v1/models", endpoints.models, "The models that are served", ModelList, "GET")
    for path, function, method, summary, statuses in (
        (RELOAD, endpoints.reload, "POST", "Serve new versions, if there are any", (401, 403, 409)),
        ("/health", endpoints.health, "GET", "Whether the server lives", ()),
        ("/ready", endpoints.ready, "GET", "Whether it takes requests", (503,)),
    ):
        app.add_api_route(path, function, methods=[method], summary=summary, responses=refusals(*statuses))
    app.add_api_route(
        "/metrics",
        endpoints.metrics_text,
        methods=["GET"],
        summary="For Prometheus",
        responses=refusals(401),
        response_class=PlainTextResponse,
    )
    for path in ("/", "/docs"):
        app.add_api_route(path, _page, methods=["GET"], include_in_schema=False)


class Endpoints:
    """What each endpoint does.

    Args:
        shelf ([`Shelf`]): The models.
        metrics ([`Metrics`]): Of the server.

    Attributes:
        stopping (`bool`): Whether the server is about to end.
    """

    def __init__(self, shelf: Shelf, metrics: Metrics) -> None:
        self.shelf, self.metrics, self.limits = shelf, metrics, shelf.limits
        self.stopping = False

    async def predict(self, request: Request) -> Response:
        """Labels with their probabilities, or captions, as `mmhf predict` makes them."""
        asked = await parse_request(PredictRequest, await read_body(request, self.limits), request.headers)
        served = self.shelf.choose(asked.model, PredictService)
        service = served.service
        assert isinstance(service, PredictService)
        if asked.stream:
            if len(asked.inputs) != 1:
                raise RefusedError(422, "stream: one input is streamed at a time.")
            return await self._stream(served, service, asked)
        with served.borrowed():
            options = service.options(asked.threshold, asked.generation)

            async def make() -> list[Prediction]:
                examples = await self._read(service.read, asked.inputs)
                return await served.batcher.submit(options, examples)

            predictions = await self._in_time(make())
        return _json(PredictAnswer(**_who(served), predictions=predictions))

    async def embed(self, request: Request) -> Response:
        """Embeddings of length 1, as `mmhf embed` makes them."""
        asked = await parse_request(EmbedRequest, await read_body(request, self.limits), request.headers)
        served = self.shelf.choose(asked.model, EmbedService)
        assert isinstance(served.service, EmbedService)
        shorten = served.service.shortener(asked.dimensions)
        with served.borrowed():
            made = await self._in_time(self._embed(served, asked.inputs))
        embeddings = [Embedding(**{name: shorten(vector).tolist() for name, vector in each.items()}) for each in made]
        return _json(EmbedAnswer(**_who(served), embeddings=embeddings))

    async def zero_shot(self, request: Request) -> Response:
        """Probabilities of the labels, as the pipeline `zero-shot-image-classification` has them."""
        asked = await parse_request(ZeroShotRequest, await read_body(request, self.limits), request.headers)
        served = self.shelf.choose(asked.model, EmbedService)
        service = served.service
        assert isinstance(service, EmbedService)
        if "{}" not in asked.template:
            raise RefusedError(422, "template: has no {} for the label.")
        if len(set(asked.labels)) < len(asked.labels):
            raise RefusedError(422, "labels: one is there twice.")
        for number, each in enumerate(asked.inputs):
            if each.image is None or each.text is not None:
                raise RefusedError(422, f"inputs.{number}: expected an image alone.")
        # Not `format`, to which a template can give orders.
        prompts = [Input(text=asked.template.replace("{}", label)) for label in asked.labels]
        count = len(asked.inputs)
        with served.borrowed():
            made = await self._in_time(self._embed(served, [*asked.inputs, *prompts]))
        images = torch.stack([torch.from_numpy(each[IMAGE]) for each in made[:count]])
        texts = torch.stack([torch.from_numpy(each[TEXT]) for each in made[count:]])
        predictions = []
        for row in service.embedder.probabilities(images, texts).tolist():
            probabilities = dict(zip(asked.labels, row, strict=True))
            label = max(probabilities, key=probabilities.__getitem__)
            predictions.append(Prediction(label=label, confidence=probabilities[label], probabilities=probabilities))
        return _json(PredictAnswer(**_who(served), predictions=predictions))

    async def search(self, request: Request) -> Response:
        """The nearest rows of an index that `mmhf embed` wrote, as `mmhf search` finds them."""
        asked = await parse_request(SearchRequest, await read_body(request, self.limits), request.headers)
        served = self.shelf.choose(asked.model, EmbedService)
        index = _choose_index(served, asked.index)
        if asked.among is not None and asked.among not in index.file.modalities:
            raise RefusedError(422, f"among: the index has no embeddings of {asked.among}s.")
        for number, each in enumerate(asked.inputs):
            if (each.image is None) == (each.text is None):
                raise RefusedError(422, f"inputs.{number}: expected an image or a text.")

        async def find() -> list[list[FoundRow]]:
            made = await self._embed(served, asked.inputs)
            queries = torch.stack([torch.from_numpy(vector) for each in made for vector in each.values()])
            return await asyncio.to_thread(_search, index, queries, asked)

        with served.borrowed():
            results = await self._in_time(find())
        return _json(SearchAnswer(**_who(served), index=index.name, results=results))

    async def models(self) -> Response:
        """Name, version, task and labels of each."""
        return _json(ModelList(models=[served.card() for served in self.shelf]))

    async def reload(self) -> Response:
        """Look again at what the names of the models stand for, and serve what is new; no request is lost."""
        try:
            changes = await self.reload_models()
        except InputError as error:
            raise RefusedError(409, f"The old versions are still served: {error}.") from None
        return JSONResponse({"models": changes})

    async def reload_models(self) -> dict[str, str]:
        """See `Shelf.reload`; the outcome is counted.

        Raises:
            InputError: A new version cannot be served; the old ones still are.
        """
        try:
            changes = await self.shelf.reload()
        except (InputError, OSError) as error:
            self.metrics.reload("failed")
            raise InputError(str(error)) from error
        self.metrics.reload("unchanged" if set(changes.values()) == {"unchanged"} else "changed")
        return changes

    async def health(self) -> Response:
        """Always the same."""
        return JSONResponse({"status": "ok"})

    async def ready(self) -> Response:
        """503 while the server ends."""
        if self.stopping:
            raise RefusedError(503, "The server is about to end.")
        return JSONResponse({"status": "ready"})

    async def metrics_text(self) -> Response:
        """Requests, batches, queues."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _read(self, read: Callable[..., Made], inputs: Sequence[Input]) -> list[Made]:
        """Decode inputs, in threads."""
        if len(inputs) > self.limits.max_queue:
            raise RefusedError(413, f"inputs: {len(inputs)}, more than the {self.limits.max_queue} that are allowed.")
        jobs = [asyncio.to_thread(read, each, f"inputs.{number}", self.limits) for number, each in enumerate(inputs)]
        return list(await asyncio.gather(*jobs))

    async def _embed(self, served: Served, inputs: Sequence[Input]) -> list[dict[str, Any]]:
        """For each input the embeddings of what it has."""
        assert isinstance(served.service, EmbedService)
        found = await self._read(served.service.read, inputs)
        made: list[dict[str, Any]] = [{} for _ in found]
        for modality in (IMAGE, TEXT):
            places = [place for place, each in enumerate(found) if modality in each]
            if places:
                vectors = await served.batcher.submit(modality, [found[place][modality] for place in places])
                for place, vector in zip(places, vectors, strict=True):
                    made[place][modality] = vector
        return made

    async def _in_time(self, work: Awaitable[Made]) -> Made:
        try:
            return await asyncio.wait_for(work, self.limits.timeout)
        except asyncio.TimeoutError:
            raise RefusedError(504, f"The answer took longer than {self.limits.timeout:g} seconds.", RETRY) from None
        except QueueFullError:
            raise RefusedError(429, f"{self.limits.max_queue} inputs are waiting; try again.", RETRY) from None

    async def _stream(self, served: Served, service: PredictService, asked: PredictRequest) -> Response:
        """A caption as events of `text/event-stream`: `{"text": PIECE}` …, and the whole answer at the end."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def emit(piece: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        stream = CaptionStream(emit)
        options = service.options(asked.threshold, asked.generation, stream)
        ends_at = time.monotonic() + self.limits.timeout
        borrowed = ExitStack()
        borrowed.enter_context(served.borrowed())

        async def make() -> list[Prediction]:
            with borrowed:
                examples = await self._read(service.read, asked.inputs)
                made: list[Prediction] = await served.batcher.submit(options, examples)
            return made

        task = asyncio.create_task(make())
        task.add_done_callback(lambda _: pieces.put_nowait(None))
        # What is refused has a status, as long as nothing was sent.
        try:
            first = await self._in_time(pieces.get())
            if first is None:
                await self._in_time(task)
        except BaseException:
            stream.stop.set()
            task.cancel()
            raise

        async def events() -> AsyncIterator[str]:
            try:
                piece = first
                while piece is not None:
                    yield _event({"text": piece})
                    piece = await asyncio.wait_for(pieces.get(), max(ends_at - time.monotonic(), 0))
                (prediction,) = await task
                yield _event(PredictAnswer(**_who(served), predictions=[prediction]).model_dump(exclude_none=True))
            except asyncio.TimeoutError:
                yield _event({"error": f"The answer took longer than {self.limits.timeout:g} seconds."})
            finally:
                stream.stop.set()
                task.cancel()

        return StreamingResponse(events(), media_type=EVENTS_TYPE, headers={"cache-control": "no-store"})


def _choose_index(served: Served, name: str | None) -> Index:
    if name is None and len(served.indexes) == 1:
        return next(iter(served.indexes.values()))
    if name is None:
        raise RefusedError(422, f"index: name one of {', '.join(served.indexes) or 'another model, this has none'}.")
    if name not in served.indexes:
        raise RefusedError(404, f"index: there is none of that name; there are {', '.join(served.indexes) or 'none'}.")
    return served.indexes[name]


def _search(index: Index, queries: torch.Tensor, asked: SearchRequest) -> list[list[FoundRow]]:
    with index.lock:
        try:
            hits = index.file.search_all(
                queries, among=asked.among, top=asked.top, approximate=asked.approximate, images=False
            )
        except DamagedError:
            raise RefusedError(500, "The index is damaged; embed the table again.") from None
        except InputError:
            raise RefusedError(422, "approximate: this index cannot be searched so.") from None
    return [
        [FoundRow(row=hit.row, score=hit.score, values=_plain(hit.values)) for hit in of_query] for of_query in hits
    ]


def _plain(value: Any) -> Any:
    """A value of a table as JSON has it; contents of images are left out."""
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items() if not isinstance(each, bytes)}
    if isinstance(value, list):
        return [_plain(each) for each in value if not isinstance(each, bytes)]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if value is None or isinstance(value, str | int):
        return value
    return value.isoformat() if isinstance(value, date) else str(value)


def _who(served: Served) -> dict[str, Any]:
    return {"model": served.name, "version": served.found.version}


def _json(answer: Answer | ModelList) -> Response:
    content = answer.model_dump_json(exclude_none=True)
    return Response(content, media_type="application/json")


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values)}\n\n"


async def _page() -> Response:
    return HTMLResponse(PAGE, headers=PAGE_HEADERS)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return refusal(error)


async def _no_endpoint(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "There is no such endpoint; /docs has those that there are.", 405: "The method is another one."}
    message = messages.get(error.status_code, f"{error.detail}.")
    return refusal(RefusedError(error.status_code, message, error.headers))
