from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from mmhf.data.images import BadImageError
from mmhf.evaluation.captions import ClipScorer, clip_scores

CAPTIONS = ["grinning face", "red apple", "", "dog face", "cat " * 200]


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory: pytest.TempPathFactory, text_encoder_dir: Path) -> Path:
    """A CLIP of 2 layers, width 32, that reads 16 tokens."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = AutoTokenizer.from_pretrained(text_encoder_dir)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ends = {"pad_token_id": 0, "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**sizes, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=24,
    )
    model = CLIPModel(config)
    model.text_projection.weight.data.neg_()  # with this seed all cosines were negative, which score 0
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in CAPTIONS]


def test_the_score_is_the_cosine_of_the_model_s_own_logits(clip_dir, images):
    scorer = ClipScorer.from_pretrained(str(clip_dir), batch_size=2)
    processor = CLIPProcessor.from_pretrained(clip_dir)
    inputs = processor(
        text=[f"A photo depicts {caption}" for caption in CAPTIONS],
        images=images,
        padding="max_length",
        truncation=True,
        max_length=16,
        return_tensors="pt",
    )
    with torch.no_grad():
        output = scorer.model.cpu()(**inputs)
    cosines = output.logits_per_image.diag() / scorer.model.logit_scale.exp()
    expected = 2.5 * cosines.clamp(min=0).detach().numpy()
    expected[2] = 0  # an empty caption
    scores = scorer.score(images, CAPTIONS)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores.std() > 0


def test_images_are_opened_from_files_and_a_broken_one_is_named(clip_dir, images, tmp_path):
    scorer = ClipScorer.from_pretrained(str(clip_dir))
    images[0].save(tmp_path / "a.png")
    score = scorer.score([tmp_path / "a.png"], CAPTIONS[:1])
    np.testing.assert_allclose(score, scorer.score(images[:1], CAPTIONS[:1]), atol=1e-6)
    with pytest.raises(BadImageError):
        scorer.score([tmp_path / "absent.png"], CAPTIONS[:1])
    with pytest.raises(ValueError, match="1 images, but 2 captions"):
        scorer.score(images[:1], CAPTIONS[:2])


def test_embeddings_that_point_apart_or_nowhere_score_0():
    images = [[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]
    texts = [[3.0, 0.0], [-1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]
    np.testing.assert_allclose(clip_scores(images, texts), [2.5, 0, 2.5 / np.sqrt(2), 0])
