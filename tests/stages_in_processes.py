"""Train tiny families over two stages in this process, one of several, and write down what came out.

python stages_in_processes.py OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import torch  # isort: skip
from accelerate import PartialState
from accelerate.utils import DistributedType
from tiny_families import FAMILIES
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback, TrainingArguments

from mmhf.training.parallel import find_data_parallel
from mmhf.training.stages import Stage
from mmhf.training.trainer import MMTrainer

PAIRS = 8
"""Samples of a step, over all micro-batches and processes."""


class Watch(TrainerCallback):
    """What wraps the model in each stage, and which parameters it synchronises."""

    trainer: MMTrainer

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, Any]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        current = self.trainer.stages.current
        assert current is not None
        parallel = find_data_parallel(self.trainer.model_wrapped)
        model = self.trainer.plan.model
        self.stages[current.stage.name] = {
            "sharded": sum(isinstance(module, FSDPModule) for module in model.modules()),
            **(
                {}
                if parallel is None
                else {
                    "finds unused": parallel.find_unused_parameters,
                    "static": parallel.static_graph,
                    "views": parallel.gradient_as_bucket_view,
                    "synchronised": parallel._get_ddp_logging_data()["num_parameter_tensors"],
                }
            ),
            "trains": sum(each.requires_grad for each in model.parameters()),
        }


def train(folder: Path, name: str, *, num_processes: int, accumulation: int, **arguments: Any) -> dict[str, Any]:
    """Two stages of a family; its weights, losses, and what was seen in each stage."""
    family, watch = FAMILIES[name], Watch()
    model = family.model()
    trainer = family.trainer(
        model,
        folder,
        callbacks=[watch],
        stages=[
            Stage(name="head", steps=2, train=list(family.head), learning_rate=0.1),
            Stage(name="all", steps=2, batch_norm="frozen", learning_rate=0.1),
        ],
        per_device_train_batch_size=PAIRS // num_processes // accumulation,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        use_cpu=True,
        **arguments,
    )
    watch.trainer = trainer
    trainer.train()
    whole = get_model_state_dict(trainer.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"weights": whole, "losses": losses, "stages": watch.stages}


def shard_on_cpu() -> dict[str, Any]:
    """Arguments under which Trainer shards on CPUs, whose processes accelerate 1.15 leaves unsharded of itself."""
    create = Trainer.create_accelerator_and_postprocess

    def create_for_sharding(self: Trainer) -> None:
        PartialState()._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        create(self)

    Trainer.create_accelerator_and_postprocess = create_for_sharding  # type: ignore[method-assign]
    config = {"version": 2, "auto_wrap_policy": "NO_WRAP", "state_dict_type": "FULL_STATE_DICT"}
    return {"fsdp": True, "fsdp_config": {**config, "cpu_ram_efficient_loading": False}}


def main(output: str) -> None:
    found: dict[str, dict[str, Any]] = {}
    for way, arguments in (("ddp", dict), ("fsdp", shard_on_cpu)):  # (in this order)
        options = arguments()
        args = TrainingArguments(output, use_cpu=True)
        for name in FAMILIES:
            for accumulation in (1, 2) if way == "ddp" else (1,):
                found[f"{way} {name} {accumulation}"] = train(
                    Path(output), name, num_processes=args.world_size, accumulation=accumulation, **options
                )
    if args.process_index == 0:
        torch.save(found, Path(output) / "found.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
