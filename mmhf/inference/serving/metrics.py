"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Requests, their time, batches, and what waits. Each server has its own.

    Args:
        waiting (`Callable`): Tells for each model how many inputs wait for it.

    Attributes:
        under_way (`int`): Requests that are being read or answered.
    """

    def __init__(self, waiting: Callable[[], Mapping[str, int]]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self.registry = CollectorRegistry()
        self._waiting = waiting
        self._requests = Counter(
            "mmhf_requests", "Requests answered or refused.", ["endpoint", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "mmhf_request_seconds", "Time of a request.", ["endpoint"], buckets=_SECONDS, registry=self.registry
        )
        self.under_way = 0
        under_way = Gauge("mmhf_requests_under_way", "Requests being answered.", registry=self.registry)
        under_way.set_function(lambda: self.under_way)
        self._queue = Gauge("mmhf_queue_inputs", "Inputs that wait for a model.", ["model"], registry=self.registry)
        self._sizes = Histogram(
            "mmhf_batch_inputs", "Inputs of a batch.", ["model"], buckets=_SIZES, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "mmhf_batch_seconds", "Time of a batch.", ["model"], buckets=_SECONDS, registry=self.registry
        )
        self._reloads = Counter("mmhf_reloads", "Reloads.", ["outcome"], registry=self.registry)
        ProcessCollector(registry=self.registry)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(endpoint, status).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def batch(self, model: str, size: int, seconds: float) -> None:
        """Count a batch."""
        self._sizes.labels(model).observe(size)
        self._batch_seconds.labels(model).observe(seconds)

    def reload(self, outcome: str) -> None:
        """Count a reload: `changed`, `unchanged` or `failed`."""
        self._reloads.labels(outcome).inc()

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        from prometheus_client import generate_latest

        for model, count in self._waiting().items():
            self._queue.labels(model).set(count)
        text: bytes = generate_latest(self.registry)
        return text
