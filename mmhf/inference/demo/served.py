"""The model behind a page, where `mmhf serve` has it: on another machine, or beside other requests."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from PIL import Image

from mmhf.errors import InputError
from mmhf.inference.demo.subjects import NEAREST, NO_COLUMNS, PROMPT, Answer, Columns, named_classes
from mmhf.inference.inputs import COLUMNS, IMAGE, TEXT
from mmhf.models.family import family_of_task

_TEXTS_AT_ONCE = 64
_PATIENCE = 60.0


class ServedSubject:
    """A model of a server. Its answers are the server's; what they rest on is not told.

    Args:
        url (`str`): The server's address.
        name (`str`, *optional*): Which of its models; needed where it has several.
        captions (`Sequence[str]`): Among which a dual encoder finds the nearest; they are embedded now.
        key (`str`, *optional*): The API key that the server asks for.

    Raises:
        InputError: The server does not answer, has no such model, or refuses the key.
    """

    explains = False

    def __init__(self, url: str, name: str | None = None, *, captions: Sequence[str] = (), key: str | None = None):
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.url = url
        self._client = httpx.Client(base_url=url, headers=headers, timeout=_PATIENCE)
        models = {model["name"]: model for model in self._ask("GET", "/v1/models")["models"]}
        if name is None and len(models) == 1:
            (name,) = models
        if name not in models:
            asked = "several models" if name is None else f"no model {name!r}"
            raise InputError(f"{url}: {asked}; name one of {', '.join(models)}")
        self.name, reads = str(name), models[name]["reads"]
        family = family_of_task(models[name]["task"])
        assert family is not None, "a server's tasks are those of families"
        self.family: str = family.load("subject").family
        self.takes_text = TEXT in reads
        self.columns: Mapping[str, str | list[str]] = models[name].get("columns") or {}
        self.captions = list(dict.fromkeys(captions)) if self.family == "dual encoder" else []
        chunks = [self.captions[at : at + _TEXTS_AT_ONCE] for at in range(0, len(self.captions), _TEXTS_AT_ONCE)]
        embedded = [each for chunk in chunks for each in self._embed([{TEXT: text} for text in chunk])]
        self._pool = np.array([each[TEXT] for each in embedded], dtype=np.float32)

    def answer(self, image: Image.Image, text: str, columns: Columns = NO_COLUMNS) -> Answer:
        """What the server says of an image, a text and values of columns.

        Raises:
            InputError: It refuses them, or does not answer.
        """
        file = io.BytesIO()
        image.save(file, "PNG")
        picture: dict[str, Any] = {IMAGE: base64.b64encode(file.getvalue()).decode()}
        if self.family != "dual encoder":
            picture |= {TEXT: text.strip()} if self.takes_text else {}
            picture |= {COLUMNS: dict(columns)} if self.columns else {}
            (found,) = self._post("/v1/predict", [picture])["predictions"]
            numbers, probabilities = found.get("numbers") or {}, found.get("probabilities") or {}
            return Answer(probabilities=probabilities, numbers=numbers, caption=found.get("caption") or "")
        (embedded,) = self._embed([picture])
        similarities = self._pool @ np.array(embedded[IMAGE], dtype=np.float32)
        nearest = [(self.captions[at], float(similarities[at])) for at in np.argsort(-similarities)[:NEAREST]]
        if not (labels := named_classes(text)):
            return Answer(nearest=nearest)
        (found,) = self._post("/v1/zero-shot", [picture], labels=labels, template=PROMPT)["predictions"]
        return Answer(probabilities=found["probabilities"], nearest=nearest)

    def explain(self, image: Image.Image, text: str, columns: Columns = NO_COLUMNS) -> None:
        return None

    def _embed(self, inputs: Sequence[Mapping[str, object]]) -> list[dict[str, list[float]]]:
        found: list[dict[str, list[float]]] = self._post("/v1/embed", inputs)["embeddings"]
        return found

    def _post(self, endpoint: str, inputs: Sequence[Mapping[str, object]], **fields: object) -> dict[str, Any]:
        return self._ask("POST", endpoint, json={"model": self.name, "inputs": list(inputs), **fields})

    def _ask(self, method: str, endpoint: str, **content: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, endpoint, **content)
            answer: dict[str, Any] = response.json()
        except httpx.InvalidURL as error:
            raise InputError(f"{self.url}: no address of a server ({error})") from error
        except httpx.HTTPError as error:
            raise InputError(f"{self.url}: the server does not answer ({error})") from error
        except ValueError as error:
            raise InputError(f"{self.url}{endpoint}: this is no mmhf serve (status {response.status_code})") from error
        if response.is_error:
            raise InputError(f"{self.url}: {answer.get('error', f'status {response.status_code}')}")
        return answer
