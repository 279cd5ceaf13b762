"""A CUDA device that computes nothing: what a CUDA build brings, compiled here and preloaded into a program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def fake_cuda_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library to preload, made from `fake_cuda.cpp`."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler is here")
    if torch.version.cuda is not None:
        pytest.skip("this torch is a CUDA build, which has the hooks")
    library = tmp_path_factory.mktemp("fake_cuda") / "fake_cuda.so"
    folders = [f"-I{folder}" for folder in cpp_extension.include_paths()]
    torch_libraries = Path(torch.__file__).parent / "lib"
    linked = [f"-L{torch_libraries}", f"-Wl,-rpath,{torch_libraries}", "-lc10", "-ltorch_cpu"]
    command = [compiler, "-std=c++20", "-O0", "-shared", "-fPIC", *folders, str(HERE / "fake_cuda.cpp"), *linked]
    built = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    return library


@pytest.fixture(scope="session")
def run_on_fake_cuda(fake_cuda_library: Path) -> subprocess.CompletedProcess[str]:
    """What `on_fake_cuda.py` says: one line of JSON for each family and act."""
    environment = {**os.environ, "LD_PRELOAD": str(fake_cuda_library), "PYTHONPATH": str(HERE.parent)}
    return subprocess.run(
        [sys.executable, str(HERE / "on_fake_cuda.py")], env=environment, capture_output=True, text=True, check=False
    )
