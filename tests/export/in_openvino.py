"""Run as a program: export models to OpenVINO, compare them there on batches and texts of other lengths, and answer.

It is a program because OpenVINO keeps threads of its own, which a process that other tests fork must not have.

    python in_openvino.py FOLDER FUSION_MODEL CAPTIONER PHOTO TEXT
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)

import numpy as np  # isort: skip
import openvino
import torch

from mmhf.export.folder import export_model
from mmhf.inference.loading import load_model


def main(folder: str, fusion: str, captioner: str, photo: str, text: str) -> None:
    folders = {"fusion": Path(folder) / "fusion", "captioner": Path(folder) / "captioner"}
    for model_dir, output in zip((fusion, captioner), folders.values(), strict=True):
        export_model(model_dir, output, format="openvino")

    model, _ = load_model(fusion, device=torch.device("cpu"))
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(folders["fusion"] / "model.xml", "CPU", settings)
    for batch, length in ((1, 1), (3, 9)):
        ids = torch.randint(4, 14, (batch, length))
        inputs = {"pixel_values": torch.randn(batch, 3, 32, 32), "input_ids": ids, "attention_mask": ids.clamp(max=1)}
        with torch.no_grad():
            wanted = model(**inputs).logits
        found = compiled({name: tensor.numpy() for name, tensor in inputs.items()})["logits"]
        np.testing.assert_allclose(found, wanted, atol=1e-5)

    sys.path.insert(0, str(folders["fusion"]))  # inputs.py and runtime.py, which are the same in both
    classify, caption = (
        runpy.run_path(str(folders[family] / "run_openvino.py"))[name]
        for family, name in (("fusion", "classify"), ("captioner", "caption"))
    )
    sys.stdout.write(json.dumps({"classify": classify(photo, text), "caption": caption(photo)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
