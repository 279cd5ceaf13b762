"""How the CPU is used: freed memory stays with the process, and there are as many threads as physical cores.

Both are set where work begins (training, evaluation, prediction, serving), and never by `import mmhf`.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

from mmhf.errors import InputError

ALLOCATOR_SWITCH = "MMHF_ALLOCATOR"
THREADS_VARIABLE = "OMP_NUM_THREADS"

# Numbers of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_OTHER_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
_OWN_THRESHOLDS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
_CPU_FOLDER = Path("/sys/devices/system/cpu")
_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")


def prepare_cpu() -> None:
    """Set the allocator, and the number of threads of libraries that are loaded from now on."""
    keep_freed_memory()
    os.environ.setdefault(THREADS_VARIABLE, str(num_threads()))


def num_threads() -> int:
    """Threads of this process: its share of the physical cores, unless the environment says otherwise.

    Two threads on one core share its arithmetic units, so that a second one slows the first.
    """
    given = os.environ.get(THREADS_VARIABLE, "").partition(",")[0]
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return max(physical_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def physical_cores() -> int:
    """Physical cores that this process may use: those of its affinity, within the quota of its container."""
    allowed = os.sched_getaffinity(0) if sys.platform == "linux" else range(os.cpu_count() or 1)
    cores = len({_siblings(number) for number in allowed})
    try:
        quota, period = _QUOTA_FILE.read_text().split()
        return cores if quota == "max" else max(min(cores, int(quota) // int(period)), 1)
    except (OSError, ValueError):
        return cores


def _siblings(number: int) -> str:
    """The logical processors of one core, by one of them."""
    try:
        return (_CPU_FOLDER / f"cpu{number}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(number)


def why_default_allocator() -> str | None:
    """Why freed memory is given back to the system as usual; None where the process keeps it.

    Raises:
        InputError: `MMHF_ALLOCATOR` has a value that means nothing.
    """
    switch = os.environ.get(ALLOCATOR_SWITCH)
    if switch not in (None, "", "default"):
        raise InputError(f"{ALLOCATOR_SWITCH}={switch}: expected default, or nothing")
    if switch == "default":
        return f"{ALLOCATOR_SWITCH}=default"
    preloaded = os.environ.get("LD_PRELOAD", "")
    if any(name in preloaded for name in _OTHER_ALLOCATORS):
        return f"LD_PRELOAD={preloaded}"
    own = [name for name in _OWN_THRESHOLDS if name in os.environ]
    if own or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return f"{own[0] if own else 'GLIBC_TUNABLES'} is set"
    return None if _glibc() is not None else "the C library is not glibc"


@functools.cache
def keep_freed_memory() -> bool:
    """Let the process keep the memory that tensors free, once; whether it does.

    glibc gives every tensor above 32 MiB back to the system and gets it again as pages that have to be zeroed, which
    can take longer than the arithmetic. Peak memory rises by up to 15 %, and what was once taken stays taken.
    """
    if why_default_allocator() is not None:
        return False
    library = _glibc()
    assert library is not None
    return bool(library.mallopt(_M_MMAP_MAX, 0)) and bool(library.mallopt(_M_TRIM_THRESHOLD, -1))


def give_back_gaps() -> None:
    """Give the system back what lies free between what is kept.

    A loop that keeps a little of each round, such as the outputs of an evaluation, leaves gaps between these that the
    next round's tensors do not fit into: 2 KB for each of 100,000 rows of 32 px.
    """
    if keep_freed_memory() and (library := _glibc()) is not None:
        library.malloc_trim(0)


def describe_allocator() -> str:
    """What `mmhf plan` says of it."""
    reason = why_default_allocator()
    if reason is not None:
        return f"as the system has it ({reason})"
    return (
        "freed memory stays with the process: large tensors on the CPU are up to 3.5 times as fast, for up to 15 % "
        f"more memory ({ALLOCATOR_SWITCH}=default turns it off)"
    )


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    try:
        library.gnu_get_libc_version  # noqa: B018  (other C libraries lack it)
    except AttributeError:
        return None
    return library
