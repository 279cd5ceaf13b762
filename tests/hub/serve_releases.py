"""Run by the clean environment: loads releases from the Hub, by `pipeline()` and by Auto classes, and asks them.

Reads a JSON list of jobs from standard input, writes a JSON list of answers to standard output.
"""

import contextlib
import importlib
import io
import json
import re
import sys
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModel, pipeline


def serve(job):
    where = {"revision": job["revision"], "trust_remote_code": True}
    model = AutoModel.from_pretrained(job["repo"], **where).eval()
    inputs = {name: torch.tensor(values) for name, values in job["inputs"].items()}
    with torch.no_grad():
        output = model(**inputs)[job["output"]].tolist()
    answer = pipeline(job["task"], model=job["repo"], **where)(*job["arguments"], **job["call"])
    return {"output": output, "answer": answer, "module": type(model).__module__, "printed": run_snippet(job)}


def run_snippet(job):
    """What the usage snippet on the model card prints."""
    card = Path(hf_hub_download(job["repo"], "README.md", revision=job["revision"])).read_text(encoding="utf-8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})
    return printed.getvalue()


def refuse_unclean(wanted):
    brought = {"accelerate"} if "peft" in wanted else set()
    for package in {"mmhf", "datasets", "accelerate", "pandas"} - brought:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            continue
        raise SystemExit(f"{package} can be imported, so this environment is not clean")


if __name__ == "__main__":
    refuse_unclean(sys.argv[1:])
    json.dump([serve(job) for job in json.load(sys.stdin)], sys.stdout)
