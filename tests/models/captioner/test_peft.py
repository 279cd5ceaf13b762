"""A captioner is a causal language model to peft, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from mmhf.models.captioner import PrefixCaptionerForConditionalGeneration

Model = PrefixCaptionerForConditionalGeneration


def test_pefts_own_model_of_a_captioner_trains_writes_and_comes_back(
    model: Model, batch: dict[str, Any], folder: Path
) -> None:
    model.save_pretrained(folder / "base")
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    wrapped: Any = get_peft_model(model, config)
    before = wrapped(**batch).loss
    optimizer = torch.optim.AdamW([each for each in wrapped.parameters() if each.requires_grad], lr=0.1)
    for _ in range(2):
        loss = wrapped(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wrapped.eval()
    expected = wrapped(**batch).loss
    assert expected < before
    written = wrapped.generate(pixel_values=batch["pixel_values"])
    assert torch.equal(written, wrapped.generate(batch["pixel_values"]))

    wrapped.save_pretrained(folder / "adapter")
    loaded: Any = PeftModel.from_pretrained(Model.from_pretrained(folder / "base"), folder / "adapter").eval()
    assert torch.equal(loaded(**batch).loss, expected)
    assert torch.equal(loaded.generate(pixel_values=batch["pixel_values"]), written)
