"""A tokenizer made from captions, for a language model that is trained from nothing."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"
END_OF_TEXT_ID, PADDING_ID = 0, 1


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
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
