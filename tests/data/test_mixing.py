from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmhf.data.mixing import BatchMixer, build_mixer
from mmhf.data.samplers import SampleKey
from mmhf.recipe.augment_sections import AugmentSection

CLASSES = 5


def batch(size: int, side: int = 8) -> tuple[torch.Tensor, torch.Tensor, list[SampleKey]]:
    """Image i is filled with the number i."""
    pixels = torch.arange(size).float().reshape(-1, 1, 1, 1).expand(size, 3, side, side).clone()
    return pixels, torch.arange(size) % CLASSES, [SampleKey(10 + number, 3) for number in range(size)]


kinds = st.sampled_from([{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])


@settings(max_examples=60, deadline=None)
@given(kinds, st.integers(1, 9), st.integers(0, 50), st.lists(st.integers(0, 8), max_size=9))
def test_labels_say_what_the_image_is_made_of(kind, size, seed, ignored):
    pixels, labels, keys = batch(size)
    labels[[number for number in ignored if number < size]] = -100
    original = pixels.clone()
    # One class an image, so that the probabilities tell which images were mixed.
    classes = torch.where(labels >= 0, torch.arange(size), labels)
    mixed, soft = BatchMixer(size, seed=seed, **kind)(pixels, classes, keys)
    assert torch.equal(pixels, original)
    assert soft.dtype == torch.float32 and soft.shape == (size, size)
    counted = labels >= 0
    assert torch.allclose(soft.sum(dim=1), counted.float())
    assert torch.equal(mixed[~counted], pixels[~counted])
    # The mean of an image is the mixture of the numbers that it is made of.
    expected = soft @ torch.arange(size).float()
    assert torch.allclose(mixed.mean(dim=(1, 2, 3))[counted], expected[counted], atol=1e-4)


@pytest.mark.parametrize("kind", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_several_labels_are_mixed_like_the_images(kind):
    pixels, classes, keys = batch(7)
    one_hot = torch.eye(CLASSES)[classes]
    one_hot[2] = -100
    classes[2] = -100
    mixed, expected = BatchMixer(CLASSES, seed=4, **kind)(pixels, classes, keys)
    again, soft = BatchMixer(CLASSES, seed=4, **kind)(pixels, one_hot, keys)
    assert torch.equal(again, mixed)
    counted = classes >= 0
    torch.testing.assert_close(soft[counted], expected[counted])
    assert (soft[~counted] < 0).all(), "without a loss"


def test_mixup_mixes_whole_images_and_cutmix_pastes_one_rectangle():
    pixels, labels, keys = batch(6)
    mixed, _ = BatchMixer(CLASSES, mixup=1.0, seed=1)(pixels, labels, keys)
    assert all(len(image.unique()) == 1 for image in mixed)
    assert not torch.equal(mixed, pixels)
    pasted, _ = BatchMixer(CLASSES, cutmix=1.0, seed=1)(pixels, labels, keys)
    foreign = pasted != pixels
    changed = [image[0] for image in foreign if image.any()]
    assert changed
    for image in changed:
        rows, columns = torch.nonzero(image.any(dim=1)).flatten(), torch.nonzero(image.any(dim=0)).flatten()
        assert image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert image.sum() == len(rows) * len(columns)


def test_seed_epoch_and_rows_decide_and_the_global_state_is_untouched():
    pixels, labels, keys = batch(6)
    mixer = pickle.loads(pickle.dumps(BatchMixer(CLASSES, mixup=0.5, cutmix=0.5, seed=1)))
    torch.manual_seed(0)
    np.random.seed(0)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    mixed, soft = mixer(pixels, labels, keys)
    assert torch.equal(torch.get_rng_state(), torch_state) and np.array_equal(np.random.get_state()[1], numpy_state)
    torch.manual_seed(5)
    again, soft_again = mixer(pixels, labels, keys)
    assert torch.equal(again, mixed) and torch.equal(soft_again, soft)
    other_epoch = mixer(pixels, labels, [key._replace(epoch=4) for key in keys])
    other_seed = BatchMixer(CLASSES, mixup=0.5, cutmix=0.5, seed=2)(pixels, labels, keys)
    other_rows = mixer(pixels, labels, [key._replace(index=key.index + 1) for key in keys])
    for other, _ in (other_epoch, other_seed, other_rows):
        assert not torch.equal(other, mixed)


def test_shares_follow_the_beta_distribution():
    pixels, labels, _ = batch(2)
    shares = []
    for epoch in range(600):
        soft = BatchMixer(CLASSES, mixup=2.0)(pixels, labels, [SampleKey(0, epoch), SampleKey(1, epoch)])[1]
        if soft[0, 0] < 1:  # the two were not each their own partner
            shares.append(float(soft[0, 0]))
    assert np.mean(shares) == pytest.approx(0.5, abs=0.04)
    assert np.var(shares) == pytest.approx(1 / 20, abs=0.01)  # a b / ((a + b)^2 (a + b + 1))


def test_a_share_of_the_batches_and_either_kind():
    pixels, labels, _ = batch(4)
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for epoch in range(300):
        keys = [SampleKey(number, epoch) for number in range(4)]
        mixed, soft = BatchMixer(CLASSES, mixup=1.0, cutmix=1.0, probability=0.5)(pixels, labels, keys)
        if torch.equal(mixed, pixels):
            kinds["none"] += 1
        else:
            kinds["mixup" if all(len(image.unique()) == 1 for image in mixed) else "cutmix"] += 1
    assert kinds["none"] == pytest.approx(150, abs=40)
    assert min(kinds["mixup"], kinds["cutmix"]) > 45


def test_the_recipe_decides_what_is_on():
    assert build_mixer(None, CLASSES, seed=0) is None
    assert build_mixer(AugmentSection(horizontal_flip=0.5), None, seed=0) is None
    mixer = build_mixer(AugmentSection(mixup=0.2, mix_probability=0.3), CLASSES, seed=7)
    assert (mixer.mixup, mixer.cutmix, mixer.probability, mixer.seed) == (0.2, 0.0, 0.3, 7)
    with pytest.raises(ValueError, match="number of classes"):
        build_mixer(AugmentSection(cutmix=1.0), None, seed=0)
