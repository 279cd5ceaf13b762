"""That the GPU computes what the CPU does, resumes to the same bits, and takes every family the whole road."""

import contextlib
import copy
import dataclasses
import json
import shutil
import time
import traceback
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import yaml
from on_gpu.bench import Bench, arguments, one_line, released
from on_gpu.families import FAMILIES, NARROW, TINY, Batch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, TrainerCallback

import mmhf
from mmhf.data.datasets import RowDataset
from mmhf.training.contrastive import ContrastiveTrainer
from mmhf.training.stages import Stage, StagePlan
from mmhf.verbs.train import train as train_recipe


def equality(bench: Bench) -> None:
    """Loss and gradients of one fp32 step, on the CPU and on the device, TF32 off."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    sizes = bench.sizes
    if not sizes.is_dry:  # a language model of 4 layers, or the CPU takes half a minute
        sizes = dataclasses.replace(sizes, qwen={**sizes.qwen, "num_hidden_layers": 4})
    for name, family in FAMILIES.items():
        with released(bench):
            torch.manual_seed(0)
            model, batch = family.make(sizes).train(), family.inputs(sizes, 4)
            more = {"return_loss": True} if family.trainer_class is ContrastiveTrainer else {}
            found = {}
            for device in ("cpu", bench.device.type):
                there = copy.deepcopy(model).to(device)
                loss = there(**{key: value.to(device) for key, value in batch.items()}, **more).loss
                loss.backward()
                gradients = {
                    key: value.grad.cpu() for key, value in there.named_parameters() if value.grad is not None
                }
                found[device] = (loss.item(), gradients)
            (loss, gradients), (other_loss, others) = found["cpu"], found[bench.device.type]
            largest = max(gradient.abs().max().item() for gradient in gradients.values())
            difference = max((others[key] - value).abs().max().item() for key, value in gradients.items())
            bench.add(
                "CPU = GPU",
                name,
                f"fp32, batch 4: loss differs by {abs(loss - other_loss) / abs(loss):.1e} of itself, gradients by at "
                f"most {difference / largest:.1e} of the largest, over {len(gradients)} tensors",
                loss_difference=abs(loss - other_loss) / abs(loss),
                gradient_difference=difference / largest,
            )


class StopAt(TrainerCallback):
    """Ends a run as a crash would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise InterruptedError


def staged_run(bench: Bench, name: str, folder: Path, stop_at: int | None = None, resume: bool = False) -> dict:
    """Six steps in two stages with a checkpoint after each; the weights it ends with."""
    family, sizes = FAMILIES[name], dataclasses.replace(TINY, is_dry=bench.sizes.is_dry)
    torch.manual_seed(0)
    model = family.make(sizes)
    rows = RowDataset(datasets.Dataset.from_dict({"row": list(range(24)), "id": [str(row) for row in range(24)]}))

    def collate(batch: list[dict[str, Any]]) -> Batch:
        with torch.random.fork_rng([]):
            torch.manual_seed(batch[0]["index"])
            return family.inputs(sizes, len(batch))

    stages = [Stage(name="head", steps=3, train=list(family.head)), Stage(name="all", steps=3)]
    plan = StagePlan.build(model, stages, steps_per_epoch=6, learning_rate=1e-3)
    trainer = family.trainer_class(
        model=model,
        args=arguments(
            bench,
            output_dir=str(folder),
            max_steps=6,
            save_strategy="steps",
            save_steps=4 if bench.sizes.is_dry else 1,
            per_device_train_batch_size=4,
        ),
        plan=plan,
        train_dataset=rows,
        data_collator=collate,
        callbacks=[] if stop_at is None else [StopAt(stop_at)],
    )
    with contextlib.suppress(InterruptedError):
        trainer.train(resume_from_checkpoint=resume or None)
    return {key: value.detach().cpu() for key, value in model.state_dict().items()}


def resuming(bench: Bench) -> None:
    """A run stopped in its second stage and resumed ends with the same bits as one that was not."""
    for is_deterministic in (False,) if bench.sizes.is_dry else (False, True):  # a CPU knows one way
        torch.use_deterministic_algorithms(is_deterministic, warn_only=True)
        torch.backends.cudnn.benchmark = False
        equal = {}
        for name in FAMILIES:
            folder = bench.folder / f"resume {name} {is_deterministic}"
            whole = staged_run(bench, name, folder / "whole")
            again = whole if bench.sizes.is_dry else staged_run(bench, name, folder / "again")
            staged_run(bench, name, folder / "stopped", stop_at=4)
            resumed = staged_run(bench, name, folder / "stopped", resume=True)
            equal[name] = [all(torch.equal(whole[key], other[key]) for key in whole) for other in (again, resumed)]
            shutil.rmtree(folder)
        bench.add(
            "resume",
            "deterministic algorithms" if is_deterministic else "as by default",
            "; ".join(
                f"{name}: resumed {'equal' if resumed else 'DIFFERS'}, repeated {'equal' if again else 'DIFFERS'}"
                for name, (again, resumed) in equal.items()
            ),
            resumed_equal=sum(resumed for _, resumed in equal.values()),
        )
    torch.use_deterministic_algorithms(False)


