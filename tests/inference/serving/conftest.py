from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from mmhf.inference.serving.app import create_app
from mmhf.inference.serving.limits import Limits
from mmhf.inference.serving.shelf import Asked, Found, Shelf


def found(reference: str) -> Found:
    return Found(Path(reference), "v1.0", reference)


@pytest.fixture
def serve() -> Iterator[Callable[..., TestClient]]:
    """Clients of servers of model folders by name, in this process."""
    open_clients = []

    def start(models: dict[str, Path], *, key: str | None = None, indexes=(), resolve=found, **limits) -> TestClient:
        asked = [Asked(name, str(path)) for name, path in models.items()]
        shelf = Shelf(asked, resolve, Limits(**limits), indexes=indexes)
        shelf.load()
        client = TestClient(create_app(shelf, key=key), raise_server_exceptions=False)
        client.__enter__()
        open_clients.append(client)
        return client

    yield start
    for client in open_clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="session")
def encoded(picture: Path) -> str:
    """The picture as base64."""
    return base64.b64encode(picture.read_bytes()).decode()
