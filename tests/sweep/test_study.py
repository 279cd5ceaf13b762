import socket

import pytest
from optuna.trial import TrialState

from mmhf.errors import InputError
from mmhf.sweep import Patience
from mmhf.sweep.study import ROOT, root_of

GONE = f"{socket.gethostname()}:999999:1"


@pytest.fixture(params=["journal", "sqlite"])
def storage(request, tmp_path):
    return str(tmp_path / "journal.log") if request.param == "journal" else f"sqlite:///{tmp_path / 'study.db'}"


def states(study):
    return [(root_of(trial), trial.state.name) for trial in study.trials()]


@pytest.mark.slow
def test_workers_never_get_the_same_point(open_study, storage):
    first, second = open_study(storage), open_study(storage, worker="other:1:1")
    points = [worker.next_trial(8).params for _ in range(4) for worker in (first, second)]
    assert points == first.space.grid()[:8]
    assert first.next_trial(8) is None and second.next_trial(8) is None
    assert not first.is_finished()


@pytest.mark.slow
def test_a_trial_whose_worker_is_gone_is_run_again_with_its_values_once(open_study, storage):
    lost = open_study(storage, worker=GONE).next_trial(24)
    lost.report(0.5, 1)
    there = open_study(storage, worker="other:1:1", patience=Patience(here=100))
    assert there.next_trial(2).params != lost.params  # its worker has only just fallen silent
    here = open_study(storage)
    retry = here.next_trial(2)
    assert retry.params == lost.params and root_of(here.trials()[-1]) == lost.number
    assert here.trials()[-1].intermediate_values == {1: 0.5}
    assert there.next_trial(2) is None
    assert states(here) == [(1, "RUNNING"), (0, "RUNNING")]


def test_a_trial_of_another_machine_is_left_alone_while_it_gives_signs_of_life(open_study):
    open_study(worker="elsewhere:1:1").next_trial(1)
    assert open_study(patience=Patience(elsewhere=100)).next_trial(1) is None
    assert open_study(patience=Patience(elsewhere=0)).next_trial(1) is not None


def test_a_worker_that_lives_keeps_its_silent_trial(open_study):
    alive = open_study()
    alive.next_trial(1)
    assert open_study(worker="other:1:1").next_trial(1) is None


def test_who_comes_second_to_a_lost_trial_drops_its_retry(open_study, monkeypatch):
    open_study(worker=GONE).next_trial(1)
    fast, slow = open_study(), open_study(worker="other:1:1")
    seen = slow.trials()
    retry = fast.next_trial(1)
    monkeypatch.setattr(slow, "trials", lambda: seen)  # as if it had looked before
    assert slow.next_trial(1) is None
    assert states(fast) == [(0, "RUNNING")] and fast.trials()[0].number == retry.number
    assert sum(ROOT in trial.user_attrs for trial in fast._all()) == 2


def test_a_trial_that_ended_after_all_is_not_run_again(open_study, monkeypatch):
    quick = open_study(worker=GONE)
    trial = quick.next_trial(1)
    other = open_study()
    seen = other.trials()
    trial.study.tell(trial, 0.7)
    monkeypatch.setattr(other, "trials", lambda: seen)
    assert other.next_trial(1) is None
    assert states(quick) == [(0, "COMPLETE")] and quick.is_finished()


def test_a_retry_that_is_lost_too_is_run_again(open_study):
    for pid in (999999, 999998, 999997):
        trial = open_study(worker=f"{socket.gethostname()}:{pid}:1").next_trial(1)
        assert trial is not None
    final = open_study().next_trial(1)
    assert final.params == {"a": 0, "b": "x"} and states(open_study()) == [(0, "RUNNING")]


def test_random_values_depend_on_the_trial_and_not_on_the_worker(open_study, tmp_path):
    alone = open_study(str(tmp_path / "1.log"), sampler="random")
    expected = [alone.next_trial(6).params for _ in range(6)]
    pair = [open_study(str(tmp_path / "2.log"), sampler="random", worker=name) for name in ("h:1:1", "h:2:2")]
    assert [pair[at % 2].next_trial(6).params for at in range(6)] == expected
    assert len({tuple(params.values()) for params in expected}) > 2


def test_tpe_learns_from_what_other_workers_found(open_study):
    """a = 5 is best; after 40 trials by two workers the second half should know."""
    workers = [open_study(sampler="tpe", worker=name) for name in ("h:1:1", "h:2:2")]
    for at in range(40):
        trial = workers[at % 2].next_trial(40)
        trial.study.tell(trial, trial.params["a"])
    found = [trial.params["a"] for trial in workers[0].trials()]
    assert sum(found[20:]) / 20 > 3.7
    assert all(trial.state == TrialState.COMPLETE for trial in workers[0].trials())


def test_pruning_compares_epochs(open_study):
    study = open_study(more="pruner: {kind: median, startup_trials: 2, warmup_epochs: 1}\n")
    for value in (0.8, 0.9, 0.1):
        trial = study.next_trial(3)
        stops = []
        for epoch in (1, 2):
            trial.report(value, epoch)
            stops.append(bool(trial.should_prune()))
        assert stops == [False, value == 0.1]
        trial.study.tell(trial, value)


def test_another_space_or_recipe_is_refused(open_study):
    open_study()
    with pytest.raises(InputError, match="another recipe"):
        open_study(recipe="task: y")
    with pytest.raises(InputError, match="another space"):
        open_study(sampler="random")
    open_study(more="trials: 3\n")


def test_a_database_that_cannot_be_used_is_named(open_study):
    with pytest.raises(InputError, match="--storage nodb://x: cannot be used"):
        open_study("nodb://x")
