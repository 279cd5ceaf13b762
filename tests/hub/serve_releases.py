"""Run by the clean environment: loads releases from the Hub, by `pipeline()` and by Auto classes, and asks them.

Reads a JSON list of jobs from standard input, writes a JSON list of answers to standard output.
"""

import importlib
import json
import sys

import torch
from transformers import AutoModel, pipeline


def serve(job):
    where = {"revision": job["revision"], "trust_remote_code": True}
    model = AutoModel.from_pretrained(job["repo"], **where).eval()
    inputs = {name: torch.tensor(values) for name, values in job["inputs"].items()}
    with torch.no_grad():
        output = model(**inputs)[job["output"]].tolist()
    answer = None
    if job["task"] is not None:
        answer = pipeline(job["task"], model=job["repo"], **where)(*job["arguments"], **job["call"])
    return {"output": output, "answer": answer, "module": type(model).__module__}


def refuse_unclean():
    for package in ("mmhf", "datasets", "accelerate", "pandas"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            continue
        raise SystemExit(f"{package} can be imported, so this environment is not clean")


if __name__ == "__main__":
    refuse_unclean()
    json.dump([serve(job) for job in json.load(sys.stdin)], sys.stdout)
