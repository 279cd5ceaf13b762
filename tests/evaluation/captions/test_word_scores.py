from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nltk
import pytest
from nltk.corpus import wordnet
from nltk.translate.meteor_score import meteor_score

from mmhf.evaluation.captions import caption_metrics, coco_tokens, evaluate_captions

PREDICTIONS = ["a hound runs quickly", "two dogs running", ""]
REFERENCES = [["a dog runs quickly", "a cat"], ["two dogs run in the park"], ["a dog"]]

# One synset of a WordNet in its own file format (wndb(5WN)): hound and dog mean the same.
_DATA = "{offset:08d} 00 n 02 dog 0 hound 0 000 | an animal that barks  \n"
_LEXNAMES = "00\tnoun.animal\t1\n"


@pytest.fixture
def tiny_wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    for part in ("noun", "verb", "adj", "adv"):
        for name in (f"data.{part}", f"index.{part}", f"{part}.exc"):
            (folder / name).write_text("")
    (folder / "data.noun").write_text(_DATA.format(offset=0))
    (folder / "index.noun").write_text("".join(f"{word} n 1 0 1 0 00000000  \n" for word in ("dog", "hound")))
    (folder / "lexnames").write_text(_LEXNAMES)
    (folder / "index.sense").write_text("")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    yield
    # nltk replaces the lazy corpus by the one it has loaded.
    wordnet._unload()


def test_meteor_is_nltk_s_and_knows_synonyms(tiny_wordnet):
    evaluation = evaluate_captions(PREDICTIONS, REFERENCES, resamples=10)
    expected = [
        meteor_score([coco_tokens(text) for text in of_image], coco_tokens(prediction)) if prediction else 0.0
        for prediction, of_image in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    assert evaluation.per_image["meteor"] == pytest.approx(expected)
    assert "meteor" not in evaluation.undefined
    other = caption_metrics(["a zebra runs quickly", *PREDICTIONS[1:]], REFERENCES)
    assert evaluation.metrics["meteor"] > other["meteor"]


def test_without_wordnet_meteor_is_left_out_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    evaluation = evaluate_captions(PREDICTIONS, REFERENCES, resamples=10)
    assert "meteor" not in evaluation.metrics
    assert "python -m nltk.downloader wordnet" in evaluation.undefined["meteor"]
