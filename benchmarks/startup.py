"""Time of `mmhf --help` and of `mmhf plan`, against importing what a plan cannot do without.

Each is a fresh process; rounds alternate. The aims: help within 1 s, and a plan within the import of torch and
transformers plus 3 s.

    python benchmarks/startup.py [ROUNDS]
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "mmhf --help": ["-m", "mmhf", "--help"],
    "import torch, transformers.Trainer": ["-c", "import torch; from transformers import Trainer"],
    "mmhf plan": ["-m", "mmhf", "plan", "recipes/quickstart/fusion.yaml"],
}


def seconds(arguments):
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main(rounds=3):
    times = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.2f} s")
    extra = medians["mmhf plan"] - medians["import torch, transformers.Trainer"]
    print(f"a plan takes {extra:.2f} s more than the imports")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
