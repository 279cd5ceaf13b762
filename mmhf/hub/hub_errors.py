"""Errors of the Hub and the network: a quick check for an answer, retries where they help, one-line messages."""

from __future__ import annotations

import logging
import ssl
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import datasets
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from mmhf.errors import InputError, UnreachableError
from mmhf.secret_kinds import redact

logger = logging.getLogger(__name__)

T = TypeVar("T")

# HTTPError of the client that huggingface_hub uses: httpx, httpx2 from its version 2.4 on.
_HTTP_ERROR = HfHubHTTPError.__bases__[0]
# What huggingface_hub makes of an answer that makes no sense, such as a proxy's page of HTML with status 200.
_NONSENSE = (ValueError, KeyError, IndexError, TypeError, AttributeError)
# RuntimeError: an upload that failed in one of huggingface_hub's threads.
HUB_ERRORS: tuple[type[Exception], ...] = (_HTTP_ERROR, OSError, HFValidationError, RuntimeError, *_NONSENSE)
_OF_CARDS = "Invalid metadata in README.md"
_CLIENTS = ("huggingface_hub", "httpx", "httpcore")
_PASSING_STATUSES = {408, 429, 500, 502, 503, 504}
_WAITS = (1.0, 4.0)
_LONGEST_WAIT = 60.0
_SWITCHED_OFF = constants.is_offline_mode()
"""Whether HF_HUB_OFFLINE was set when the program began; `use_caches_if_hub_is_silent` sets huggingface_hub's copy."""
_REASONS = {
    400: "the Hub refuses it",
    401: "the Hub does not accept the login, or there is no such repository; run `hf auth login` or set HF_TOKEN",
    403: "the login may not write there; use a token with write permission, or ask the organisation for the right",
    404: "there is no such repository or revision, or the login may not see it",
    409: "something of that name exists already, or another push is going on",
    412: "somebody else has pushed at the same time; do it again",
    413: "a file is larger than the Hub takes; save the model in shards",
    422: "the bytes that arrived have another hash than those that were sent; do it again",
    429: "too many requests; wait a few minutes and do it again",
}


def with_retries(action: Callable[[], T]) -> T:
    """Retry an idempotent action after 1 s and 4 s if the failure may be temporary (429, 5xx, a lost connection).

    If the server says how long to wait, that counts, up to a minute.
    """
    for wait in _WAITS:
        try:
            return action()
        except HUB_ERRORS as error:
            if not is_hub_error(error) or not _may_pass(error):
                raise
            seconds = max(wait, _asked_wait(error))
            logger.warning("%s; trying again in %.0f s", redact(_one_line(error)), seconds)
            time.sleep(seconds)
    return action()


@contextmanager
def named_hub_errors(what: str) -> Iterator[None]:
    """Turn errors of the Hub and the network into a one-line message that begins with `what`.

    Raises:
        UnreachableError: The Hub does not answer.
        InputError: It answers with a refusal.
    """
    try:
        yield
    except HUB_ERRORS as error:
        if not is_hub_error(error):
            raise
        raise explain(error, what) from None  # whose traceback may hold headers with a token


def explain(error: Exception, what: str) -> InputError:
    """A one-line error: what was attempted, what the Hub said, and what to do. Tokens are removed."""
    status = status_of(error)
    detail = redact(_one_line(error))
    if status in _REASONS:
        return InputError(f"{what}: {_REASONS[status]} ({status}: {detail})")
    if status is not None:
        return UnreachableError(f"{what}: the Hub has a problem ({status}: {detail}); do it again later")
    if _cause_of(error, OfflineModeIsEnabled) is not None:
        silent = "the Hub does not answer" if hub_may_answer() else "the Hub is switched off by HF_HUB_OFFLINE"
        return UnreachableError(f"{what}: {silent}")
    if _cause_of(error, _HTTP_ERROR) is not None:
        return UnreachableError(f"{what}: the connection to the Hub broke ({detail}); do it again")
    says_itself = isinstance(error, HFValidationError) or str(error).startswith(_OF_CARDS)
    if isinstance(error, _NONSENSE) and not says_itself:
        return UnreachableError(
            f"{what}: what answers is not the Hub ({type(error).__name__}: {detail}); is a proxy or a login page in "
            "between? do it again"
        )
    return InputError(f"{what}: {detail}")


def is_hub_error(error: BaseException) -> bool:
    """Whether an exception comes from the Hub or the network, and not from this machine or our own code."""
    if isinstance(error, InputError):
        return False
    if _cause_of(error, _HTTP_ERROR) is not None or isinstance(error, (HFValidationError, LocalEntryNotFoundError)):
        return True
    if isinstance(error, OSError):
        return error.errno is None
    frames = traceback.walk_tb(error.__traceback__)
    return any(str(frame.f_globals.get("__name__")).startswith(_CLIENTS) for frame, _ in frames)


def status_of(error: BaseException) -> int | None:
    """HTTP status behind an error of huggingface_hub; `None` when no answer came."""
    cause = _cause_of(error, HfHubHTTPError)
    return cause.response.status_code if isinstance(cause, HfHubHTTPError) else None


def _may_pass(error: Exception) -> bool:
    status = status_of(error)
    if status is not None:
        return status in _PASSING_STATUSES
    return _cause_of(error, _HTTP_ERROR) is not None


def _asked_wait(error: Exception) -> float:
    cause = _cause_of(error, HfHubHTTPError)
    value = cause.response.headers.get("Retry-After", "") if isinstance(cause, HfHubHTTPError) else ""
    return min(float(value), _LONGEST_WAIT) if value.isdigit() else 0.0


def _cause_of(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kind):
        cause = cause.__cause__ or cause.__context__
    return cause


def _one_line(error: BaseException) -> str:
    """The server's message if there is one, else the first lines of the error."""
    cause = _cause_of(error, HfHubHTTPError)
    if isinstance(cause, HfHubHTTPError) and cause.server_message:
        error = Exception(cause.server_message)
    elif error.__cause__ is not None and isinstance(error, RuntimeError):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".:") if lines else type(error).__name__


def use_caches_if_hub_is_silent(seconds: float = 10.0) -> None:
    """Switch transformers and datasets to their caches unless the Hub answers in time.

    Otherwise they retry five times for each file: 23 s without a network, minutes behind a firewall that drops
    packets.

    Args:
        seconds (`float`, defaults to 10): How long to wait, name resolution included.
    """
    if constants.is_offline_mode() or _answers(seconds):
        return
    logger.warning("%s does not answer: only what is cached can be used", constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True


def hub_may_answer() -> bool:
    """Whether the Hub may be reached at another time: it was not switched off by HF_HUB_OFFLINE."""
    return not _SWITCHED_OFF


def hub_answers(seconds: float) -> bool:
    """Whether the Hub can be used: it answers in time, and nothing says that it is not to be asked."""
    return not constants.is_offline_mode() and _answers(seconds)


def _answers(seconds: float) -> bool:
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=seconds).close()
        except urllib.error.HTTPError:
            answered.set()
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLError):  # whose certificates the real request may well know
                answered.set()
        except OSError as error:
            logger.debug("%s: %s", constants.ENDPOINT, error)
        else:
            answered.set()

    # In a thread, because no timeout of a request bounds the look-up of a host name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
