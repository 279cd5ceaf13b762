"""The process around the application: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mmhf.errors import InputError
from mmhf.inference.serving.app import Endpoints

logger = logging.getLogger(__name__)

KEY_VARIABLE = "MMHF_API_KEY"
_BACKLOG = 2048


def api_key() -> str | None:
    """The key in the environment.

    Raises:
        InputError: It is set and empty, which would leave the server open unnoticed; or it is not ASCII.
    """
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and (not key.strip() or not key.isascii()):
        raise InputError(f"{KEY_VARIABLE}: is {'empty' if not key.strip() else 'not ASCII'}; set a key, or unset it")
    return None if key is None else key.strip()


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody is connected to yet; bound before models are loaded, which takes longer.

    Raises:
        InputError: There is no such address here, or the port is taken.
    """
    if not 0 <= port < 1 << 16:
        raise InputError(f"port {port}: expected a number between 0 and 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise InputError(f"{host}, port {port}: {error.strerror}") from error
    return bound


class _Server(uvicorn.Server):
    """Says in `/ready` that it ends, before it does."""

    def __init__(self, config: uvicorn.Config, endpoints: Endpoints) -> None:
        super().__init__(config)
        self._endpoints = endpoints

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._endpoints.stopping = True
        super().handle_exit(sig, frame)


def serve(app: FastAPI, bound: socket.socket, *, timeout: float) -> None:
    """Answer requests until SIGTERM or SIGINT; then answer those that were accepted, and return.

    SIGHUP looks for new versions of the models.

    Args:
        app (`FastAPI`): Of `create_app`.
        bound (`socket.socket`): From `bind`.
        timeout (`float`): Seconds that the last requests have at most.
    """
    config = uvicorn.Config(
        app,
        backlog=_BACKLOG,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=int(timeout) + 1,
    )
    endpoints: Endpoints = app.state.endpoints
    server = _Server(config, endpoints)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        reloads: set[asyncio.Task[None]] = set()

        def hang_up() -> None:
            task = loop.create_task(_reload(endpoints))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        loop.add_signal_handler(signal.SIGHUP, hang_up)
        await server.serve(sockets=[bound])

    # uvicorn raises the signal again when it is done; it has had its effect by then.
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(run())
    finally:
        signal.signal(signal.SIGTERM, previous)


async def _reload(endpoints: Endpoints) -> None:
    try:
        changes = await endpoints.reload_models()
    except InputError as error:
        logger.error("The old versions are still served: %s", error)
        return
    for name, change in changes.items():
        logger.info("%s: %s", name, change)
