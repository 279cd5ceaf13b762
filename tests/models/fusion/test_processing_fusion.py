from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from mmhf.models.fusion import FusionProcessor
from mmhf.models.fusion.building import build_fusion_processor
from mmhf.recipe.data_sections import SampleDataSection
from mmhf.recipe.fusion_recipe import FusionModelSection

SECTION = FusionModelSection.model_validate(
    {
        "vision": {"backbone": "pypi/efficientnet-lite0"},
        "text": {"backbone": "pypi/all-minilm-l6-v2", "pooling": "mean"},
    }
)
TEXTS = ["hello", "a much longer text that has to be cut because it goes on and on", ""]


def processor_for(**data) -> FusionProcessor:
    return build_fusion_processor(SECTION, SampleDataSection(source="sample", **data))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_shapes_dtypes_padding_and_truncation():
    batch = processor_for(image_size=64, max_length=10)(images=[noise(50, 80), noise(10, 9), noise(1, 1)], text=TEXTS)
    assert list(batch) == ["pixel_values", "input_ids", "attention_mask"]
    assert batch["pixel_values"].shape == (3, 3, 64, 64) and batch["pixel_values"].dtype == torch.float32
    assert batch["input_ids"].shape == (3, 10) and batch["input_ids"].dtype == torch.int64
    assert batch["attention_mask"].sum(1).tolist() == [3, 10, 2]
    short = processor_for(max_length=10)(images=[noise(9, 9)] * 2, text=["hello", "hello there"])
    assert short["input_ids"].shape == (2, 4), "padded to the longest of the batch only"


def test_one_pair_is_a_batch_of_one():
    batch = processor_for(image_size=32)(images=noise(9, 9), text="hello")
    assert batch["pixel_values"].shape == (1, 3, 32, 32) and batch["input_ids"].shape == (1, 3)


def test_either_alone_and_neither():
    processor = processor_for()
    assert list(processor(text=["hello"])) == ["input_ids", "attention_mask"]
    assert list(processor(images=[noise(9, 9)])) == ["pixel_values"]
    with pytest.raises(ValueError, match="needs images, text or both"):
        processor()
    with pytest.raises(ValueError, match="1 images for 2 texts"):
        processor(images=[noise(9, 9)], text=["a", "b"])


def test_squash_keeps_the_whole_image_and_crop_its_centre():
    image = Image.new("RGB", (90, 30), (255, 0, 0))
    image.paste((0, 0, 255), (30, 0, 60, 30))
    squashed = processor_for(image_size=30)(images=[image])["pixel_values"][0]
    cropped = processor_for(image_size=30, resize="crop")(images=[image])["pixel_values"][0]
    assert squashed[0, 15, 1] == 1 and squashed[2, 15, 15] == 1
    assert cropped[2].eq(1).all() and cropped[0].eq(-1).all()


def test_a_rectangle_is_given_by_height_and_width():
    image = Image.new("RGB", (90, 30), (255, 0, 0))
    image.paste((0, 0, 255), (45, 0, 90, 30))
    pixels = processor_for(image_size=(20, 40))(images=[image])["pixel_values"][0]
    assert pixels.shape == (3, 20, 40)
    assert pixels[0, :, 1].eq(1).all() and pixels[2, :, 38].eq(1).all()


def test_normalisation_is_that_of_the_backbone():
    pixels = processor_for(image_size=16)(images=[Image.new("RGB", (8, 8), (255, 0, 51))])["pixel_values"][0]
    assert torch.allclose(pixels.mean((1, 2)), torch.tensor([1.0, -1.0, -0.6]), atol=1e-6)


def test_a_tensor_of_the_right_size_equals_the_image():
    image, processor = noise(32, 32), processor_for(image_size=32)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(processor(images=[tensor])["pixel_values"], processor(images=[image])["pixel_values"])


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_saved_equals_loaded(resize, tmp_path):
    processor = processor_for(image_size=48, max_length=7, resize=resize)
    processor.save_pretrained(tmp_path / "first")
    images = [noise(50, 80), noise(91, 33, seed=1), noise(48, 48, seed=2)]
    expected = processor(images=images, text=TEXTS)
    for loader in (FusionProcessor, AutoProcessor):
        loaded = loader.from_pretrained(tmp_path / "first")
        assert type(loaded) is FusionProcessor and loaded.max_length == 7
        actual = loaded(images=images, text=TEXTS)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
    loaded.save_pretrained(tmp_path / "second")
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_max_length_stays_within_what_the_tokenizer_takes():
    assert processor_for(max_length=100_000).max_length == 512
