"""Two processes with one thread each, against one process with one thread, on the same global batch.

Each side is a real launch of the embedded-sample recipe; its speed is read from the steps that its log tells, start-up
left out. Rounds alternate. The aim is a ratio of at least 1.6 on two idle cores.

    python benchmarks/two_processes.py [ROUNDS]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
GLOBAL_BATCH, STEPS = 32, 24
TIMED = """
import sys, time
import transformers
from mmhf.cli import main

class Clock(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            self.begun = time.perf_counter()
        if state.global_step == state.max_steps and args.process_index == 0:
            open(sys.argv[1], "w").write(str((time.perf_counter() - self.begun) / (state.max_steps - 4)))

transformers.trainer.DEFAULT_CALLBACKS.append(Clock)
raise SystemExit(main(sys.argv[2:]))
"""


def seconds_per_step(processes, folder):
    script, result = folder / "timed.py", folder / f"{processes}.txt"
    script.write_text(TIMED)
    stage = {"name": "all", "steps": STEPS, "learning_rate": 1e-4}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    command += [str(script), str(result), "train", "recipes/quickstart/fusion.yaml", f"stages={json.dumps([stage])}"]
    command += ["data.image_size=96"]
    command += [f"training.per_device_train_batch_size={GLOBAL_BATCH // processes}", "training.save_strategy=no"]
    command += ["training.eval_strategy=no", "training.metric_for_best_model=null", "evaluation.splits=[]"]
    command += [f"training.output_dir={folder / f'run-{processes}-{len(list(folder.iterdir()))}'}", "~release"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return float(result.read_text())


def main(rounds=3):
    times = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for processes, values in times.items():
                values.append(seconds_per_step(processes, Path(folder)))
    one, two = (statistics.median(values) for values in times.values())
    print(f"1 process {1000 * one:.0f} ms, 2 processes {1000 * two:.0f} ms a step: {one / two:.2f} times as fast")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
