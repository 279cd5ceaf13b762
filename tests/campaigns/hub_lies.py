"""A Hub that answers with an error, a page, half of it or nothing: a push is whole or not there, and words say so."""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

from loopback_hub import LoopbackHub
from trials import Tally

from mmhf.errors import InputError
from mmhf.hub.lineage import release_settings
from mmhf.hub.manifest import verify_release
from mmhf.hub.pushing import push_release
from mmhf.hub.releases import resolve_model

REPO = "org/name"
_PAGES = (b"<html>log in</html>", b"[]", b"{}", b"null", b"", b'{"error": 3}', b"[[[")
_MISDEEDS: list[dict[str, Any]] = [
    *({"status": status} for status in (301, 400, 401, 403, 404, 409, 410, 412, 413, 422, 429, 500, 502, 503, 504)),
    *({"page": page} for page in _PAGES),
    {},
    {"after": True},
    {"status": 500, "after": True},
    {"cut": True},
    {"corrupt": True},
]


def hub_campaign(
    hub: LoopbackHub, make_run: Callable[..., Path], scratch: Path, num_trials: int, generator: random.Random
) -> Tally:
    """Misbehave at one request, or from one on, of a push and the download after it; then do both undisturbed.

    Args:
        hub ([`LoopbackHub`]): The Hub that this process talks to.
        make_run (`Callable`): Writes run folders by name.
        scratch (`Path`): For downloads.
        num_trials (`int`): Misdeeds.
        generator (`random.Random`): Chooses them.
    """
    from huggingface_hub import constants

    tally, run_dir = Tally("a Hub that fails and lies"), make_run("pushed", seed=3)
    for number in range(num_trials):
        hub.store.repos.clear()
        hub.store.large.clear()
        hub.requests.clear()
        hub.faults.clear()
        constants.HF_HUB_CACHE = str(scratch / f"cache-{number}" / "hub")
        misdeed, first = generator.choice(_MISDEEDS), generator.randrange(30)
        fault = hub.fault(".*", times=generator.choice([1, 2, None]), after_requests=first, **misdeed)
        note = f"{number}: {misdeed} from request {first} on, {fault.times} times"
        verdicts = [_judge(lambda: _push(run_dir)), _judge(_pull)]
        hub.faults.clear()
        wrong = next((each for each in verdicts if each not in ("same", "told")), None)
        if wrong is None:
            again = [_judge(lambda: _push(run_dir)), _judge(_pull)]
            is_there = again[0] in ("same", "told: version v1.0 exists") and again[1] == "same"
            whole = is_there and hub.files(REPO, "main") == hub.files(REPO, "v1.0")
            branches = hub.repo(REPO).branches.keys()
            wrong = None if whole else f"silent: afterwards {again}, {branches}"
        if wrong is None:
            tally.count("told" if "told" in verdicts else "same", note)
        else:
            tally.count("traceback" if "Traceback" in wrong else "silent", f"{note}: {wrong}")
    return tally


def _judge(action: Callable[[], None]) -> str:
    try:
        action()
    except InputError as error:
        if "version v1.0 exists" in str(error):
            return "told: version v1.0 exists"
        return "told" if "\n" not in str(error) else f"silent: {error}"
    except OSError as error:
        return "told" if error.errno is not None else traceback.format_exc()
    except BaseException:  # noqa: BLE001  (all that is no refusal is a fault)
        return traceback.format_exc()
    return "same"


def _push(run_dir: Path) -> None:
    push_release(run_dir, release_settings({"repo": REPO, "version": "1.0", "push": True}))


def _pull() -> None:
    verify_release(resolve_model(f"{REPO}@v1.0").path, exactly=True)
