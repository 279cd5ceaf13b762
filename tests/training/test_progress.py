import logging
import re
from types import SimpleNamespace

import pytest

from mmhf.recipe.training_sections import PlateauSection
from mmhf.training.progress import NotebookProgress, StageSpeed
from mmhf.training.stages import Stage

STALLS = PlateauSection(metric="loss", patience=1, min_delta=100.0)
STAGES = [
    Stage(name="head", epochs=5, train="head", learning_rate=1e-3, unfreeze_on_plateau=STALLS),
    Stage(name="all", epochs=1, learning_rate={"body": 1e-4, "body.1": 5e-4, "head": 1e-3}),
]


@pytest.fixture
def lines(tiny_model, tiny_data, make_trainer, fusion_recipe, tmp_path, caplog):
    trainer = make_trainer(
        tiny_model, tiny_data, tmp_path, stages=STAGES, recipe=fusion_recipe(), eval_strategy="epoch"
    )
    with caplog.at_level(logging.INFO, "mmhf"):
        trainer.train()
    return [message for message in caplog.messages if re.match(r"\w+ \(\d/2\): step", message)]


def test_lines_count_to_where_the_run_ends_once_a_stage_was_cut_short(lines):
    counts = [re.search(r"step (\d+) of (\d+)", line).groups() for line in lines]
    assert counts[0][1] == "36" and {total for step, total in counts if int(step) > 12} == {"18"}
    assert counts[-1] == ("18", "18") and lines[-1].endswith("00:00 left")


def test_rates_take_no_more_room_than_prefixes(lines):
    assert "lr head=1.0e-03, " in lines[0]
    assert "lr body=1.0e-04..5.0e-04 head=1.0e-03, " in lines[-1]


def test_evaluations_take_time_but_no_speed(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("mmhf.training.progress.time.monotonic", lambda: clock[0])
    plan = SimpleNamespace(stages=[1], last_step=140, spans=lambda: [(0, 140)])
    speed = StageSpeed(SimpleNamespace(plan=plan, current=SimpleNamespace(index=0)))
    for step in range(100):
        speed.step_begins(step)
        clock[0] += 0.5
        speed.step_ends(step + 1)
        clock[0] += 5.0 if step % 10 == 9 else 0.0
    assert speed.per_second() == pytest.approx(2.0)
    told = speed.left(100)
    assert "00:36" <= told.removesuffix(" left") <= "00:40", told  # 40 steps and 4 evaluations


def test_speed_is_that_of_the_last_steps_of_the_stage(monkeypatch):
    """A stage whose first step fills a store for 100 s, then makes 8 steps a second; the next one makes one."""
    clock = [0.0]
    monkeypatch.setattr("mmhf.training.progress.time.monotonic", lambda: clock[0])
    plan = SimpleNamespace(stages=[1, 2], last_step=300, spans=lambda: [(0, 200), (200, 300)])
    stages = SimpleNamespace(plan=plan, current=SimpleNamespace(index=0))
    speed = StageSpeed(stages)
    for step in range(100):
        speed.step_begins(step)
        clock[0] += 100.0 if step == 0 else 0.125
        speed.step_ends(step + 1)
    assert speed.per_second() == pytest.approx(8.0) and speed.left(100) == "00:12 left in the stage"
    stages.current.index = 1
    for step in range(200, 210):
        speed.step_begins(step)
        clock[0] += 1.0
        speed.step_ends(step + 1)
    assert speed.per_second() == pytest.approx(1.0) and speed.left(210) == "01:30 left"


@pytest.mark.slow
def test_a_bar_has_stage_loss_rates_and_what_is_left(
    tiny_model, tiny_data, make_trainer, fusion_recipe, tmp_path, capfd, caplog
):
    trainer = make_trainer(
        tiny_model,
        tiny_data,
        tmp_path,
        stages=STAGES[1:],
        recipe=fusion_recipe(),
        eval_strategy="epoch",
        disable_tqdm=False,
    )
    with caplog.at_level(logging.INFO, "mmhf"):
        trainer.train()
    bar = capfd.readouterr().err
    told = r"all \(1/1\).*left, loss \d\.\d+, lr body=1\.0e-04\.\.5\.0e-04 head=1\.0e-03, \d+ samples/s"
    assert re.search(told, bar), bar
    assert "evaluating" in bar
    assert [each for each in caplog.messages if each.startswith("Validation after step 6: loss ")]


def test_a_notebook_shows_one_block_that_changes(monkeypatch):
    pytest.importorskip("IPython")
    shown = []
    handle = SimpleNamespace(update=lambda page: shown.append(page.data))
    monkeypatch.setattr("IPython.display.display", lambda *args, **kwargs: handle)
    plan = SimpleNamespace(stages=[1], last_step=10, spans=lambda: [(0, 10)])
    stages = SimpleNamespace(plan=plan, current=SimpleNamespace(index=0, stage=SimpleNamespace(name="all")))
    progress, state = NotebookProgress(stages), SimpleNamespace(global_step=4)
    state.is_world_process_zero = True
    progress.on_train_begin(None, state, None)
    progress.on_evaluate(None, state, None, metrics={"eval_loss": 0.75})  # eval_on_start
    assert "? left" in shown.pop() and not shown
    progress.on_step_begin(None, state, None)
    progress.on_step_end(None, state, None)
    progress.on_log(None, state, None, logs={"loss": 0.5})
    progress.on_evaluate(None, state, None, metrics={"eval_loss": 0.25, "eval_accuracy": 1.0, "eval_runtime": 3.0})
    progress.on_train_end(None, state, None)
    assert "step 4 of 10, loss 0.5000" in shown[0] and "all (1/1), " in shown[0] and "0.7500" in shown[0]
    assert "<td>4</td><td>0.2500</td><td>1.0000</td>" in shown[-1] and "runtime" not in shown[-1]
    assert "done" in shown[-1] and len(shown) == 3
