from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mmhf.models.tokenizers import train_text_tokenizer


def test_the_order_of_captions_does_not_matter(captions: list[str]) -> None:
    one, other = (train_text_tokenizer(texts, vocab_size=500, max_length=16) for texts in (captions, captions[::-1]))
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()


def test_special_tokens_and_the_end_of_a_text_that_is_cut(captions: list[str], tmp_path: Path) -> None:
    train_text_tokenizer(captions, vocab_size=500, max_length=6).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 500
    ids = tokenizer("smiling face with smiling eyes and a hat", truncation=True)["input_ids"]
    assert len(ids) == 6
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.eos_token_id != 2
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}


SESSION_TOKENIZER = train_text_tokenizer(
    ["a red heart", "a dog", "ein Hund läuft"] * 3, vocab_size=300, max_length=512
)


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_every_text_can_be_read_back(text: str) -> None:
    ids = SESSION_TOKENIZER(text)["input_ids"]
    normalised = SESSION_TOKENIZER.backend_tokenizer.normalizer.normalize_str(text)
    assert SESSION_TOKENIZER.decode(ids[1:-1], clean_up_tokenization_spaces=False).removeprefix(
        " "
    ) == normalised.removeprefix(" ")
