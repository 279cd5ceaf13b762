"""What mmhf's own pipelines share: inputs are made by the model's processor, and by it alone."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import Pipeline, PreTrainedModel

from mmhf.errors import InputError


class ProcessorPipeline(Pipeline):
    """A pipeline of one class of models, with their processor.

    Raises:
        InputError: A loaded model comes without its processor.
    """

    model_class: ClassVar[type[PreTrainedModel]]
    _load_processor = True  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise InputError("a model that is already loaded needs its processor too: pass processor=")
        self.check_model_type([self.model_class.__name__])
        self.model.eval()
