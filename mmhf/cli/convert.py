"""Turn a checkpoint (.pth) of one of the programs that mmhf replaces into a release.

mmhf convert checkpoints/best_model_1.6.pth -o releases/fakeddit/v1.6
mmhf convert models/resnet50_best.pth --labels data/plant_disease/train -o releases/plants/v1.0
mmhf convert checkpoints/checkpoint_epoch_20.pth --tokenizer openai/clip-vit-base-patch32 -o releases/clip/v1.0
mmhf convert checkpoints/best_model.pth --embeddings pubmedbert_512_cls.parquet -o releases/skin/v1.0
mmhf convert saved_models/model_state_dict_20241201_120000-1.pth -o releases/captioner/v1.0
mmhf evaluate releases/fakeddit/v1.6 data.path=data/fakeddit.csv

Nothing in the file is executed. What its tensors do not tell, such as an activation, is a key of the recipe that is
made: model.fusion.activation=gelu model.text.pooling=mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path

_PROGRAMS = ("captioner", "clip-from-scratch", "dermatology", "fake-news", "plant-disease")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="the .pth file")
    parser.add_argument("overrides", nargs="*", help="key=value of the recipe that is made")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="a folder to make, such as releases/plants/v1.0"
    )
    parser.add_argument("--from", dest="program", choices=_PROGRAMS, help="what saved it; absent: what its names say")
    parser.add_argument("--version", help="of the release; absent: the output's or the file's name, else 1.0")
    parser.add_argument(
        "--vision", help="its image encoder, such as torchvision/resnet50; absent: found by its shapes"
    )
    parser.add_argument("--text", help="its text encoder or language model: a Hub name or a folder")
    parser.add_argument("--tokenizer", help="its tokenizer, where that belongs to no encoder")
    parser.add_argument(
        "--labels", help="names of its classes: a,b,c, a file with a name a line, or a folder of classes"
    )
    parser.add_argument("--embeddings", type=Path, help="dermatology: its parquet file of text embeddings")
    parser.add_argument("--texts", type=Path, help="dermatology: the table whose texts these are of, row by row")
    parser.add_argument("--metadata", type=Path, help="captioner: training_metadata_*.json; absent: the one beside it")
    parser.add_argument("--include-frozen", action="store_true", help="captioner: also store CLIP and Qwen")
    parser.add_argument(
        "--allow-missing",
        action="append",
        default=[],
        metavar="NAME",
        help="a tensor that may be missing or left over",
    )
