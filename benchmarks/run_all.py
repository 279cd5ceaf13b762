"""Every benchmark of speed in its short form, in one table, each ratio beside its floor.

A floor is the aim of the benchmark with room for the noise of a busy machine. The program ends with 1 where a ratio is
on the wrong side of its floor or a benchmark fails. `make bench` runs it; with names, only these. `--slack 0.6` asks
for 0.6 of each floor, enough to see that a fast path is gone, on machines whose noise is not known:

    python benchmarks/run_all.py [--slack SHARE] [cpu images ...]
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent


class Floor(NamedTuple):
    """What a benchmark has to show.

    Attributes:
        script (`str`): Its file, without `.py`.
        arguments (`str`): Of the short form.
        what (`str`): Of the ratio, for the table.
        pattern (`str`): Finds the ratio in what it prints.
        floor (`float`): The ratio has to be at least this; below 0: at most its amount.
    """

    script: str
    arguments: str
    what: str
    pattern: str
    floor: float


FLOORS = [
    Floor("cpu", "1", "inference of EfficientNet-Lite0, plain / ours", r"inference, both: .*: ([\d.]+) x", 2.8),
    Floor("cpu", "1", "training step of EfficientNet-Lite0, plain / ours", r"step, both: .*: ([\d.]+) x", 2.0),
    Floor("images", "3 32", "JPEG to batch, PIL and torchvision / ours", r"^mmhf: .*: ([\d.]+) x", 2.1),
    Floor("search", "3 200000", "search, rival / ours", r"a query: .*: ratio ([\d.]+)", 0.6),
    Floor("growth", "500 4000", "start, 8 times the rows / the rows", r"rows take ([\d.]+) times", -10.0),
    Floor("trainer_step", "2", "training step, ours / hand loop", r"ratio ([\d.]+)", -1.15),
    Floor("frozen_stage", "2", "frozen stage, ours / hand loop", r"a step: ratio ([\d.]+)", -1.15),
    Floor("lora_step", "2", "step with LoRA, its time / all weights' time", r"a step: .*: ratio ([\d.]+)", -0.85),
    Floor("lora_step", "2", "the same in memory beside the weights", r"weights: .*: ratio ([\d.]+)", -0.6),
    Floor("quantization", "2", "step before 8 bits, its memory / of fp32", r"^  8 bits: .*MiB: ratio ([\d.]+)", -0.6),
    Floor("quantization", "2", "the same in time", r"^  8 bits: .* s: ratio ([\d.]+)", -1.4),
    Floor("distillation", "5", "step with a teacher's answers / without", r"classifier, .*: ratio ([\d.]+)", -1.08),
    Floor("distillation", "5", "the same of a dual encoder", r"dual encoder, .*: ratio ([\d.]+)", -1.08),
    Floor("columns_step", "2", "columns' share of a fusion's step, in %", r": ([\d.]+) %", -1.0),
    Floor("cache", "1", "ten epochs on stored features, computed / stored", r"included: ([\d.]+) times", 6.0),
    Floor("captioner_loss", "1", "captioner's loss, full logits / ours", r": ([\d.]+) times faster", 4.0),
    Floor("contrastive_batch", "2", "micro-batches of a large batch, ours / at once", r"at ([\d.]+) times", -1.35),
    Floor("retrieval", "1 8000", "retrieval metrics, bare products / ours", r"processor: .*: ratio ([\d.]+)", 0.6),
    Floor("multi_label", "1 50000 100 400000", "numbers of 100 labels, ours / sklearn", r"s: ratio ([\d.]+)", -0.6),
    Floor("multi_label", "1 50000 100 400000", "their memory beside the rows", r"memory ratio ([\d.]+)", -0.4),
    Floor("embedding", "3", "embedding a table, ours / bare model, in speed", r"ratio ([\d.]+)", 0.85),
    Floor("table_reading", "100000", "reading CSV, pandas / ours", r"; ([\d.]+) of pandas", 0.55),
    Floor("checks", "2 256", "weights compared at start, s a gigabyte", r"start: ([\d.]+) s", -0.5),
    Floor("checks", "2 256", "loss watched at each step, % of it", r"step: ([\d.]+) %", -1.0),
    Floor("export", "3", "ONNX Runtime, PyTorch eager / exported", r"classifier: .*Runtime .*: ([\d.]+) x", 1.3),
    Floor("export", "3", "the same in int8", r"classifier: .*int8 .*: ([\d.]+) x", 1.8),
    Floor("export", "3", "fusion in ONNX Runtime, eager / exported", r"fusion: .*Runtime .*: ([\d.]+) x", 1.3),
    Floor("export", "3", "the same in int8", r"fusion: .*int8 .*: ([\d.]+) x", 1.8),
    Floor("serving", "2", "served images a second, ours / bare model", r"bare model .*: ratio ([\d.]+)", 0.85),
    Floor("serving", "2", "one request, ours / pipeline()", r"one request .*: ([\d.]+) of it", -1.3),
    Floor("serving", "2", "p99 of 64 clients, in full batches", r"clients: .*: ([\d.]+) times", -3.3),
    Floor("serving_memory", "2000", "server's memory over 2,000 requests, MB more", r"requests: (-?[\d.]+) MB", -25.0),
    Floor("two_processes", "1", "two processes, in speed", r": ([\d.]+) times as fast", 1.2),
]


def run(script: str, arguments: str) -> str:
    """What a benchmark prints; where it fails, that is told at once and nothing is found."""
    begun = time.perf_counter()
    command = [sys.executable, str(FOLDER / f"{script}.py"), *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = f"failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}" if done.returncode else "done"
    print(f"{script}: {told}, {time.perf_counter() - begun:.0f} s", flush=True)
    return "" if done.returncode else done.stdout


def main(names: list[str], slack: float = 1.0) -> int:
    if unknown := set(names) - {each.script for each in FLOORS}:
        sys.exit(
            f"no floors for {', '.join(sorted(unknown))}; there are {', '.join(sorted({f.script for f in FLOORS}))}"
        )
    chosen = [each for each in FLOORS if not names or each.script in names]
    outputs = {script: run(script, arguments) for script, arguments in {f.script: f.arguments for f in chosen}.items()}
    lines, failed = [f"{'':<16} {'ratio of':<62} {'found':>7}  floor"], 0
    for each in chosen:
        found = re.search(each.pattern, outputs[each.script], re.MULTILINE)
        value = None if found is None else float(found[1].replace(",", ""))
        floor = each.floor * slack if each.floor >= 0 else each.floor / slack
        holds = value is not None and (value >= floor if floor >= 0 else value <= -floor)
        failed += not holds
        limit = f"at least {floor:.3g}" if floor >= 0 else f"at most {-floor:.3g}"
        shown = "none" if value is None else f"{value:.2f}"
        lines.append(f"{each.script:<16} {each.what:<62} {shown:>7}  {limit}{'' if holds else '  <-- fails'}")
    print("\n" + "\n".join(lines) + f"\n{len(chosen) - failed} of {len(chosen)} hold")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--slack", type=float, default=1.0)
    options = parser.parse_args()
    sys.exit(main(options.names, options.slack))
