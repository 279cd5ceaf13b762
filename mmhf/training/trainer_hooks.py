"""What mmhf overrides and reads of the private side of `transformers.Trainer`, and what will retire each override."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class PrivateHook(NamedTuple):
    """A private method of `transformers.Trainer` that mmhf overrides."""

    parameters: tuple[str, ...]
    """As of transformers 5.24."""
    reason: str
    retired_by: str


PRIVATE_HOOKS: Mapping[str, PrivateHook] = {
    "_init_training_state": PrivateHook(
        ("max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"),
        "a resumed run goes on at an epoch and a sample, among epochs that may have unlike numbers of steps",
        "a Trainer that asks a public method where to go on",
    ),
    "_run_epoch": PrivateHook(
        (
            "model",
            "epoch",
            "train_dataloader",
            "steps_in_epoch",
            "num_update_steps_per_epoch",
            "trial",
            "ignore_keys_for_eval",
            "start_time",
            "resume_from_checkpoint",
            "epochs_trained",
            "steps_trained_in_current_epoch",
        ),
        "each stage has its own data loader; a run that is resumed after its end takes no further step",
        "a Trainer that asks for a data loader in each epoch and heeds `should_training_stop` of `on_train_begin` "
        "(docs/upstream/one_step_too_many.py)",
    ),
    "_clip_grad_norm": PrivateHook(
        ("model",),
        "Trainer goes through all modules, frozen ones included, three times a step: most of one without an encoder",
        "a Trainer that clips the parameters that have gradients",
    ),
    "_build_accelerator_args": PrivateHook(
        ("kwargs",),
        "accelerate would compile the model whole, which takes minutes; a stage compiles the layers that repeat",
        "a Trainer that compiles by region in place",
    ),
    "_issue_warnings_after_load": PrivateHook(
        ("load_result",),
        "a captioner's checkpoint leaves frozen backbones out, and what is tied, which is no reason for a warning",
        "a Trainer that knows tied weights and `_keys_to_ignore_on_save` together",
    ),
}
"""All that is overridden of Trainer's private methods; a test compares it with the code and with Trainer."""

PRIVATE_ATTRIBUTES = ("_train_batch_size", "_created_lr_scheduler", "_globalstep_last_logged")
"""What is read or set of Trainer's private attributes."""
