"""What each request passes first and last: the key, the number under way, metrics, one line of the log."""

from __future__ import annotations

import hmac
import json
import logging
import time
import traceback
import uuid
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmhf.inference.serving.limits import RETRY, Limits, RefusedError
from mmhf.inference.serving.metrics import Metrics

logger = logging.getLogger(__name__)

RELOAD = "/v1/models/reload"
_OPEN = ("/health", "/ready", "/", "/docs", "/openapi.json")
_CLIENT_GONE = 499


class Gate:
    """Counts and logs each request, and refuses those without the key or beyond the limit.

    A line of the log has neither what was sent nor what was answered.

    Args:
        app (`ASGIApp`): What answers.
        limits ([`Limits`]): `max_queue` is of interest.
        metrics ([`Metrics`]): Counts.
        endpoints (`frozenset[str]`): Paths that are counted by name; others are `other`.
        key (`str`, *optional*): The API key; absent: none is asked for.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Limits, metrics: Metrics, endpoints: frozenset[str], key: str | None = None
    ) -> None:
        self.app, self.limits, self.metrics, self.endpoints = app, limits, metrics, endpoints
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, request_id = time.perf_counter(), uuid.uuid4().hex
        path = str(scope["path"])
        status = 0

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        counts = scope["method"] == "POST" and path != RELOAD
        failure = None
        try:
            self._check(scope, path, counts)
            self.metrics.under_way += counts
            try:
                await self.app(scope, receive, watched_send)
            finally:
                self.metrics.under_way -= counts
        except RefusedError as error:
            await refusal(error)(scope, receive, watched_send)
        except ClientDisconnect:
            status = _CLIENT_GONE
        except Exception as error:  # noqa: BLE001  (the server lives on)
            # Its kind and place alone: what it says may have parts of a request in it.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            failure = f"{type(error).__name__} at {frame.filename}:{frame.lineno}"
            if not status:
                unexpected = RefusedError(500, f"Something went wrong here; the log has it as {request_id}.")
                await refusal(unexpected)(scope, receive, watched_send)
        finally:
            seconds = time.perf_counter() - begun
            endpoint = path if path in self.endpoints else "other"
            self.metrics.request(endpoint, status or _CLIENT_GONE, seconds)
            _log(
                request=request_id, method=scope["method"], endpoint=endpoint, status=status or _CLIENT_GONE,
                seconds=round(seconds, 4), failure=failure,
            )  # fmt: skip

    def _check(self, scope: Scope, path: str, counts: bool) -> None:
        if path not in _OPEN:
            if self._key is not None and not self._has_key(Headers(scope=scope)):
                raise RefusedError(
                    401, "The API key is missing or wrong; send it as `Authorization: Bearer KEY`.",
                    {"WWW-Authenticate": "Bearer"},
                )  # fmt: skip
            if self._key is None and path == RELOAD:
                raise RefusedError(403, "Reloading over HTTP needs a server with an API key (MMHF_API_KEY).")
        if counts and self.metrics.under_way >= self.limits.max_queue:
            raise RefusedError(429, f"{self.limits.max_queue} requests are under way; try again.", RETRY)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return self._key is not None and hmac.compare_digest(given.encode(), self._key)


def refusal(error: RefusedError) -> JSONResponse:
    """The answer to a request that is refused."""
    return JSONResponse({"error": error.message}, error.status, error.headers)


def _log(**facts: str | float | None) -> None:
    line: dict[str, str | float] = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    line |= {name: value for name, value in facts.items() if value is not None}
    with suppress(OSError):  # a full disk is no reason not to answer
        logger.info(json.dumps(line))
