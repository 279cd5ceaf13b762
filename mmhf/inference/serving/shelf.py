"""The models that are served, and how a new version takes the place of an old one."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmhf.errors import InputError
from mmhf.inference.loading import public_name
from mmhf.inference.search import EmbeddingIndex
from mmhf.inference.serving.batcher import Batcher
from mmhf.inference.serving.limits import Limits, RefusedError
from mmhf.inference.serving.schemas import ServedModelCard
from mmhf.inference.serving.services import EmbedService, PredictService, Service, load_service

_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class Found:
    """Where a model lies.

    Args:
        path (`Path`): Its folder.
        version (`str`, *optional*): Of a release.
        commit (`str`): Hash of its content.
    """

    path: Path
    version: str | None
    commit: str


@dataclass(frozen=True)
class Asked:
    """A model, or an index, that the user named.

    Args:
        name (`str`): What requests call it.
        reference (`str`): Where it is.
    """

    name: str
    reference: str

    @classmethod
    def parse(cls, text: str, *, name: str | None = None) -> Asked:
        """`NAME=REFERENCE`, or a reference alone, whose `public_name` is its name unless another is given."""
        named = _NAMED.fullmatch(text)
        return cls(named[1], named[2]) if named else cls(name or public_name(text), text)


@dataclass
class Index:
    """A file of embeddings; one search at a time reads it."""

    name: str
    file: EmbeddingIndex
    lock: threading.Lock = field(default_factory=threading.Lock)


class Served:
    """One version of a model, with the requests that it is answering.

    Args:
        name (`str`): What requests call it.
        found ([`Found`]): Where it lies.
        service ([`Service`]): What it does.
        batcher ([`Batcher`]): Runs it.
        indexes (`Sequence[Index]`): Files of its embeddings.
    """

    def __init__(
        self, name: str, found: Found, service: Service, *, batcher: Batcher[Any, Any], indexes: Sequence[Index] = ()
    ) -> None:
        self.name, self.found, self.service, self.batcher = name, found, service, batcher
        self.indexes = {index.name: index for index in indexes}
        self._borrowers = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """Keeps this version from being closed."""
        self._borrowers += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._borrowers -= 1
            if not self._borrowers:
                self._unused.set()

    async def retire(self) -> None:
        """End, once no request needs it."""
        await self._unused.wait()
        await self.batcher.close()

    def card(self) -> ServedModelCard:
        """What `/v1/models` says of it."""
        return ServedModelCard(
            name=self.name,
            version=self.found.version,
            commit=self.found.commit,
            task=self.service.task,
            reads=self.service.reads,
            labels=self.service.labels,
            columns=None if self.service.columns is None else self.service.columns.describe(),
            indexes=sorted(self.indexes) if isinstance(self.service, EmbedService) else None,
        )


class Shelf:
    """The models that are served, by name.

    Args:
        models (`Sequence[Asked]`): Which.
        resolve (`Callable[[str], Found]`): Finds what a reference names now.
        limits ([`Limits`]): Of batches and queues.
        indexes (`Sequence[Asked]`): Files of embeddings, each of one of the models.
        device (`torch.device`, *optional*): Absent: the accelerator that is there.

    Attributes:
        under_way (`Callable`, *optional*): Tells how many requests are being read or answered.
        on_batch (`Callable`, *optional*): Told a model's name, the size of a batch and its seconds.

    Raises:
        InputError: Two have the same name.
    """

    def __init__(
        self,
        models: Sequence[Asked],
        resolve: Callable[[str], Found],
        limits: Limits,
        *,
        indexes: Sequence[Asked] = (),
        device: torch.device | None = None,
    ) -> None:
        for asked in (models, indexes):
            names = [each.name for each in asked]
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise InputError(f"{min(twice)}: is named twice; give one of them another name, as NAME=PATH")
        self.limits = limits
        self.under_way: Callable[[], int] | None = None
        self.on_batch: Callable[[str, int, float], None] | None = None
        self._asked, self._asked_indexes = models, indexes
        self._resolve, self._device = resolve, device
        self._served: dict[str, Served] = {}
        self._reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def load(self) -> None:
        """Load all models, before any is asked.

        Raises:
            InputError: One is not there, is damaged, or an index belongs to none of them.
        """
        found = {asked.name: self._resolve(asked.reference) for asked in self._asked}
        services = {name: load_service(each.path, self._device) for name, each in found.items()}
        indexes = self._open_indexes(found, services)
        for name, service in services.items():
            self._served[name] = self._serve(name, found[name], service, indexes[name])

    def waiting(self) -> dict[str, int]:
        """Model → inputs that wait for it."""
        return {name: served.batcher.waiting for name, served in self._served.items()}

    def choose(self, name: str | None, kind: type[Service]) -> Served:
        """The model that a request means.

        Args:
            name (`str`, *optional*): Absent: the only one of its kind.
            kind (`type`): `PredictService` or `EmbedService`.

        Raises:
            RefusedError: There is none of that name, of another kind, or several to choose from.
        """
        able = [served for served in self if isinstance(served.service, kind)]
        if name is None:
            if len(able) == 1:
                return able[0]
            names = ", ".join(served.name for served in able)
            raise RefusedError(422, f"model: name one of {names}.")
        if name not in self._served:
            raise RefusedError(404, f"model: there is none of that name; served are {', '.join(self._served)}.")
        served = self._served[name]
        if not isinstance(served.service, kind):
            other = "it embeds, and predicts nothing" if kind is PredictService else "it does not embed"
            raise RefusedError(422, f"model: {name} does not answer this: {other}.")
        return served

    async def reload(self) -> dict[str, str]:
        """Look again at what the references name, and serve what is new.

        A new version is loaded beside the old one, which answers until then and ends with its last request. Of several
        models all are exchanged or none.

        Returns:
            `dict[str, str]`: Each model → `unchanged`, or `OLD -> NEW`.

        Raises:
            InputError: A new version is not there, is damaged, is of another kind or has another index.
        """
        async with self._reloading:
            found, services, indexes = await asyncio.to_thread(self._load_changed)
            changes = {}
            for name, old in list(self._served.items()):
                if name not in services:
                    changes[name] = "unchanged"
                    continue
                self._served[name] = self._serve(name, found[name], services[name], indexes[name])
                changes[name] = f"{_shown(old.found)} -> {_shown(found[name])}"
                task = asyncio.create_task(old.retire())
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)
            return changes

    async def close(self) -> None:
        """Answer what was asked, and end."""
        await asyncio.gather(*self._retiring, *(served.retire() for served in self))

    def _load_changed(self) -> tuple[dict[str, Found], dict[str, Service], dict[str, list[Index]]]:
        found = {asked.name: self._resolve(asked.reference) for asked in self._asked}
        # A model whose index was made anew is loaded anew, too: the two belong together.
        has_index = {name for name, served in self._served.items() if served.indexes}
        changed = {
            name for name, each in found.items() if each.commit != self._served[name].found.commit or name in has_index
        }
        services = {name: load_service(found[name].path, self._device) for name in changed}
        for name, service in services.items():
            task = self._served[name].service.task
            if service.task != task:
                raise InputError(f"{found[name].path}: is for {service.task}, and {name} was for {task}")
        return found, services, self._open_indexes(found, services)

    def _open_indexes(self, found: dict[str, Found], services: dict[str, Service]) -> dict[str, list[Index]]:
        """The indexes of each model."""
        opened: dict[str, list[Index]] = {name: [] for name in found}
        able = [served.name for served in self if isinstance(served.service, EmbedService)]
        able = able or [name for name, service in services.items() if isinstance(service, EmbedService)]
        for asked in self._asked_indexes:
            file, reason = EmbeddingIndex(asked.reference), f"{asked.reference}: no dual encoder is served"
            for name in able:
                try:
                    file.check_model(found[name].path)
                except InputError as error:
                    reason = str(error)
                    continue
                opened[name].append(Index(asked.name, file))
                break
            else:
                raise InputError(reason)
        return opened

    def _serve(self, name: str, found: Found, service: Service, indexes: Sequence[Index]) -> Served:
        batcher: Batcher[Any, Any] = Batcher(
            service.run,
            max_batch=self.limits.max_batch,
            max_wait=self.limits.max_wait,
            max_queue=self.limits.max_queue,
            expects_more=self._expects_more,
            on_batch=partial(self._tell_batch, name),
        )
        return Served(name, found, service, batcher=batcher, indexes=indexes)

    def _expects_more(self, num_here: int) -> bool:
        return self.under_way is None or self.under_way() > num_here

    def _tell_batch(self, name: str, size: int, seconds: float) -> None:
        if self.on_batch is not None:
            self.on_batch(name, size, seconds)


def _shown(found: Found) -> str:
    return found.version or found.commit[:12]
