"""A checkpoint knows its files: a damaged one is named, and the next older one is taken."""

import logging

import pytest

from mmhf.damage import find_damage
from mmhf.errors import InputError
from mmhf.training.checkpoints import complete_checkpoints, last_complete_checkpoint


@pytest.fixture
def run_dir(make_trainer, tiny_model, tiny_data, tmp_path):
    make_trainer(tiny_model, tiny_data, tmp_path, save_steps=9).train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-9", "checkpoint-18"}
    return tmp_path


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model.safetensors", flip, "model.safetensors is damaged"),
        ("optimizer.pt", cut, "optimizer.pt has .* bytes"),
        ("optimizer.pt", lambda path: path.unlink(), "optimizer.pt is missing"),
        ("rng_state.pth", flip, "rng_state.pth is damaged"),
        ("trainer_state.json", flip, "trainer_state.json is damaged"),
        ("position.json", lambda path: path.unlink(), "position.json is missing"),
        ("complete", cut, "complete is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_by_name(run_dir, caplog, name, damage, words):
    damage(run_dir / "checkpoint-18" / name)
    with caplog.at_level(logging.WARNING, "mmhf"):
        assert last_complete_checkpoint(run_dir).name == "checkpoint-9"
    (message,) = (record.getMessage() for record in caplog.records if record.name.startswith("mmhf"))
    assert "checkpoint-18" in message
    with pytest.raises(InputError, match=words):
        flip(run_dir / "checkpoint-9" / "model.safetensors")
        last_complete_checkpoint(run_dir)


def test_a_checkpoint_that_was_not_written_to_its_end_is_none(run_dir):
    (run_dir / "checkpoint-18" / "complete").unlink()
    assert [path.name for path in complete_checkpoints(run_dir)] == ["checkpoint-9"]


def test_a_checkpoint_of_a_version_without_hashes_is_taken_as_it_is(run_dir):
    (run_dir / "checkpoint-18" / "complete").write_bytes(b"")
    flip(run_dir / "checkpoint-18" / "model.safetensors")
    assert find_damage(run_dir / "checkpoint-18") is None
