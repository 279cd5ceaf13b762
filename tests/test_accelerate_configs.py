"""The files under accelerate_configs/ are what accelerate takes, and two processes agree at every boundary."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

CONFIGS = sorted((Path(__file__).parents[1] / "accelerate_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_file(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= config.num_machines >= 1


def test_all_ways_to_launch_are_there():
    stems = {path.stem for path in CONFIGS}
    assert {"cpu", "cpu_2_processes", "single_gpu", "multi_gpu", "multi_node", "fsdp2", "deepspeed_zero2"} <= stems
