"""Bytes that a push sends: a first version, one with the same weights and other numbers, one with other weights.

Against a Hub on this machine (the one of the tests), with the real client. The aims: a file that has not changed is
not sent, so that the second version sends no weights; a new version sends at most 1.1 of its changed weights.

    python benchmarks/hub_push.py
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import huggingface_hub  # isort: skip
import numpy as np
from huggingface_hub import constants
from safetensors.numpy import save_file

from mmhf.hub.lineage import release_settings
from mmhf.hub.pushing import push_release

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "hub"))

from loopback_hub import TOKEN, LoopbackHub

MIB = 2**20


def write_run(folder, *, seed, accuracy):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    # Two shards: the encoder's, which stays, and the head's, which each version trains.
    save_file({"encoder": np.random.default_rng(0).random(4 * MIB, np.float32)}, folder / "model-1.safetensors")
    save_file({"head": generator.random(MIB // 4, np.float32)}, folder / "model-2.safetensors")
    (folder / "config.json").write_text('{"model_type": "mmhf_fusion"}')
    (folder / "processor_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(json.dumps({f"word{index}": index for index in range(30_000)}))
    (folder / "recipe.yaml").write_text("task: image-text-classification\n")
    (folder / "metrics.json").write_text(json.dumps({"test_accuracy": accuracy}))
    return folder


def main():
    with tempfile.TemporaryDirectory() as scratch, LoopbackHub() as hub:
        constants.ENDPOINT = hub.endpoint
        constants.HUGGINGFACE_CO_URL_TEMPLATE = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        constants.HF_HUB_DISABLE_XET, constants.HF_HUB_CACHE = True, f"{scratch}/cache"
        os.environ["HF_TOKEN"] = TOKEN
        huggingface_hub.utils.disable_progress_bars()
        versions = {"1.0": (1, 0.5), "1.1": (1, 0.6), "1.2": (2, 0.7)}
        for version, (seed, accuracy) in versions.items():
            run_dir = write_run(Path(scratch) / version, seed=seed, accuracy=accuracy)
            hub.requests.clear()
            push_release(run_dir, release_settings({"repo": "org/name", "version": version, "push": True}))
            weights = hub.large_bytes_sent()
            everything = sum(request.bytes_sent for request in hub.requests)
            whole = sum(path.stat().st_size for path in run_dir.iterdir())
            sent = f"{weights / MIB:.2f} MiB of weights, {everything / MIB:.2f} in all"
            print(f"v{version} of {whole / MIB:.1f} MiB: {sent}")
            head = (run_dir / "model-2.safetensors").stat().st_size
            if version == "1.1":
                print(f"unchanged weights: {weights} bytes sent")
            elif version == "1.2":
                print(f"all bytes sent against those of the file that changed: ratio {everything / head:.3f}")


if __name__ == "__main__":
    main()
