from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmhf import cpu
from mmhf.cpu import ALLOCATOR_SWITCH, THREADS_VARIABLE, num_threads, physical_cores, why_default_allocator
from mmhf.errors import InputError


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in (ALLOCATOR_SWITCH, THREADS_VARIABLE, "LOCAL_WORLD_SIZE", "LD_PRELOAD", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


def is_glibc() -> bool:
    return cpu._glibc() is not None


def test_the_allocator_keeps_memory_where_glibc_is():
    assert (why_default_allocator() is None) == is_glibc()
    cpu.keep_freed_memory.cache_clear()
    assert cpu.keep_freed_memory() == is_glibc()
    assert ("up to 15 %" in cpu.describe_allocator()) == is_glibc()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (ALLOCATOR_SWITCH, "default", "MMHF_ALLOCATOR=default"),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2", "LD_PRELOAD"),
        ("MALLOC_TRIM_THRESHOLD_", "1000", "MALLOC_TRIM_THRESHOLD_ is set"),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_max=7", "GLIBC_TUNABLES is set"),
    ],
)
def test_it_is_left_alone_where_somebody_else_has_chosen(monkeypatch, name, value, reason):
    monkeypatch.setenv(name, value)
    cpu.keep_freed_memory.cache_clear()
    assert not cpu.keep_freed_memory()
    assert reason in cpu.describe_allocator()
    cpu.keep_freed_memory.cache_clear()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(cpu, "_glibc", lambda: None)
    cpu.keep_freed_memory.cache_clear()
    assert not cpu.keep_freed_memory()
    assert "not glibc" in cpu.describe_allocator()
    cpu.keep_freed_memory.cache_clear()


def test_a_value_that_means_nothing_is_refused(monkeypatch):
    monkeypatch.setenv(ALLOCATOR_SWITCH, "fast")
    with pytest.raises(InputError, match="MMHF_ALLOCATOR=fast: expected default"):
        why_default_allocator()


def test_importing_mmhf_sets_nothing():
    program = "import os, mmhf; print(os.environ.get('OMP_NUM_THREADS'), 'mmhf.cpu' in __import__('sys').modules)"
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.split() == ["None", "False"]


def test_two_threads_of_a_core_count_as_one(monkeypatch, tmp_path: Path):
    for number in range(4):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 2},{number % 2 + 2}\n")
    monkeypatch.setattr(cpu, "_CPU_FOLDER", tmp_path)
    monkeypatch.setattr(cpu, "_QUOTA_FILE", tmp_path / "absent")
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    assert physical_cores() == (2 if sys.platform == "linux" else physical_cores())
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(cpu, "_QUOTA_FILE", tmp_path / "cpu.max")
    assert physical_cores() == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert physical_cores() == (2 if sys.platform == "linux" else physical_cores())


def test_processes_share_the_cores_and_the_environment_wins(monkeypatch):
    monkeypatch.setattr(cpu, "physical_cores", lambda: 8)
    assert num_threads() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert num_threads() == 2
    monkeypatch.setenv(THREADS_VARIABLE, "5")
    assert num_threads() == 5
    cpu.prepare_cpu()
    assert cpu.os.environ[THREADS_VARIABLE] == "5"
