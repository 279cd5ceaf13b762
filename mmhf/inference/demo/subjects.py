"""The model behind a page: one class a family, each from an image and a text to what the page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from mmhf.conventions import Processor
from mmhf.errors import InputError
from mmhf.inference.demo.explaining import heat_map, image_relevance, scaled_words, shown_image, word_relevance
from mmhf.inference.loading import columns_of, load_model, takes_text
from mmhf.inference.predictors import CaptionPredictor
from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerForConditionalGeneration
from mmhf.models.classification_loss import class_names, class_probabilities
from mmhf.models.dual_encoder import DualEncoderModel, DualEncoderProcessor
from mmhf.models.family import family_of
from mmhf.models.naflex import NaflexImageProcessor
from mmhf.models.targets import REGRESSION, target_of

NEAREST = 5
PROMPT = "a photo of a {}."
_TEXTS_AT_ONCE = 64
Columns = Mapping[str, object]
"""Column of a table → its value; none where the model reads none."""
NO_COLUMNS: Columns = MappingProxyType({})


@dataclass(frozen=True)
class Answer:
    """What a model says about an image and a text.

    Attributes:
        probabilities (`dict[str, float]`): Label to its probability, where the model or the user has labels.
        numbers (`dict[str, float]`): Name to its number, where the model was trained on numbers.
        caption (`str`): What a captioner wrote.
        nearest (`list[tuple[str, float]]`): Captions of a pool and their cosine similarity, the nearest first.
    """

    probabilities: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    caption: str = ""
    nearest: list[tuple[str, float]] = field(default_factory=list)

    @property
    def label(self) -> str | None:
        """The most probable label."""
        return max(self.probabilities, key=self.probabilities.__getitem__, default=None)


@dataclass(frozen=True)
class Explanation:
    """What an answer rests on.

    Attributes:
        image (`PIL.Image.Image`): The image as the model saw it under a heat map.
        words (`list[tuple[str, float]]`): Words of the text, -1 (against the answer) to 1 (for it).
    """

    image: Image
    words: list[tuple[str, float]] = field(default_factory=list)


class Subject(Protocol):
    """A model that can be asked.

    Attributes:
        family (`str`): `classifier`, `captioner` or `dual encoder`.
        takes_text (`bool`): Whether a text changes the answer.
        explains (`bool`): Whether it tells what an answer rests on.
        columns (`Mapping[str, str | list[str]]`): Columns that it reads besides → `number`, `text`, or the categories
            that it knows.
    """

    family: str
    takes_text: bool
    explains: bool
    columns: Mapping[str, str | list[str]]

    def answer(self, image: Image, text: str, columns: Columns = NO_COLUMNS) -> Answer: ...

    def explain(self, image: Image, text: str, columns: Columns = NO_COLUMNS) -> Explanation | None:
        """What the most probable label rests on; None where there is no label."""
        ...


class ClassifierSubject:
    """A classifier of images, or of pairs of an image and a text."""

    family = "classifier"

    def __init__(self, model: PreTrainedModel, processor: Processor, captions: Sequence[str] = ()) -> None:
        self.model: Any = model
        self.processor = processor
        self.explains = _have_one_shape(processor)
        self.takes_text = takes_text(model)
        self.names = class_names(model)
        self.target = target_of(model.config)
        self.columns = _described(model)

    @torch.inference_mode()
    def answer(self, image: Image, text: str, columns: Columns = NO_COLUMNS) -> Answer:
        scores = self.target.scores(self.model(**self._encode(image, text, columns)).logits[0]).tolist()
        named = dict(zip(self.names, scores, strict=True))
        return Answer(numbers=named) if self.target is REGRESSION else Answer(probabilities=named)

    @torch.inference_mode()
    def explain(self, image: Image, text: str, columns: Columns = NO_COLUMNS) -> Explanation:
        encoding = self._encode(image, text, columns)
        pixel_values = encoding["pixel_values"]
        target = int(self.model(**encoding).logits[0].argmax())
        if not self.takes_text:
            relevance = image_relevance(lambda pixels: self._score(self.model(pixels), target), pixel_values)
            return Explanation(heat_map(_seen(pixel_values, self.processor), relevance))

        # Only one side changes at a time: the other is encoded once.
        text_features = self.model.text_features(encoding["input_ids"], encoding["attention_mask"])
        image_features = self.model.image_features(pixel_values)

        def classify(images: Tensor, texts: Tensor) -> Any:
            count = max(len(images), len(texts))
            beside = {"columns": encoding["columns"].expand(count, -1)} if self.columns else {}
            return self.model.classify(images.expand(count, -1), texts.expand(count, -1), **beside)

        def score_images(pixels: Tensor) -> Tensor:
            return self._score(classify(self.model.image_features(pixels), text_features), target)

        def score_texts(texts: list[str]) -> Tensor:
            encoded = self.processor(text=texts).to(self.model.device)
            features = self.model.text_features(encoded["input_ids"], encoded["attention_mask"])
            return self._score(classify(image_features, features), target)

        return Explanation(
            heat_map(_seen(pixel_values, self.processor), image_relevance(score_images, pixel_values)),
            scaled_words(word_relevance(score_texts, text)),
        )

    def _encode(self, image: Image, text: str, columns: Columns) -> Any:
        if self.takes_text:
            beside = {"columns": [columns]} if self.columns else {}
            encoding = self.processor(images=[image], text=[text.strip()], **beside)
        else:
            encoding = self.processor([image], return_tensors="pt")
        return _on_device(encoding, self.model)

    def _score(self, output: Any, target: int) -> Tensor:
        return self.target.scores(output.logits)[:, target]


class CaptionerSubject:
    """A model that writes captions."""

    family = "captioner"
    takes_text = False
    explains = False

    def __init__(
        self,
        model: PrefixCaptionerForConditionalGeneration,
        processor: CaptionerProcessor,
        captions: Sequence[str] = (),
    ) -> None:
        self.columns = _described(model)
        self.processor = processor
        self.predictor = CaptionPredictor(model, processor)

    def answer(self, image: Image, text: str, columns: Columns = NO_COLUMNS) -> Answer:
        beside: dict[str, Any] = {"columns": [columns]} if self.columns else {}
        table = self.predictor.predict(self.processor(images=[image], **beside))
        return Answer(caption=table["caption"][0].as_py())

    def explain(self, image: Image, text: str, columns: Columns = NO_COLUMNS) -> None:
        return None


class DualEncoderSubject:
    """A dual encoder: the nearest captions of a pool and, where the text names classes, zero-shot classification.

    Args:
        model (`DualEncoderModel`): In eval mode, on its device.
        processor (`DualEncoderProcessor`): Its processor.
        captions (`Sequence[str]`): The pool.

    Raises:
        InputError: There is no caption.
    """

    family = "dual encoder"
    takes_text = True
    columns: Mapping[str, str | list[str]] = MappingProxyType({})

    def __init__(self, model: DualEncoderModel, processor: DualEncoderProcessor, captions: Sequence[str]) -> None:
        if not captions:
            raise InputError("captions: there is none to choose from; give a file with one a line")
        self.model = model
        self.processor = processor
        self.explains = _have_one_shape(processor)
        self.captions = list(dict.fromkeys(captions))
        self.pool = self._embed_texts(self.captions)

    @torch.inference_mode()
    def answer(self, image: Image, text: str, columns: Columns = NO_COLUMNS) -> Answer:
        pixel_values, labels = self._pixels(image), named_classes(text)
        similarities = self.pool @ self._embed_images(pixel_values)[0]
        values, places = similarities.topk(min(NEAREST, len(self.captions)))
        nearest = [(self.captions[at], value) for at, value in zip(places.tolist(), values.tolist(), strict=True)]
        if not labels:
            return Answer(nearest=nearest)
        probabilities = class_probabilities(self._compare(pixel_values, labels).logits_per_image[0]).tolist()
        return Answer(probabilities=dict(zip(labels, probabilities, strict=True)), nearest=nearest)

    @torch.inference_mode()
    def explain(self, image: Image, text: str, columns: Columns = NO_COLUMNS) -> Explanation | None:
        pixel_values, labels = self._pixels(image), named_classes(text)
        if not labels:
            return None
        output = self._compare(pixel_values, labels)
        target = int(output.logits_per_image[0].argmax())
        directions = output.logit_scale * output.text_embeds.float()

        def score(pixels: Tensor) -> Tensor:
            return class_probabilities(self._embed_images(pixels) @ directions.T)[:, target]

        relevance = image_relevance(score, pixel_values)
        return Explanation(heat_map(_seen(pixel_values, self.processor), relevance))

    def _compare(self, pixel_values: Tensor, labels: list[str]) -> Any:
        prompts = self.processor(text=[PROMPT.format(label) for label in labels])
        return self.model(pixel_values=pixel_values, **_on_device(prompts, self.model))

    def _pixels(self, image: Image) -> Tensor:
        pixel_values: Tensor = _on_device(self.processor(images=[image]), self.model)["pixel_values"]
        return pixel_values

    def _embed_images(self, pixel_values: Tensor) -> Tensor:
        embeds: Tensor = self.model(pixel_values=pixel_values).image_embeds.float()
        return embeds

    @torch.inference_mode()
    def _embed_texts(self, texts: list[str]) -> Tensor:
        batches = [texts[at : at + _TEXTS_AT_ONCE] for at in range(0, len(texts), _TEXTS_AT_ONCE)]
        embeds = [self.model(**_on_device(self.processor(text=batch), self.model)).text_embeds for batch in batches]
        return torch.cat(embeds).float()


def named_classes(text: str) -> list[str]:
    """The classes that a text names, separated by commas or ends of line, each once."""
    names = (name.strip() for line in text.splitlines() for name in line.split(","))
    return list(dict.fromkeys(name for name in names if name))


def load_subject(model_dir: Path, *, captions: Sequence[str], device: torch.device | None = None) -> Subject:
    """Load a model of any family.

    Args:
        model_dir (`Path`): A run or release folder.
        captions (`Sequence[str]`): Among which a dual encoder finds the nearest.
        device (`torch.device`, *optional*): Absent: the accelerator that is there.

    Raises:
        InputError: The folder holds no model, or there is no caption.
    """
    model, processor = load_model(model_dir, device=device)
    subject: Subject = family_of(model).load("subject")(model, processor, captions)
    return subject


def _on_device(encoding: Any, model: PreTrainedModel) -> Any:
    encoding = encoding.to(model.device)
    if "pixel_values" in encoding:
        encoding["pixel_values"] = encoding["pixel_values"].to(model.dtype)
    return encoding


def _image_processor(processor: Processor) -> Any:
    return processor.image_processor if isinstance(processor, ProcessorMixin) else processor


def _have_one_shape(processor: Processor) -> bool:
    """Whether images reach the model as squares or rectangles, on which a heat map can be laid."""
    return not isinstance(_image_processor(processor), NaflexImageProcessor)


def _seen(pixel_values: Tensor, processor: Processor) -> Image:
    image_processor = _image_processor(processor)
    return shown_image(pixel_values, list(image_processor.image_mean), list(image_processor.image_std))


def _described(model: PreTrainedModel) -> Mapping[str, str | list[str]]:
    columns = columns_of(model)
    return {} if columns is None else columns.describe()
