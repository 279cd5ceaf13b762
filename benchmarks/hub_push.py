"""Bytes that a push sends: a first version, one with the same weights and other numbers, one with other weights.

A prefix captioner as the quickstart trains it, whose image encoder is referenced and not copied, goes to a Hub on this
machine (the one of the tests) through the real client. The aims: a version sends at most 1.1 of the bytes of its
trained parameters, and nothing of a file that has not changed.

    python benchmarks/hub_push.py
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import huggingface_hub  # isort: skip
import torch
from huggingface_hub import constants

from mmhf.hub.lineage import release_settings
from mmhf.hub.pushing import push_release
from mmhf.recipe import load_recipe
from mmhf.tasks import task_of

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "hub"))

from loopback_hub import TOKEN, LoopbackHub

MIB = 2**20
RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart" / "captioner.yaml"


def build():
    resolved = load_recipe(RECIPE, ["release=null", "model.neighbours=null"])
    task = task_of(resolved.recipe)
    data = task.load_data(check_images=False)
    processor = task.build_processor(data)
    return resolved, task.build_model(data, processor=processor), processor


def write_run(folder, parts, *, accuracy):
    resolved, model, processor = parts
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "recipe.yaml").write_text(resolved.to_yaml())
    (folder / "metrics.json").write_text(json.dumps({"validation_rougeL": accuracy}))
    return folder


def trained_bytes(model):
    return sum(
        value.numel() * value.element_size() for name, value in model.named_parameters() if "vision" not in name
    )


def main():
    parts = build()
    model = parts[1]
    with tempfile.TemporaryDirectory() as scratch, LoopbackHub() as hub:
        constants.ENDPOINT = hub.endpoint
        constants.HUGGINGFACE_CO_URL_TEMPLATE = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        constants.HF_HUB_DISABLE_XET, constants.HF_HUB_CACHE = True, f"{scratch}/cache"
        os.environ["HF_TOKEN"] = TOKEN
        huggingface_hub.utils.disable_progress_bars()
        for version, accuracy in {"1.0": 0.2, "1.1": 0.21, "1.2": 0.22}.items():
            if version == "1.2":
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.mul_(1.01)
            run_dir = write_run(Path(scratch) / version, parts, accuracy=accuracy)
            hub.requests.clear()
            push_release(run_dir, release_settings({"repo": "org/name", "version": version, "push": True}))
            everything = sum(request.bytes_sent for request in hub.requests)
            sent = f"{hub.large_bytes_sent() / MIB:.2f} MiB of weights, {everything / MIB:.2f} in all"
            print(f"v{version}: {sent}, {everything / trained_bytes(model):.3f} of its trained parameters")


if __name__ == "__main__":
    main()
