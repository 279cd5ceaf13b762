import os
import signal

import pytest

from mmhf.errors import InputError
from mmhf.sweep import trial_process
from mmhf.sweep.trial_process import PrunedTrialError, TrialOrder, TrialOutcome, run_trial

FORK = trial_process.multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    """A server that imports torch takes seconds; a fork of this process has it already."""
    monkeypatch.setattr(trial_process, "_CONTEXT", FORK)


class State:
    is_world_process_zero = True

    def __init__(self, epoch):
        self.epoch = epoch


def order(run_dir):
    return TrialOrder("recipe.yaml", ["a=1"], str(run_dir), "accuracy")


def evaluate(callbacks, *values):
    for epoch, value in enumerate(values, 1):
        callbacks[0].on_evaluate(None, State(epoch), None, metrics={"eval_accuracy": value, "eval_loss": 9.0})


def test_evaluations_reach_the_sweep_and_a_pruned_training_stops(tmp_path):
    def train(order, callbacks):
        evaluate(callbacks, 0.5, 0.25, 0.125)
        (tmp_path / "went on").touch()

    seen = []
    outcome = run_trial(train, order(tmp_path), lambda *reported: seen.append(reported) or len(seen) == 2)
    assert outcome == TrialOutcome(is_pruned=True)
    assert seen == [(1, 0.5), (2, 0.25)] and not (tmp_path / "went on").exists()


def test_a_training_that_ends_well(tmp_path):
    outcome = run_trial(lambda order, callbacks: evaluate(callbacks, 0.5), order(tmp_path), lambda *_: False)
    assert outcome == TrialOutcome()


def test_a_refused_recipe_is_told_in_its_own_words(tmp_path):
    def train(order, callbacks):
        raise InputError("recipe.yaml:3: model.fusion: impossible\nmore")

    outcome = run_trial(train, order(tmp_path), lambda *_: False)
    assert outcome.error == "recipe.yaml:3: model.fusion: impossible"


@pytest.mark.parametrize("ending", ["raises", "killed"])
def test_a_training_that_dies_leaves_the_sweep_alive(tmp_path, ending, capfd):
    def train(order, callbacks):
        evaluate(callbacks, 0.5)
        if ending == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("out of memory")

    outcome = run_trial(train, order(tmp_path), lambda *_: False)
    assert outcome.error == f"its process ended with code {-9 if ending == 'killed' else 1}"


def test_what_the_sweep_raises_ends_the_training(tmp_path):
    def train(order, callbacks):
        (tmp_path / "pid").write_text(str(os.getpid()))
        evaluate(callbacks, 0.5)

    def taken_over(epoch, value):
        raise PrunedTrialError

    with pytest.raises(PrunedTrialError):
        run_trial(train, order(tmp_path), taken_over)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_training_ends_with_a_sweep_that_was_killed(tmp_path):
    def train(order, callbacks):
        (tmp_path / "pid").write_text(str(os.getpid()))
        signal.pause()

    sweep = FORK.Process(target=run_trial, args=(train, order(tmp_path), None))
    sweep.start()
    pid = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    sweep.kill()
    sweep.join()
    wait_for(lambda: has_ended(pid))


def wait_for(condition):
    import time

    deadline = time.monotonic() + 300
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def has_ended(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
