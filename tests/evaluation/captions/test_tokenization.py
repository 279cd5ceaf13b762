from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmhf.evaluation.captions.tokenization import PUNCTUATION, coco_tokens

# What pycocoevalcap's tokenizer (Stanford CoreNLP 3.4.1 in Java, punctuation dropped) made of these captions.
AS_PTBTOKENIZER = {
    "A man (in a \"red\" shirt) isn't here; he's in.": "a man -lrb- in a red shirt -rrb- is n't here he 's in",
    "A two-year-old boy -- gonna eat 1/2 of it": "a two-year-old boy gon na eat 1/2 of it",
    "The dogs' toys don't, won't, can't, I'm, we've, they'll she'd": "the dogs toys do n't wo n't ca n't i 'm we 've "
    "they 'll she 'd",
    "don’t ‘quoted’ “double” o’clock": "do n't quoted double o’clock",
    "He cannot wait, 'tis 5:30 p.m. in the U.S. on e.g. Monday": "he can not wait 't is 5:30 p.m. in the u.s. on e.g. "
    "monday",
    "Mr. Smith's dog's leash...": "mr. smith 's dog 's leash",
    "hello...world what?! a -- b - c": "hello world what ?! a b c",
    "A basketball player for Miami U. pushes forward .": "a basketball player for miami u. pushes forward",
    "the letter B. The end. He is no. 5 and no.": "the letter b the end he is no. 5 and no",
    "a small child slides on a slip 'n' slide .": "a small child slides on a slip 'n' slide",
    "at&t AT&T R&B b&w M&M's": "at & t at&t r&b b & w m&m 's",
    "'90s 90's the 1990's 10:30am 10am 6ft 5x7": "'90s 90 's the 1990 's 10:30 am 10am 6ft 5x7",
    "10% $1.50 £5 €7 50¢ #1 1,000,000 -5 +5 5-6": "10 % $ 1.50 # 5 $ 7 50 cents # 1 1,000,000 -5 +5 5-6",
    "and/or he/she black/white 24/7": "and/or he/she black/white 24/7",
    "t- shirt half- eaten up-close": "t shirt half eaten up-close",
    "yellow, red,green and blue.orange;pink": "yellow red green and blue.orange pink",
    "[a] {b} <unk> < b > a_b": "-lsb- a -rsb- -lcb- b -rcb- <unk> < b > a_b",
    "@user #hash me@x.com http://x.com/a?b": "@user #hash me@x.com http://x.com/a?b",
    "café naïve straße русский שלום مرحبا 한국어 हिन्दी": "café naïve straße русский שלום مرحبا 한국어 हिन्दी",
    "Washington D.C. in Jan. 5 near St. Louis": "washington d.c. in jan. 5 near st. louis",
    "she's' 'hello' a man's' toy": "she 's hello a man 's toy",
    "": "",
    " \t . , ": "",
}

OTHER_THAN_PTBTOKENIZER = {
    "a dog😀 runs 👩‍👩‍👧 🇩🇪 👍🏽 1️⃣": ["a", "dog", "😀", "runs", "👩‍👩‍👧", "🇩🇪", "👍🏽", "1️⃣"],
    "狗在tokyo跑": ["狗", "在", "tokyo", "跑"],
    "いぬがカメラ": ["い", "ぬ", "が", "カ", "メ", "ラ"],
    "สุนัขวิ่ง": ["สุ", "นั", "ข", "วิ่", "ง"],
    "a\u200f b\u202e": ["a", "b"],
}


@pytest.mark.parametrize(("text", "expected"), AS_PTBTOKENIZER.items())
def test_tokens_are_those_of_the_java_tokenizer(text, expected):
    assert coco_tokens(text) == expected.split()


@pytest.mark.parametrize(("text", "expected"), OTHER_THAN_PTBTOKENIZER.items())
def test_emoji_are_kept_and_scripts_without_spaces_are_cut(text, expected):
    assert coco_tokens(text) == expected


def test_a_long_line_without_spaces_takes_linear_time():
    started = time.process_time()
    assert len(coco_tokens("狗" * 20_000 + "a." * 20_000 + "x" * 20_000)) > 20_000
    assert time.process_time() - started < 5


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_gives_lower_case_tokens_without_blanks_or_punctuation(text):
    tokens = coco_tokens(text)
    assert all(token and token.split() == [token] and token not in PUNCTUATION for token in tokens)
    assert tokens == coco_tokens(f"  {text}\n")


@given(st.lists(st.sampled_from(["a", "dog", "runs", "t-shirt", "狗", "كلب", "red", "5"]), max_size=30))
def test_plain_words_are_tokens_as_they_are(words):
    assert coco_tokens(" ".join(words)) == words
