"""Whether the Hub answers, so that nobody waits minutes for a network that is not there."""

from __future__ import annotations

import logging
import ssl
import threading
import urllib.error
import urllib.request

import datasets
from huggingface_hub import constants

logger = logging.getLogger(__name__)


def use_caches_if_hub_is_silent(seconds: float) -> None:
    """Switch transformers and datasets to what they have cached unless the Hub answers in time.

    They would ask six times for each file, with pauses that add up to 23 s without a network and to minutes behind a
    firewall that swallows packets.

    Args:
        seconds (`float`): How long to wait, name resolution included.
    """
    if constants.is_offline_mode() or _answers(seconds):
        return
    logger.warning("%s does not answer: only what is cached can be used", constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True


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
