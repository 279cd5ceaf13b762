"""Train on Modal, on data from a bucket: straight from there, or copied once to a volume (docs/cloud.md).

modal run --detach examples/cloud/modal_train.py --data gs://my-bucket/dermatology
modal run --detach examples/cloud/modal_train.py::copy_bucket
modal run --detach examples/cloud/modal_train.py --data /volume/dermatology

Credentials are a secret of one's Modal account, here `mmhf-bucket` with GOOGLE_APPLICATION_CREDENTIALS_JSON for the
first line, and with GOOGLE_ACCESS_KEY_ID and GOOGLE_ACCESS_KEY_SECRET (HMAC keys) for the second.
"""

import os
import shutil
import subprocess
from pathlib import Path

import modal

PROJECT = "/opt/mmhf"
BUCKET = "my-bucket"
TRAIN = [
    "accelerate",
    "launch",
    "--config_file",
    "accelerate_configs/single_gpu.yaml",
    "scripts/train.py",
    "recipes/dermatology/fusion.yaml",
    "data.path={data}/{{version}}",
    "data.cloud.cache_dir=/volume/copies",
    "data.cloud.max_bytes=200000000000",
    "training.output_dir=/outputs/dermatology",
    "release.repo=/outputs/releases/dermatology",
]

app = modal.App("mmhf-dermatology")
# What is on the volume outlives a run: a copied data set, or the copies that a run from a bucket makes as it goes.
volume = modal.Volume.from_name("mmhf-data", create_if_missing=True)
outputs = modal.Volume.from_name("mmhf-outputs", create_if_missing=True)
secret = modal.Secret.from_name("mmhf-bucket")
bucket = modal.CloudBucketMount(
    BUCKET, bucket_endpoint_url="https://storage.googleapis.com", secret=secret, read_only=True
)
image = (
    modal.Image.debian_slim(python_version="3.11")
    .add_local_dir(".", PROJECT, ignore=[".git", ".venv", "outputs", "releases", "data"], copy=True)
    .run_commands(f"pip install '{PROJECT}[cloud]'")
)


@app.function(image=image, volumes={"/volume": volume, "/bucket": bucket}, timeout=24 * 3600)
def copy_bucket(folder: str = "dermatology") -> None:
    """Copy a folder of the bucket to the volume; files that are there already stay as they are."""
    for source in Path("/bucket", folder).rglob("*"):
        target = Path("/volume", source.relative_to("/bucket"))
        if source.is_file() and not (target.exists() and target.stat().st_size == source.stat().st_size):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    volume.commit()


@app.function(
    image=image,
    gpu="L4",
    cpu=8,
    volumes={"/volume": volume, "/outputs": outputs},
    secrets=[secret],
    timeout=24 * 3600,
    retries=modal.Retries(max_retries=3, initial_delay=10.0),
)
def train(data: str) -> None:
    """Train; a run that was interrupted goes on from its last checkpoint."""
    if key := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS_JSON"):
        path = Path("/tmp/key.json")
        path.write_text(key, encoding="utf-8")
        os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = str(path)
    try:
        subprocess.run([word.format(data=data) for word in TRAIN], cwd=PROJECT, check=True)
    finally:
        outputs.commit()
        volume.commit()


@app.local_entrypoint()
def main(data: str = "/volume/dermatology") -> None:
    train.remote(data)
