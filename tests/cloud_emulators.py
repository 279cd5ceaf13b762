"""Google's and Amazon's object stores on loopback, each in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import fsspec

BUCKET = "derm"
_LONGEST_START = 300.0
_AMAZON = """
import sys, threading
from moto.server import ThreadedMotoServer
ThreadedMotoServer("127.0.0.1", int(sys.argv[1]), verbose=False).start()
threading.Event().wait()
"""
_GOOGLE = ["-m", "gcp_storage_emulator", "start", "--in-memory", "--quiet", "--host=127.0.0.1", "--default-bucket"]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=60):
            return True
    except (URLError, ConnectionError, TimeoutError):
        return False


@contextmanager
def started_emulators() -> Iterator[dict[str, str]]:
    """Start both, with a bucket `BUCKET` in each.

    Yields:
        `dict[str, str]`: the environment that gcsfs and s3fs find them by.
    """
    ports = _free_port(), _free_port()
    commands = [
        [sys.executable, *_GOOGLE, BUCKET, f"--port={ports[0]}"],
        [sys.executable, "-c", _AMAZON, str(ports[1])],
    ]
    servers = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in commands]
    try:
        google, amazon = (f"http://127.0.0.1:{port}" for port in ports)
        deadline = time.monotonic() + _LONGEST_START
        while not (_answers(google) and _answers(f"{amazon}/moto-api/")):
            if time.monotonic() > deadline or any(server.poll() is not None for server in servers):
                raise RuntimeError("an emulator does not start")
            time.sleep(0.05)
        urlopen(Request(f"{amazon}/{BUCKET}", method="PUT")).close()
        yield {
            "STORAGE_EMULATOR_HOST": google,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "AWS_ENDPOINT_URL": amazon,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait()


def upload(folder: Path, url: str) -> None:
    """Copy a folder's files below a URL."""
    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    fs.pipe({f"{root}/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()})
