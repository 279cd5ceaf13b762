"""Tiny random encoders and classifiers, as the tests of models have them."""

from tests.models.conftest import batch, tiny_bert, tiny_config, tiny_timm  # noqa: F401
