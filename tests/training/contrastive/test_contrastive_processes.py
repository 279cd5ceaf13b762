"""Two processes contrast the same pairs as one, with the same gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parent / "train_in_processes.py"
TOLERANCES = {
    **dict.fromkeys(("whole", "cached", "sigmoid", "taught cached", "hard cached"), 1e-5),
    "bf16": 2e-2,
}
IN_ONE_PROCESS = {"sigmoid": "sigmoid", "taught cached": "taught", "hard cached": "hard"}


def launch(folder: Path, num_processes: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(num_processes)]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder), *TOLERANCES],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "trained.pt", weights_only=True)


@pytest.mark.slow
def test_two_processes_contrast_what_one_does(tmp_path: Path, train_here: Any) -> None:
    """Repeated and skipped images, a frozen tower in the first stage, a teacher, hard negatives; one process with all
    pairs in one batch."""
    found = launch(tmp_path, 2)
    expected = {kind: train_here(tmp_path / "one", kind, 1) for kind in ("whole", "sigmoid", "taught", "hard")}
    for kind, tolerance in TOLERANCES.items():
        one, two = expected[IN_ONE_PROCESS.get(kind, "whole")], found[kind]
        assert two["losses"] == pytest.approx(one["losses"], abs=max(1e-4, tolerance)), kind
        assert len(one["gradients"]) == len(two["gradients"]) == 4
        for step, gradients in enumerate(two["gradients"]):
            for name, gradient in gradients.items():
                wanted = one["gradients"][step][name]
                assert torch.allclose(gradient, wanted, atol=tolerance, rtol=100 * tolerance), (kind, step, name)
        for name, value in one["weights"].items():
            found_value = two["weights"][name]
            assert torch.allclose(found_value, value, atol=5 * tolerance, rtol=100 * tolerance), (kind, name)
