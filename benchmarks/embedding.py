"""Embedding a table against the bare model, on images that are decoded and resized already.

Ours is what `mmhf embed` does with a batch of tensors: the model, embeddings of length 1, an Arrow table, a shard on
disk. The rival runs the vision tower and keeps what it gives. Rounds alternate in one process. The aim: at least 0.9
of the bare model's images a second.

    python benchmarks/embedding.py [ROUNDS]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import pyarrow as pa  # isort: skip
import torch
from transformers import CLIPConfig, CLIPModel

from mmhf.inference.embedders import DualEncoderEmbedder, RowEmbedder
from mmhf.inference.inputs import IMAGE
from mmhf.inference.jobs import Batch
from mmhf.inference.shards import ShardFolder

BATCH, BATCHES = 16, 6


def make_model():
    """CLIP ViT-B/32's shapes with random weights."""
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(vision_config={"patch_size": 32}, projection_dim=512)).eval()


def ours(embedder, batches, shards, number):
    begun = time.perf_counter()
    tables = []
    for pixels in batches:
        batch = Batch({IMAGE: {"pixel_values": pixels}}, {IMAGE: [1] * BATCH}, [None] * BATCH)
        tables.append(embedder.make(batch))
    shards.write(number, pa.concat_tables(tables))
    return time.perf_counter() - begun


@torch.inference_mode()
def bare(model, batches):
    begun = time.perf_counter()
    kept = [model.get_image_features(pixel_values=pixels).pooler_output for pixels in batches]
    assert len(kept) == BATCHES
    return time.perf_counter() - begun


def main(rounds=5):
    model = make_model()
    embedder = RowEmbedder(DualEncoderEmbedder(model, None), [IMAGE])
    batches = [torch.randn(BATCH, 3, 224, 224) for _ in range(BATCHES)]
    bare(model, batches[:1] * BATCHES)
    times = {"ours": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder:
        shards = ShardFolder(Path(folder) / "out.parquet", {})
        with shards.joined(discard_other=False):
            for number in range(rounds):
                times["ours"].append(ours(embedder, batches, shards, number))
                times["bare"].append(bare(model, batches))
    mine, theirs = (BATCH * BATCHES / statistics.median(each) for each in times.values())
    print(f"embed {mine:.1f} images/s, bare model {theirs:.1f} images/s: ratio {mine / theirs:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
