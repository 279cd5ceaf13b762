"""Byte-level BPE tokenizers learnt from captions, for text towers and language models that start from nothing."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"
END_OF_TEXT_ID, PADDING_ID = 0, 1
TOWER_PAD, TOWER_END, TOWER_START = "<pad>", "<end_of_text>", "<start_of_text>"
TOWER_PAD_ID, TOWER_END_ID, TOWER_START_ID = range(3)


def train_caption_tokenizer(captions: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, which can write any script.

    Args:
        captions (`Iterable[str]`): What its merges are learnt from.
        vocab_size (`int`): Most tokens that it may have; fewer where the captions hold no more pairs.

    Returns:
        `PreTrainedTokenizerFast`: `<|endoftext|>` is its token 0, `<|pad|>` its token 1; it adds neither by itself.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def train_text_tokenizer(captions: Iterable[str], *, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
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
        # In this order: CLIPTextModel takes an end-of-text id of 2 to mean "the largest id in the text".
        special_tokens=[TOWER_PAD, TOWER_END, TOWER_START],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(captions), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{TOWER_START} $A {TOWER_END}",
        special_tokens=[(TOWER_START, TOWER_START_ID), (TOWER_END, TOWER_END_ID)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=TOWER_PAD,
        bos_token=TOWER_START,
        eos_token=TOWER_END,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
