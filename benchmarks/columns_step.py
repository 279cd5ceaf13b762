"""What columns of a table add to a fusion classifier's step, as a share of the step without them.

EfficientNet-B0 at 128 pixels and MiniLM with 32 tokens, all trained with AdamW; 20 numbers and 10 categories with 8
values each, encoded from raw values in each step as the collator does it. The share is too small to be seen in the
noise of whole steps: what columns add is the difference of two steps whose encoders are replaced by their features,
and the difference is compared with the whole step. CPU time of one process, rounds alternate. The aim: under 1 %.

    python benchmarks/columns_step.py [ROUNDS]
"""

import statistics
import sys
import time

import torch
from trainer_step import BATCH, collate

from mmhf.models.fusion.building import build_fusion_model
from mmhf.models.fusion.column_features import CategoryColumn, ColumnFeatures, NumberColumn
from mmhf.recipe.fusion_recipe import FusionModelSection

STEPS = 10
KINDS = tuple(f"kind {number}" for number in range(8))
COLUMNS = ColumnFeatures(
    [NumberColumn(f"number {number}", 0.5, 2.0, True) for number in range(20)],
    [CategoryColumn(f"category {number}", KINDS, True) for number in range(10)],
)
ROWS = [
    {f"number {place}": row + place for place in range(20)}
    | {f"category {place}": KINDS[(row + place) % 8] for place in range(10)}
    for row in range(BATCH)
]


def make_model(columns):
    torch.manual_seed(0)
    section = {
        "vision": {"backbone": "timm/efficientnet_b0", "pretrained": False},
        "text": {"backbone": "pypi/all-minilm-l6-v2", "pretrained": False, "pooling": "mean"},
    }
    if columns:
        section["columns"] = {
            "numbers": [column.name for column in COLUMNS.numbers],
            "categories": [column.name for column in COLUMNS.categories],
        }
    return build_fusion_model(
        FusionModelSection.model_validate(section), label_names=["no", "yes"], columns=COLUMNS if columns else None
    ).train()


def step_seconds(model, batch, columns, steps):
    """CPU seconds of each step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    found = []
    for _ in range(steps):
        begun = time.process_time()
        inputs = {**batch, "columns": COLUMNS.encode(ROWS)} if columns else batch
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
        found.append(time.process_time() - begun)
    return found[1:]


def main(rounds=5):
    batch = collate([{"index": row} for row in range(BATCH)])
    plain, reading = make_model(False), make_model(True)
    with torch.no_grad():
        output = plain.eval()(**batch)
        features = {
            "image_features": plain.image_features(batch["pixel_values"]),
            "text_features": plain.text_features(batch["input_ids"], batch["attention_mask"]),
            "labels": batch["labels"],
        }
    assert output.loss.isfinite()
    whole, without, beside = [], [], []
    for _ in range(rounds):
        whole += step_seconds(plain.train().requires_grad_(True), batch, False, STEPS)
        for model, columns, times in ((plain, False, without), (reading, True, beside)):
            for encoder in (model.vision, model.text):
                encoder.requires_grad_(False)
            times += step_seconds(model, features, columns, 20 * STEPS)
    step, added = statistics.median(whole), statistics.median(beside) - statistics.median(without)
    print(
        f"{COLUMNS.width} numbers of 30 columns add {1000 * added:.2f} ms to a step of {1000 * step:.0f} ms: "
        f"{100 * added / step:.2f} %"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
