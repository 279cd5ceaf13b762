"""Two processes end where one does, over two stages, synchronised by DistributedDataParallel or sharded by FSDP2."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stages_in_processes import train
from tiny_families import FAMILIES

SCRIPT = Path(__file__).parents[1] / "stages_in_processes.py"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes of the same steps."""
    return {name: train(tmp_path_factory.mktemp(name), name, num_processes=1, accumulation=1) for name in FAMILIES}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes make of it, each way."""
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "PYTHONPATH": str(SCRIPT.parent),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=(folder / f"errors {rank}").open("w"),
        )
        for rank in range(2)
    ]
    try:
        codes = [process.wait(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "".join((folder / f"errors {rank}").read_text()[-2000:] for rank in range(2))
    return torch.load(folder / "found.pt", weights_only=True)


def check_equal(found, expected, what):
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-3), what
    assert found["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, rtol=1e-3, atol=1e-4, msg=f"{what}: {name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_stage_is_synchronised_by_itself(name, accumulation, alone, together):
    """Frozen parameters take no part, so that no step is searched for what got no gradient."""
    trained = together[f"ddp {name} {accumulation}"]
    check_equal(trained, alone[name], name)
    head, everything = trained["stages"]["head"], trained["stages"]["all"]
    for stage in (head, everything):
        assert (stage["finds unused"], stage["static"], stage["views"]) == (False, accumulation == 1, True)
        assert stage["synchronised"] == stage["trains"] > 0
    assert head["synchronised"] < everything["synchronised"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_sharded_stages_end_at_the_weights_of_one_process(name, alone, together):
    trained = together[f"fsdp {name} 1"]
    check_equal(trained, alone[name], name)
    assert all(stage["sharded"] > 0 for stage in trained["stages"].values())
