"""Byte-level BPE tokenizers learnt from captions."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, END, START = "<pad>", "<end_of_text>", "<start_of_text>"
# In this order: CLIPTextModel takes an end-of-text id of 2 to mean "the largest id in the text".
_SPECIAL_TOKENS = [PAD, END, START]
PAD_ID, END_ID, START_ID = range(3)


def train_tokenizer(captions: Iterable[str], *, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Learn a lower-casing byte-level BPE tokenizer, which knows every text.

    The same captions give the same tokenizer, in any order and on any machine.

    Args:
        captions (`Iterable[str]`): What it learns from.
        vocab_size (`int`): Most tokens; few captions give fewer.
        max_length (`int`): Longest text in tokens, start and end included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=_SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(captions), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, START_ID), (END, END_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
