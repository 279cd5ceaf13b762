"""Training on text embeddings that were made once, against running the frozen text encoder (MiniLM) at each step.

Both sides train the same fusion head with MMTrainer on the same texts of about 60 tokens, in alternating rounds of one
process, and the time of a step includes its batch. Images are hidden on both sides (`modalities.mask: image`), so that
texts alone are compared: with an image encoder in the step, the gain is smaller by its share. Prints the ratio of the
median times of a step (the aim is at least 5), the epochs after which making the table has paid, and how far the two
sides' logits of a batch are apart before training.

    python benchmarks/text_embeddings.py [ROUNDS]
"""

import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path

import datasets
import torch
from trainer_step import StepTimes
from transformers import TrainingArguments

from mmhf.data.collators import ImageTextCollator
from mmhf.data.datasets import RowDataset
from mmhf.data.modalities import ModalityMasking
from mmhf.data.table import NO_IMAGE, ROW_FEATURES
from mmhf.data.text_embeddings import TextEmbeddingTable, TextTableProcessor
from mmhf.inference.text_embedders import TextEncoding, embed_texts, rows_of_texts
from mmhf.models.fusion.building import build_fusion_model, build_fusion_processor
from mmhf.models.text_tables import TableEncoder
from mmhf.recipe import recipe_from_dict
from mmhf.sample_data import read_sample
from mmhf.training.stages import Stage, StagePlan
from mmhf.training.trainer import MMTrainer

BATCH, STEPS, CAPTIONS_A_TEXT = 32, 8, 13
RECIPE = {
    "task": "image-text-classification",
    "model": {
        "vision": {"backbone": "timm/test_efficientnet", "pretrained": False},
        "text": {"backbone": "pypi/all-minilm-l6-v2", "pooling": "mean"},
        "modalities": {"mask": "image"},
        "fusion": {"dropout": 0.0},
    },
    "data": {"source": "sample", "image_size": 32, "max_length": 128},
}


def read_texts():
    captions = read_sample("train")["caption"].to_pylist()
    return [
        ", ".join(captions[(row + 17 * n) % len(captions)] for n in range(CAPTIONS_A_TEXT))
        for row in range(BATCH * STEPS)
    ]


def make_rows(texts):
    numbers = list(range(len(texts)))
    columns = {"row": numbers, "id": list(map(str, numbers)), "image": [NO_IMAGE] * len(texts)}
    values = {**columns, "text": texts, "label": [number % 2 for number in numbers]}
    return RowDataset(datasets.Dataset.from_dict(values, features=ROW_FEATURES))


def train(model, processor, rows):
    plan = StagePlan.build(model, [Stage(name="head", steps=STEPS, train=["fusion", "head"])], steps_per_epoch=STEPS)
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=STEPS, per_device_train_batch_size=BATCH, use_cpu=True, save_strategy="no",
            remove_unused_columns=False, dataloader_pin_memory=False, logging_steps=STEPS, disable_tqdm=True,
            log_level="error",
        )  # fmt: skip
        collator = ImageTextCollator(processor, masking=ModalityMasking(mask="image"))
        trainer = MMTrainer(
            model=model, args=args, plan=plan, train_dataset=rows, data_collator=collator, callbacks=[times]
        )
        trainer.train()
    return times.times


def main(rounds=5):
    texts = read_texts()
    recipe = recipe_from_dict(RECIPE, name="texts").recipe
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        path = Path(folder) / "minilm.parquet"
        embed_texts("minilm", rows_of_texts("texts", {"text": texts}), path, encoding=TextEncoding(max_length=128))
        making = time.perf_counter() - begun
        table = TextEmbeddingTable.open(path)
    options = {"label_names": ["no", "yes"], "missing_modalities": ["image"]}
    processor = build_fusion_processor(recipe.model, recipe.data)
    torch.manual_seed(0)
    live = build_fusion_model(recipe.model, **options)
    by_table = build_fusion_model(recipe.model, text_table=TableEncoder.from_dict(table.encoder), **options)
    by_table.load_state_dict(
        {name: value for name, value in live.state_dict().items() if not name.startswith("text.")}
    )
    sides = {"live": (live, processor), "table": (by_table, TextTableProcessor(processor, table))}
    rows, times = make_rows(texts), {name: [] for name in sides}
    with torch.no_grad():
        logits = [model.eval()(**prepare(text=texts[:BATCH])).logits for model, prepare in sides.values()]
    for _ in range(rounds):
        for name, (model, prepare) in sides.items():
            times[name] += train(copy.deepcopy(model), prepare, rows)
    one, other = (statistics.median(times[name]) for name in sides)
    print(f"live {1000 * one:.1f} ms, table {1000 * other:.1f} ms a step: ratio {one / other:.1f}")
    print(f"making the table has paid after {making / (STEPS * (one - other)):.1f} epochs")
    print(f"logits at most {(logits[0] - logits[1]).abs().max():.1e} apart")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
