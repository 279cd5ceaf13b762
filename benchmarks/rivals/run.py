"""mmhf beside what people use now: the same rows, pretrained weights, image size and number of epochs.

Each contestant is a whole process with one thread on one core: its imports, reading, training, choosing by the
validation rows, and answering the test split all count. mmhf is `mmhf train` with a shipped recipe; each rival is a
script beside this file, in an environment of its own. Seed 1 is run by all, then seed 2, and so on. The table has:

- quality on the test split, mean ± standard deviation over the seeds: accuracy and macro-F1, or recalls;
- seconds of CPU (user and system) and peak memory (the largest resident set) of the process;
- lines that a user has to write, without comments and empty ones: of a script between its marks, of mmhf the recipe's
  and one for each override. Scripts are laid out by a formatter, recipes by hand;
- versions. A rival that could not be run, or failed, stands there with the reason.

All get the rows that mmhf leaves after it has looked at the data (it names broken images and empty titles, where most
others stop), and its validation rows. What a script imports has been imported before, so that no run compiles it;
caches of data and of features are empty at each start. mmhf's recipes were tuned on drawings like those of its sample;
the rivals have their defaults and what is usual. So read costs and lines first, and quality as what can be had without
a search. Pairs and retrieval have smaller images than the recipes, and pairs fewer epochs, for all: some rivals
compute frozen towers, or train whole ones, in each epoch.

    make rivals
    .venv/bin/python benchmarks/rivals/run.py --quick
    .venv/bin/python benchmarks/rivals/run.py --images FOLDER --pairs FOLDER --retrieval FOLDER --output outputs/rivals

`--images` has class folders in train/ and test/; `--pairs` Fakeddit's TSV files and images; `--retrieval` train/,
validation/ and test/, a `metadata.jsonl` in each. A task without a folder gets the embedded drawings; `--tasks` and
`--only` choose. Started again with the same `--output`, it goes on where it stopped. To spare the download of CUDA:
`PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make rivals`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from contests import CONTESTS, HERE, Contest, Rival, mmhf_scores, prepare, score, write_models
from job import Job
from sample_folders import WRITERS

_SETTINGS = {
    **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "RAYON")},
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
_MMHF = "mmhf"
_MAX_REASON = 160
_MMHF_PACKAGES = ("mmhf", "torch", "transformers")
_VERSIONS = "import json; from importlib.metadata import version; print(json.dumps([version(name) for name in {}]))"


class NotRunError(Exception):
    """A contestant has no result; the message says why."""


class Cost(NamedTuple):
    """What a process took: seconds of CPU of it and its children, and the most MiB that were resident at once."""

    seconds: float
    mebibytes: float


def measure(command: Sequence[str], folder: Path, *, is_mmhf: bool) -> Cost:
    """Run a program whose caches are empty; what it prints goes into `folder/log.txt`.

    Raises:
        `NotRunError`: it failed; the message has the last line that it wrote.
    """
    costs, log = folder / "costs.json", folder / "log.txt"
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, **_SETTINGS, "HF_HOME": cache, "HF_DATASETS_CACHE": f"{cache}/datasets"}
        environment.pop("MMHF_FEATURES", None)
        if not is_mmhf:
            environment.pop("PYTHONPATH", None)
        wrapped = [sys.executable, str(HERE / "measure.py"), str(costs), str(log), *command]
        done = subprocess.run(wrapped, env=environment, cwd=folder, check=False)
    if done.returncode:
        raise NotRunError(f"failed: {_last_line(log.read_text(errors='replace'))}")
    return Cost(**json.loads(costs.read_text(encoding="utf-8")))


def versions(python: str, packages: Sequence[str], imports: str = "") -> str:
    """Versions of packages of an environment; what a script imports is imported, so that no run compiles it or waits.

    Raises:
        `NotRunError`: a package is not there or cannot be imported.
    """
    asked = f"{imports}\n{_VERSIONS.format(list(packages))}"
    environment = {**os.environ, **_SETTINGS}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run([python, "-c", asked], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise NotRunError(f"not run: {_last_line(done.stderr)}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return ", ".join(f"{name} {number}" for name, number in zip(packages, found, strict=True))


def python_of(rival: Rival, envs: Path) -> str:
    """The interpreter of a rival's environment.

    Raises:
        `NotRunError`: it has not been built.
    """
    folder = envs / rival.environment
    if not (folder / ".installed").exists():
        log = folder / "install.log"
        why = (
            _last_line(log.read_text(errors="replace"))
            if log.exists()
            else "its environment is not built (make rivals)"
        )
        raise NotRunError(f"not run: {why}")
    return str(folder / "bin" / "python")


def run_rival(contest: Contest, rival: Rival, job: Job, folder: Path, python: str) -> tuple[dict[str, float], Cost]:
    (folder / "job.json").write_text(json.dumps(job._asdict(), indent=1), encoding="utf-8")
    cost = measure([python, str(HERE / f"{rival.script}.py"), "job.json"], folder, is_mmhf=False)
    return score(contest, job), cost


def run_mmhf(contest: Contest, overrides: Sequence[str], seed: int, folder: Path) -> tuple[dict[str, float], Cost]:
    fixed = [f"training.seed={seed}", f"training.output_dir={folder / 'run'}", "training.disable_tqdm=true"]
    command = [sys.executable, "-m", "mmhf", "train", contest.recipe, *overrides, *fixed]
    cost = measure(command, folder, is_mmhf=True)
    return mmhf_scores(json.loads((folder / "run" / "metrics.json").read_text()), contest), cost


class Campaign:
    """Runs that are kept in `results.jsonl`, one a line, so that what is done is not done again.

    Args:
        output (`Path`): Where they are kept.
        envs (`Path`): The rivals' environments.
        only (`Sequence[str]`): Names of contestants; empty: all.
    """

    def __init__(self, output: Path, envs: Path, only: Sequence[str]) -> None:
        self.output, self.envs, self.only = output, envs, only
        self.path = output / "results.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        # What failed is tried again.
        self.results = [result for line in lines if "error" not in (result := json.loads(line))]

    def require_same(self, settings: Mapping[str, Any]) -> None:
        """Refuse to mix runs on different data or with different settings in one folder."""
        path = self.output / "settings.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name, of_task in json.loads(json.dumps(settings)).items():
            if known.setdefault(name, of_task) != of_task:
                sys.exit(f"{self.output} has runs of {name} on other data or settings; use another --output")
        path.write_text(json.dumps(known, indent=1), encoding="utf-8")

    def contestants(self, contest: Contest) -> list[Rival | None]:
        """Those that take part, mmhf (None) first."""
        found = [None, *contest.rivals]
        return [each for each in found if not self.only or (each.name if each else _MMHF) in self.only]

    def play(self, contest: Contest, job: Job, overrides: Sequence[str], seed: int) -> None:
        """One seed of all contestants of a task."""
        for rival in self.contestants(contest):
            name = rival.name if rival else _MMHF
            key = {"task": contest.name, "name": name, "seed": seed}
            if any(key.items() <= result.items() for result in self.results):
                continue
            folder = self.output / contest.name / f"{name.replace(' ', '_').replace(',', '')}_{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                python = python_of(rival, self.envs) if rival else sys.executable
                if rival is None:
                    found = versions(python, _MMHF_PACKAGES, "import mmhf.verbs.train")
                    scores, cost = run_mmhf(contest, overrides, seed, folder)
                else:
                    found = versions(python, rival.packages.split(), rival.imports())
                    own = job._replace(seed=seed, variant=rival.variant, output=str(folder))
                    scores, cost = run_rival(contest, rival, own, folder, python)
                chosen = {metric: scores[metric] for metric in contest.metrics.values()}
                result: dict[str, Any] = {**chosen, **cost._asdict(), "versions": found}
            except NotRunError as error:
                result = {"error": str(error)}
            self._keep({**key, **result})
            # What it printed and answered stays; models and checkpoints take gigabytes.
            for left in filter(Path.is_dir, folder.iterdir()):
                shutil.rmtree(left)
            print(f"{contest.name}, seed {seed}, {name}: {_told(result, contest)}", flush=True)

    def table(self, contest: Contest) -> str:
        """The results of a task as Markdown."""
        heads = ["", *contest.metrics, "CPU s", "peak MiB", "lines", "seeds", "versions"]
        lines = [f"## {contest.name}", "", _row(heads), _row(["---"] * len(heads))]
        for rival in self.contestants(contest):
            name = rival.name if rival else _MMHF
            runs = [each for each in self.results if (each["task"], each["name"]) == (contest.name, name)]
            done = [each for each in runs if "error" not in each]
            written = str((rival or contest).num_lines())
            if not done:
                reason = runs[-1]["error"] if runs else "not run"
                lines.append(_row([name, reason, *[""] * (len(contest.metrics) + 1), written, "0", ""]))
                continue
            scores = [_mean([each[metric] for each in done], 3) for metric in contest.metrics.values()]
            costs = [_mean([each[key] for each in done], 0) for key in Cost._fields]
            lines.append(_row([name, *scores, *costs, written, str(len(done)), done[-1]["versions"]]))
        return "\n".join(lines)

    def _keep(self, result: dict[str, Any]) -> None:
        self.results.append(result)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(result) + "\n")


def _last_line(printed: str) -> str:
    """Of what a program printed, short and fit for a table."""
    lines = printed.strip().splitlines() or ["it said nothing"]
    return lines[-1].replace("|", "/")[-_MAX_REASON:]


def _told(result: Mapping[str, Any], contest: Contest) -> str:
    if "error" in result:
        return str(result["error"])
    scores = ", ".join(f"{head} {result[metric]:.3f}" for head, metric in contest.metrics.items())
    return f"{scores}; {result['seconds']:.0f} s of CPU, {result['mebibytes']:.0f} MiB"


def _mean(values: Sequence[float], digits: int) -> str:
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in CONTESTS:
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER", help="its data; absent: the embedded drawings")
    parser.add_argument("--tasks", nargs="+", choices=CONTESTS, default=list(CONTESTS))
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="contestants, by their names in the table"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--quick", action="store_true", help="some hundred embedded drawings, one seed, few epochs")
    parser.add_argument("--envs", type=Path, default=HERE / ".envs", help="where `make rivals` made the environments")
    parser.add_argument("--output", type=Path, help="where results and logs are kept; absent: nothing is kept")
    options = parser.parse_args()
    if sys.platform == "linux":
        # One core, the last of those that are allowed, for this process and all that it starts.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as scratch:
        output = (options.output or Path(scratch)).absolute()
        output.mkdir(parents=True, exist_ok=True)
        if not (output / "models").exists():
            write_models(Path(scratch, "whole"))
            shutil.move(Path(scratch, "whole"), output / "models")
        campaign = Campaign(output, options.envs.absolute(), options.only)
        prepared = {}
        for name in options.tasks:
            path = None if options.quick else getattr(options, name)
            if path is None:
                path = output / name / "sample"
                shutil.rmtree(path, ignore_errors=True)
                WRITERS[name](path, quick=options.quick)
            contest = CONTESTS[name]
            prepared[name] = prepare(contest, path.absolute(), output / name, output / "models", quick=options.quick)
        campaign.require_same({name: [job._asdict(), overrides] for name, (job, overrides) in prepared.items()})
        for seed in [1] if options.quick else options.seeds:
            for name, (job, overrides) in prepared.items():
                campaign.play(CONTESTS[name], job, overrides, seed)
        tables = "\n\n".join(campaign.table(CONTESTS[name]) for name in options.tasks)
        (output / "table.md").write_text(tables + "\n", encoding="utf-8")
        print(f"\n{tables}")
    return 1 if any("error" in result for result in campaign.results) else 0


if __name__ == "__main__":
    sys.exit(main())
