"""Workers in processes of their own, some of which are killed. The trainings are a formula."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from mmhf.damage import mark_complete
from mmhf.errors import DamagedError
from mmhf.sweep import Patience
from mmhf.sweep import worker as worker_module
from mmhf.sweep.study import root_of
from mmhf.sweep.trial_process import TrialOutcome
from mmhf.sweep.worker import Worker

FORK = multiprocessing.get_context("fork")
LETTERS = "xyzw"


def values_of(order):
    given = dict(override.split("=", 1) for override in order.overrides)
    return int(given["a"]), given["b"]


def train_by_formula(train, order, should_prune):
    """Stands for `run_trial`: two epochs, and a line in a log for each training that was finished."""
    a, b = values_of(order)
    score = a + LETTERS.index(b) / 10
    Path(order.run_dir).parent.mkdir(parents=True, exist_ok=True)
    Path(order.run_dir).with_suffix(f".{os.getpid()}").touch()
    if "HELD_IN_SECOND" in os.environ and len(list(Path(order.run_dir).parent.glob(f"*.{os.getpid()}"))) == 2:
        time.sleep(300)  # until it is killed
    for epoch in (1, 2):
        time.sleep(0.02)
        if should_prune(epoch, score):
            return TrialOutcome(is_pruned=True)
    if b == "w" and a == 5:
        return TrialOutcome(error="it does not train")
    folder = Path(order.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint-2").mkdir(exist_ok=True)
    history = [{"epoch": float(epoch), "eval_accuracy": score} for epoch in (1, 2)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    (folder / "metrics.json").write_text(json.dumps({"validation_accuracy": score}))
    with (folder.parent / "log").open("a") as log:
        log.write(f"{a}{b}\n")
    return TrialOutcome()


@pytest.fixture
def make_worker(open_study, tmp_path, monkeypatch):
    monkeypatch.setattr(worker_module, "run_trial", train_by_formula)

    def make(**options):
        study = open_study(**options)
        return Worker(study, None, "recipe.yaml", [], tmp_path / "sweep", study.space.num_trials)

    return make


def start(make_worker, **options):
    process = FORK.Process(target=lambda: make_worker(**options).run(), daemon=True)
    process.start()
    return process


@pytest.mark.parametrize("storage", ["journal.log", "sqlite"])
@pytest.mark.slow
def test_processes_share_a_grid_and_a_killed_one_loses_nothing(make_worker, open_study, tmp_path, storage):
    place = f"sqlite:///{tmp_path / 'study.db'}" if storage == "sqlite" else str(tmp_path / storage)
    num_trials, more = (8, "trials: 8\n") if storage == "sqlite" else (24, "")
    study = open_study(place, more=more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELD_IN_SECOND", "1")
        victim = start(make_worker, storage=place, more=more)
    processes = [victim, *(start(make_worker, storage=place, more=more) for _ in range(2))]
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob(f"sweep/trials/*.{victim.pid}"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(victim.pid, signal.SIGKILL)  # in the middle of its second training
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0]
    trials = study.trials()
    assert sorted(study.ordinal(trial.number) for trial in trials) == list(range(num_trials))
    assert [trial.params for trial in sorted(trials, key=root_of)] == study.space.grid()[:num_trials]
    assert sum(root_of(trial) != trial.number for trial in trials) == 1
    assert all(trial.state.is_finished() for trial in trials)
    assert not list(tmp_path.glob("sweep/trials/*/checkpoint-*"))


@pytest.mark.slow
def test_a_trial_that_fails_is_told_with_its_reason(make_worker):
    worker = make_worker()
    worker.run()
    (failed,) = [trial for trial in worker.study.trials() if trial.state == TrialState.FAIL]
    assert failed.params == {"a": 5, "b": "w"} and failed.user_attrs["error"] == "it does not train"


def test_trials_are_pruned_by_their_epochs(make_worker):
    worker = make_worker(sampler="random", more="trials: 12\npruner: {startup_trials: 3, warmup_epochs: 0}\n")
    worker.run()
    states = [trial.state for trial in worker.study.trials()]
    assert states.count(TrialState.PRUNED) >= 2 and states[:3] == [TrialState.COMPLETE] * 3
    assert len(states) == 12
    pruned = next(trial for trial in worker.study.trials() if trial.state == TrialState.PRUNED)
    assert list(pruned.intermediate_values) == [1]


@pytest.mark.slow
def test_a_training_that_was_finished_before_its_worker_was_killed_is_read(make_worker, open_study, tmp_path):
    open_study(worker="elsewhere:1:1").next_trial(24)
    run_dir = tmp_path / "sweep" / "trials" / "0000"
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.json").write_text('{"validation_accuracy": 42.0}')
    worker = make_worker()
    worker.study.patience = Patience(0.05, elsewhere=0.0)
    worker.run()
    found = {root_of(trial): trial.value for trial in worker.study.trials()}
    assert found[0] == 42.0 and len(found) == 24
    assert "0x" not in (run_dir.parent / "log").read_text().split()


def test_a_run_without_the_metric_is_no_success(make_worker, monkeypatch):
    def without_number(train, order, should_prune):
        Path(order.run_dir).mkdir(parents=True)
        Path(order.run_dir, "metrics.json").write_text('{"validation_accuracy": null}')
        return TrialOutcome()

    monkeypatch.setattr(worker_module, "run_trial", without_number)
    worker = make_worker(sampler="random", more="trials: 1\n")
    worker.run()
    (trial,) = worker.study.trials()
    assert trial.state == TrialState.FAIL and "no number for validation_accuracy" in trial.user_attrs["error"]


def test_a_finished_run_with_other_values_is_not_taken_for_the_trial(make_worker, tmp_path, monkeypatch):
    """As when the journal was lost, and the folders of its trials were not."""

    class Recipe:
        def __init__(self, values):
            self.values = values

        def leaves(self):
            return self.values

    run_dir = tmp_path / "sweep" / "trials" / "0000"
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.json").write_text('{"validation_accuracy": 42.0}')
    (run_dir / "recipe.yaml").write_text("")
    monkeypatch.setattr(
        worker_module, "load_recipe", lambda path, overrides=(): Recipe({"a": 0 if overrides else 3, "b": "x"})
    )
    worker = make_worker(more="trials: 1\n")
    worker.run()
    (trial,) = worker.study.trials()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["error"] == f"{run_dir} holds a run with other values (a=3); remove it"


def test_a_damaged_finished_run_is_no_result(make_worker, tmp_path):
    run_dir = tmp_path / "sweep" / "trials" / "0000"
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.json").write_text('{"validation_accuracy": 42.0}')
    mark_complete(run_dir)
    (run_dir / "metrics.json").write_text('{"validation_accuracy": 43.0}')
    worker = make_worker(more="trials: 1\n")
    worker.run()
    (trial,) = worker.study.trials()
    assert trial.user_attrs["error"] == f"{run_dir}: metrics.json is damaged; remove the folder"


@pytest.mark.parametrize("place", [0, 1, -2])
def test_a_damaged_journal_is_named_with_its_line(open_study, tmp_path, place):
    open_study().next_trial(4)
    path = tmp_path / "journal.log"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[place] = b"\x00" + lines[place][1:]
    path.write_bytes(b"".join(lines))
    with pytest.raises(DamagedError, match=rf"journal\.log: line {place % len(lines) + 1} is damaged"):
        open_study()


def test_half_a_line_of_a_killed_worker_is_no_damage(open_study, tmp_path):
    open_study().next_trial(4)
    with (tmp_path / "journal.log").open("ab") as file:
        file.write(b'{"op_code": 4, "worker')
    assert len(open_study().trials()) == 1


@pytest.mark.slow
def test_a_journal_that_was_cut_anywhere_ends_as_it_would_have(make_worker, open_study, tmp_path, monkeypatch):
    """Finished runs are read again, with the values of their epochs; what had not been chosen is chosen alike."""
    monkeypatch.setattr(worker_module, "load_recipe", lambda *_: SimpleNamespace(leaves=dict))
    options = {"sampler": "random", "more": "trials: 3\n"}

    def end():
        study = open_study(**options)
        return {
            study.ordinal(trial.number): (trial.state, trial.params, trial.values, trial.intermediate_values)
            for trial in study.trials()
        }

    worker = make_worker(**options)
    worker.run()
    whole, journal = end(), tmp_path / "journal.log"
    entries = journal.read_bytes().replace(worker.study.worker.encode(), b"elsewhere:1:1").splitlines(keepends=True)
    assert len(whole) == 3 and len(entries) > 20
    for kept in range(len(entries)):
        journal.write_bytes(b"".join(entries[:kept]))
        again = make_worker(**options)
        again.study.patience = Patience(0.05, elsewhere=0.0)
        again.run()
        assert end() == whole, entries[kept]
