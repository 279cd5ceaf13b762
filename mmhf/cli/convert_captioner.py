"""Turn a checkpoint of the CLIP-MLP-Qwen captioner (model_state_dict_*.pth) into a folder that mmhf loads.

mmhf convert-captioner saved_models/model_state_dict_20241201_120000-1.pth outputs/old_captioner
mmhf predict outputs/old_captioner --input photos --output captions.csv
mmhf release outputs/old_captioner releases/flickr30k_captioner 0.9
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="model_state_dict_*.pth")
    parser.add_argument("output", type=Path, help="a folder to make")
    parser.add_argument("--metadata", type=Path, help="training_metadata_*.json; absent: the one beside it")
    parser.add_argument("--vision", default="openai/clip-vit-base-patch32", help="its CLIP: a Hub name or a folder")
    parser.add_argument("--language", default="Qwen/Qwen3-0.6B-Base", help="its Qwen: a Hub name or a folder")
    parser.add_argument("--include-frozen", action="store_true", help="also store CLIP and Qwen")