def write_text_encoder(folder: Path, texts: list[str]) -> None:
    """A small BERT with a tokenizer of these texts' words."""
    words = sorted({word for text in texts for word in text.lower().split()})
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **NARROW)).save_pretrained(folder)


def road_recipes(bench: Bench) -> dict[str, dict[str, Any]]:
    """A small recipe of each family over the drawings that the package carries: head first, then everything."""
    text_folder = bench.folder / "bert"
    write_text_encoder(text_folder, ["a cat", "a dog", "an apple", "red", "car", "face"])
    vision = {"backbone": "timm/test_efficientnet", "pretrained": False}
    language = {
        "backbone": "qwen3", "pretrained": False, "tokenizer": {"vocab_size": 600},
        "config": {**NARROW, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64},
    }  # fmt: skip
    recipes = {
        "image-text-classification": (
            {"vision": vision, "text": {"backbone": str(text_folder), "pooling": "mean"}, "embedding_dim": 16},
            {"max_length": 16},
            ["fusion", "head"],
        ),
        "image-classification": ({"vision": vision}, {}, ["head"]),
        "contrastive": (
            {
                "vision": {"patch_size": 16, "width": 32, "layers": 2, "heads": 2, "pooling": "avg"},
                "text": {"width": 32, "layers": 2, "heads": 2, "pooling": "eot", "vocab_size": 600},
                "embedding_dim": 16,
            },
            {"max_length": 32},
            ["projections"],
        ),
        "image-captioning": (
            {"vision": {**vision, "features": "patches"}, "language": language, "projector": {"hidden_dims": [32]}},
            {"max_length": 16},
            ["projector"],
        ),
    }
    made, steps = {}, 1 if bench.sizes.is_dry else 3
    for task, (model, data, head) in recipes.items():
        made[task] = {
            "task": task,
            "model": model,
            "data": {"source": "sample", "image_size": 64, "limit": 48 if bench.sizes.is_dry else 96, **data},
            "training": {
                "output_dir": str(bench.folder / f"road {task}"), "per_device_train_batch_size": 16,
                "report_to": "none", "bf16": True, "logging_steps": 2, "disable_tqdm": True,
                "use_cpu": bench.device.type == "cpu",
            },
            "stages": [
                {"name": "head", "steps": steps, "train": head},
                {"name": "all", "steps": steps, "train": "all", "learning_rate": 1e-3},
            ],
            "evaluation": {"splits": ["test"]},
            "cache": {"mode": "on", "folder": str(bench.folder / "features")},
        }  # fmt: skip
    return made


def road(bench: Bench) -> None:
    """`mmhf train` over two stages, then pipelines of what came out, on the device and on the CPU."""
    for task, values in road_recipes(bench).items():
        begun = time.perf_counter()
        path, run_dir = bench.folder / f"{task}.yaml", Path(values["training"]["output_dir"])
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        try:
            train_recipe(path)
            trained = time.perf_counter() - begun
            devices = dict.fromkeys(("cpu", bench.device.type))  # one of them in a dry run
            found = [ask_pipeline(task, run_dir, device) for device in devices]
            metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
            assert all(np.isfinite(value) for value in metrics.values() if isinstance(value, float)), metrics
        except Exception as error:  # noqa: BLE001  (the other tasks shall run)
            bench.errors[f"road, {task}"] = one_line(error)
            traceback.print_exc()
            continue
        if isinstance(found[0], list):
            same = f"scores on CPU and device differ by at most {np.abs(np.subtract(found[0], found[-1])).max():.1e}"
        else:
            same = "the same captions" if found[0] == found[-1] else f"other captions: {found}"
        bench.add("road", task, f"trained, evaluated and reported in {trained:.1f} s; its pipeline: {same}")


def ask_pipeline(task: str, folder: Path, device: Any) -> Any:
    """What a released model's own pipeline says of two images: scores by label, or captions."""
    images = [Image.fromarray(np.full((64, 64, 3), 40 * number, dtype=np.uint8)) for number in (1, 5)]
    names = {"contrastive": "zero-shot-image-classification"}
    pipe = mmhf.pipeline(names.get(task, task), model=str(folder), device=device)
    if task == "image-captioning":
        return str(pipe(images, max_new_tokens=5))
    if task == "contrastive":
        answers = pipe(images, candidate_labels=["a cat", "a dog", "a car"])
    elif task == "image-text-classification":
        answers = pipe(image=images, text=["a cat", "a dog"])
    else:
        answers = pipe(images, top_k=100)
    return [[entry["score"] for entry in sorted(answer, key=lambda each: each["label"])] for answer in answers]
