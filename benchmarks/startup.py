"""Seconds of CPU and modules of what a user waits for before anything is computed.

Each is a fresh process; rounds alternate. The first round, which may still compile mmhf to bytecode, is left out. The
aims, on a quiet core: helps and mistakes 0.5 s, a plan without weights the import of torch and transformers.Trainer
plus 2 s, the first step of training on the sample the import plus 3 s.

    python benchmarks/startup.py [ROUNDS]
"""

import os
import resource
import statistics
import subprocess
import sys

MAIN = """
import sys
from mmhf.cli import main
try:
    main({arguments})
except SystemExit:
    pass
"""
FIRST_STEP = """
import os, sys, tempfile
from transformers import TrainerCallback
from mmhf.verbs.train import train

class Stop(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        sys.stderr.write(f"modules {len(sys.modules)}")
        sys.stderr.flush()
        os._exit(0)

overrides = ["cache=off", "release=null", f"training.output_dir={tempfile.mkdtemp()}/run"]
train("quickstart/fusion", overrides, callbacks=[Stop()])
"""
COUNT = "import sys; sys.stderr.write(f'modules {len(sys.modules)}')"
COMMANDS = {
    "mmhf --help": ["--help"],
    "mmhf train --help": ["train", "--help"],
    "mmhf init --list": ["init", "--list"],
    "a recipe that is not there": ["train", "nowhere.yaml"],
    "a key that is mistyped": ["train", "quickstart/fusion", "training.learnin_rate=1"],
    "import torch, transformers.Trainer": "import torch; from transformers import Trainer\n",
    "mmhf plan quickstart/fusion": ["plan", "quickstart/fusion"],
    "mmhf train quickstart/fusion, first step": FIRST_STEP,
}


def measure(arguments):
    """Seconds of CPU of a process, and the modules that it had loaded in the end."""
    script = arguments if isinstance(arguments, str) else MAIN.format(arguments=arguments)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", script + COUNT], capture_output=True, text=True, check=True, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, int(done.stderr.rpartition("modules ")[2])


def main(rounds=3):
    seconds, modules = {name: [] for name in COMMANDS}, {}
    for number in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            spent, modules[name] = measure(arguments)
            if number:
                seconds[name].append(spent)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:<42} {median:6.2f} s {modules[name]:6d} modules")
    imports = medians["import torch, transformers.Trainer"]
    print(f"a plan takes {medians['mmhf plan quickstart/fusion'] - imports:.2f} s more than the imports")
    print(f"the first step takes {medians['mmhf train quickstart/fusion, first step'] - imports:.2f} s more")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
