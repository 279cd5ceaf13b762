"""Clients that ask a server of mmhf one request after the other; prints requests and images a second, and latencies.

    python examples/serving/load_test.py http://127.0.0.1:8000 photo.jpg --clients 64 --seconds 30
    python examples/serving/load_test.py http://127.0.0.1:8000 photo.jpg --field model=news --field text="a red frog"

Needs httpx alone. The key is read from MMHF_API_KEY.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx


def quantile(seconds: list[float], share: float) -> float:
    """The least time that such a share of requests took no longer than."""
    ordered = sorted(seconds)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """What all clients together saw: answers a second, seconds that an answer took, and how many had which fault."""
    image = options.image.read_bytes()
    files = [("image", (options.image.name, image))] * options.images
    # A form needs as many texts as images.
    pairs = [each.partition("=")[::2] for each in options.field]
    fields: dict[str, Any] = {name: value if name != "text" else [value] * options.images for name, value in pairs}
    key = os.environ.get("MMHF_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    seconds: list[float] = []
    faults: Counter[str] = Counter()
    async with httpx.AsyncClient(base_url=options.url, headers=headers, limits=limits, timeout=120) as client:
        begun = time.perf_counter()

        async def ask() -> None:
            while time.perf_counter() - begun < options.seconds:
                sent = time.perf_counter()
                try:
                    answer = await client.post(options.endpoint, files=files, data=fields)
                except httpx.HTTPError as error:
                    faults[type(error).__name__] += 1
                    continue
                if answer.status_code == 200:
                    seconds.append(time.perf_counter() - sent)
                    continue
                faults[str(answer.status_code)] += 1
                await asyncio.sleep(float(answer.headers.get("retry-after", 0)))

        await asyncio.gather(*(ask() for _ in range(options.clients)))
        took = time.perf_counter() - begun
    found: dict[str, Any] = {"requests/s": len(seconds) / took, "images/s": len(seconds) * options.images / took}
    if seconds:
        found |= {"p50 s": quantile(seconds, 0.5), "p99 s": quantile(seconds, 0.99)}
    return {**found, "answered": len(seconds), "not answered": dict(faults)}


def main(words: list[str] | None = None) -> int:
    """Ends with 1 where a request had no answer; 429, by which a server refuses more than it can do, counts too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server")
    parser.add_argument("image", type=Path, help="file that is sent")
    parser.add_argument("--endpoint", default="/v1/predict")
    parser.add_argument(
        "--field", action="append", default=[], metavar="NAME=VALUE", help="of the form, such as model"
    )
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--images", type=int, default=1, help="of a request")
    parser.add_argument("--seconds", type=float, default=10)
    found = asyncio.run(measure(parser.parse_args(words)))
    for name, value in found.items():
        print(f"{name:<14}{value:.3f}" if isinstance(value, float) else f"{name:<14}{value or 0}")
    return 1 if found["not answered"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
