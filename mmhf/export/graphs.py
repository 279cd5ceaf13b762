"""The graphs that each family is exported as, with real inputs for each and what the model makes of them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from mmhf.conventions import Processor
from mmhf.errors import InputError
from mmhf.inference.embedders import EmbedderInputs
from mmhf.inference.inputs import COLUMNS, IMAGE, TEXT, Example
from mmhf.inference.loading import columns_of, takes_text
from mmhf.inference.predictors import PredictionCollator
from mmhf.models.classification_loss import class_names
from mmhf.models.fusion.column_features import ColumnFeatures
from mmhf.models.processing import TEXT_INPUTS
from mmhf.models.targets import target_of
from mmhf.recipe.prompt_template import PromptTemplate

Tensors = Mapping[str, Tensor]
_TEXT_LENGTHS = {0: "batch", 1: "length"}
_TRACED_LENGTH = 3  # 0 and 1 would be taken for constants


class GraphModule(nn.Module):
    """A part of a model, called with tensors by position and giving a tuple of tensors.

    Args:
        model (`nn.Module`): What is called; all that is stored of it is used.
        call (`Callable`): From the model and the named inputs to the outputs.
        names (`Sequence[str]`): Of the inputs, in their order.
    """

    def __init__(
        self, model: nn.Module, call: Callable[[Any, Tensors], tuple[Tensor, ...]], names: Sequence[str]
    ) -> None:
        super().__init__()
        self.model = model
        self.call = call
        self.names = tuple(names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs."""
        return self.call(self.model, dict(zip(self.names, tensors, strict=True)))


@dataclass(frozen=True)
class Case:
    """Inputs that the model was given, and what it made of them.

    Args:
        inputs (`Mapping[str, Tensor]`): By name.
        expected (`Mapping[str, Tensor]`): The outputs that are compared, by name.
    """

    inputs: Tensors
    expected: Tensors


@dataclass(frozen=True)
class Graph:
    """One file of an exported model.

    Args:
        name (`str`): Its stem.
        module ([`GraphModule`]): What is traced.
        example (`Mapping[str, Tensor]`): Inputs to trace it with, in the order of the module's; no length that may
            change is 0 or 1.
        outputs (`tuple[str, ...]`): Names of the outputs.
        lengths (`Mapping[str, Mapping[int, str]]`): Input or output → axis that may have any length → its name.
        cases (`Sequence[Case]`): What the file has to agree with.
    """

    name: str
    module: GraphModule
    example: Tensors
    outputs: tuple[str, ...]
    lengths: Mapping[str, Mapping[int, str]]
    cases: Sequence[Case]


class ModelGraphs(ABC):
    """How a family is exported.

    Args:
        model (`PreTrainedModel`): In eval mode, in float32 on the CPU.
        processor (`Processor`): Of the model.
    """

    runner: ClassVar[str]
    """The program in `mmhf/export/runners/` that runs it."""

    def __init__(self, model: PreTrainedModel, processor: Processor) -> None:
        self.model: Any = model
        self.processor: Any = processor
        self.columns = columns_of(model)
        """The columns of a table that it reads; None where it reads none."""

    @property
    def reads_text(self) -> bool:
        """Whether examples need texts."""
        return False

    @abstractmethod
    def graphs(self, examples: Sequence[Example]) -> list[Graph]:
        """The graphs, with the cases that these two or more examples make."""

    @abstractmethod
    def after(self) -> dict[str, Any]:
        """What is done with the outputs, for `settings.json`."""


class ClassifierGraphs(ModelGraphs):
    """A classifier of images, or of images with texts, as one graph that gives calibrated logits."""

    runner = "classify"

    @property
    def reads_text(self) -> bool:
        return takes_text(self.model)

    def graphs(self, examples: Sequence[Example]) -> list[Graph]:
        config, text = self.model.config, self.reads_text
        missing = list(config.missing_modalities) if text else []
        collator = PredictionCollator(self.processor, with_text=text, missing=missing, columns=self.columns)
        given = list(examples)
        lacks: dict[str, dict[str, Any]] = {IMAGE: {"image": None}, TEXT: {"texts": ()}, COLUMNS: {"columns": None}}
        given += [replace(given[0], **lacks[modality]) for modality in missing]
        batches = [collator(rows).encodings["row"] for rows in (given, given[:1])]
        unseen = {IMAGE: {"pixel_values", "image_mask"}, TEXT: {"input_ids", "attention_mask", "text_mask"}}
        names = [name for name in batches[0] if name not in unseen.get(getattr(config, "mask", None) or "", ())]
        cases = []
        for batch in batches:
            with torch.no_grad():
                logits = self.model(**batch).logits
            cases.append(Case({name: batch[name] for name in names}, {"logits": logits}))
        call = _masked_logits if missing else _logits
        lengths = {name: _TEXT_LENGTHS if name in TEXT_INPUTS else {0: "batch"} for name in [*names, "logits"]}
        return [Graph("model", GraphModule(self.model, call, names), cases[0].inputs, ("logits",), lengths, cases)]

    def after(self) -> dict[str, Any]:
        config = self.model.config
        names = class_names(self.model)
        learnt = {"learnt": target_of(config).name, "labels": names, "thresholds": config.thresholds}
        columns = {"columns": self.columns.to_dict()} if isinstance(self.columns, ColumnFeatures) else {}
        return {**learnt, "abstain_below": config.abstain_below, **columns}


class DualEncoderGraphs(ModelGraphs):
    """A dual encoder as one graph a tower, which give embeddings of length 1."""

    runner = "match"

    @property
    def reads_text(self) -> bool:
        return True

    def graphs(self, examples: Sequence[Example]) -> list[Graph]:
        inputs = EmbedderInputs(self.processor)
        images = [each.image for each in examples if each.image is not None]
        texts = [text for each in examples for text in each.texts]
        image_tower = _without(self.model, "text", "text_pooling", "text_projection")
        text_tower = _without(self.model, "vision", "vision_pooling", "vision_projection")
        return [
            self._tower("image", image_tower, [inputs.encode(IMAGE, part) for part in (images, images[:1])]),
            self._tower("text", text_tower, [inputs.encode(TEXT, part) for part in (texts, texts[:1])]),
        ]

    def _tower(self, name: str, tower: nn.Module, batches: Sequence[Tensors]) -> Graph:
        output = f"{name}_embeds"
        cases = []
        for batch in batches:
            with torch.no_grad():
                cases.append(Case(batch, {output: self.model(**batch)[output]}))
        lengths = {each: _TEXT_LENGTHS if each in TEXT_INPUTS else {0: "batch"} for each in [*batches[0], output]}
        module = GraphModule(tower, lambda model, given: (model(**given)[output],), list(batches[0]))
        return Graph(name, module, batches[0], (output,), lengths, cases)

    def after(self) -> dict[str, Any]:
        scale = self.model.similarity_scale.detach()
        bias = self.model.logit_bias
        return {"logit_scale": float(scale), "logit_bias": 0.0 if bias is None else float(bias)}


class CaptionerGraphs(ModelGraphs):
    """A captioner as two graphs: from the image to what the language model reads of it, and one step of that model.

    A step reads the prefix, tokens, or both, behind what is cached of the steps before; each may have the length 0. So
    the first step and all others are one graph, and the token embeddings are stored once. Captions of a batch go in
    step, so that there is no padding and no mask. A prompt that is the same for all follows the image in the prefix;
    one that names columns is read as the tokens of the first step.
    """

    runner = "caption"

    def graphs(self, examples: Sequence[Example]) -> list[Graph]:
        if self.model.neighbours is not None:
            raise InputError(
                "the captioner looks up captions of its training images (model.neighbours), which an export cannot"
            )
        collator = PredictionCollator(self.processor, with_text=False)
        batches = [collator(rows).encodings["row"]["pixel_values"] for rows in (examples, examples[:1])]
        prompt = self.model.prompt
        image_model = _without(self.model, "language")
        if len(prompt):
            with torch.no_grad():
                embeds = self.model.get_input_embeddings()(prompt)[None].clone()
            image_model.register_buffer("prompt_embeds", embeds)
        with torch.no_grad():
            features = [self.model.image_features(pixels) for pixels in batches]
            none = [None if self.columns is None else prompt.new_zeros(len(each), 0) for each in features]
            prefixes = [self.model.prefix_embeds(*each) for each in zip(features, none, strict=True)]
        cases = [
            Case({"pixel_values": pixels}, {"prefix": prefix})
            for pixels, prefix in zip(batches, prefixes, strict=True)
        ]
        lengths = {name: {0: "batch"} for name in ("pixel_values", "prefix")}
        image = GraphModule(image_model, _prefix, ["pixel_values"])
        # The first example's own prompt, where not all have the same.
        prompt_ids = None if self.columns is None else self.processor(columns=[examples[0].columns])["prompt_ids"]
        return [
            Graph("image", image, cases[0].inputs, ("prefix",), lengths, cases),
            self._language(batches, prefixes, prompt_ids),
        ]

    def _language(self, batches: Sequence[Tensor], prefixes: Sequence[Tensor], prompt: Tensor | None) -> Graph:
        """The graph of a step, compared with the model's logits behind the prefix, and behind two tokens more."""
        language = self.model.language
        ids = torch.arange(_TRACED_LENGTH).expand(len(batches[0]), -1).clone()
        with torch.no_grad():
            cache = language(inputs_embeds=prefixes[0], use_cache=True).past_key_values
        shapes = [tensor.shape for layer in cache.layers for tensor in (layer.keys, layer.values)]
        names = [f"{part}_{layer}" for layer in range(len(cache.layers)) for part in ("key", "value")]
        past, present = [f"past_{name}" for name in names], [f"present_{name}" for name in names]
        module = GraphModule(language, _next_token, ["prefix", "input_ids", *past])

        def inputs(embeds: Tensor, tokens: Tensor, cached: Sequence[Tensor]) -> dict[str, Tensor]:
            return {"prefix": embeds, "input_ids": tokens, **dict(zip(past, cached, strict=True))}

        cases = []
        for pixels, prefix in zip(batches, prefixes, strict=True):
            tokens = ids[: len(pixels)]
            nothing = [prefix.new_zeros(len(pixels), shape[1], 0, shape[3]) for shape in shapes]
            asked = tokens[:, :0] if prompt is None else prompt.expand(len(pixels), -1)
            own = {} if prompt is None else {"prompt_ids": asked}
            first = inputs(prefix, asked, nothing)
            with torch.no_grad():
                logits = self.model(pixel_values=pixels, input_ids=tokens, **own).logits
                cached = module(*first.values())[1:]
            cases.append(Case(first, {"logits": logits[:, 0]}))
            # The model gives no logits behind the last token.
            cases.append(Case(inputs(prefix[:, :0], tokens[:, :-1], cached), {"logits": logits[:, -1]}))
        traced = [torch.zeros(len(ids), shape[1], _TRACED_LENGTH, shape[3]) for shape in shapes]
        lengths = {
            "prefix": {0: "batch", 1: "prefix_length"},
            "input_ids": {0: "batch", 1: "length"},
            **{name: {0: "batch", 2: "past_length"} for name in past},
            "logits": {0: "batch"},
            **{name: {0: "batch", 2: "total_length"} for name in present},
        }
        return Graph("language", module, inputs(prefixes[0], ids, traced), ("logits", *present), lengths, cases)

    def after(self) -> dict[str, Any]:
        config = self.model.generation_config
        ends = config.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        plain = {"num_beams": 1, "do_sample": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
        given = {name: getattr(config, name, None) for name in plain}
        differs = {name: value for name, value in given.items() if value not in (None, plain[name])}
        tokens = config.max_new_tokens or config.max_length or 20
        found: dict[str, Any] = {"generation": {"max_new_tokens": tokens, "end_ids": ends, "model_differs": differs}}
        if isinstance(self.columns, PromptTemplate):
            template = {"pieces": self.columns.pieces, "missing": self.columns.missing}
            found["prompt"] = {**template, "max_length": self.processor.longest_prompt}
        return found


def _without(model: nn.Module, *names: str) -> nn.Module:
    """The same model, but for some parts."""
    lean = copy.copy(model)
    lean._modules = {name: module for name, module in model._modules.items() if name not in names}
    lean._buffers = dict(model._buffers)
    return lean


def _logits(model: Any, given: Tensors) -> tuple[Tensor, ...]:
    return (model(**given).logits,)


def _masked_logits(model: Any, given: Tensors) -> tuple[Tensor, ...]:
    """Encoders are run on all rows: which ones lack a modality is not known when the graph is made."""
    masks = {name: tensor for name, tensor in given.items() if name.endswith("_mask") and name != "attention_mask"}
    features = {}
    if "pixel_values" in given:
        features["image_features"] = model.image_features(given["pixel_values"])
    if "input_ids" in given:
        features["text_features"] = model.text_features(given["input_ids"], given.get("attention_mask"))
    if "columns" in given:
        features["columns"] = given["columns"]
    return (model(**features, **masks).logits,)


def _prefix(model: Any, given: Tensors) -> tuple[Tensor, ...]:
    prefix = model.projector(model.image_features(given["pixel_values"]))
    if not len(model.prompt):
        return (prefix,)
    return (torch.cat([prefix, model.prompt_embeds.expand(prefix.shape[0], -1, -1)], dim=1),)


def _next_token(language: Any, given: Tensors) -> tuple[Tensor, ...]:
    """Logits behind the last position, and keys and values of all."""
    prefix, ids = given["prefix"], given["input_ids"]
    cached = list(given.values())[2:]
    embeds = torch.cat([prefix, language.get_input_embeddings()(ids)], dim=1)
    before, length = cached[0].shape[2], embeds.shape[1]
    positions = torch.arange(length) + before
    hidden = torch.arange(before + length)[None] > positions[:, None]
    # With four axes it is taken as it is, by every implementation of attention.
    mask = torch.zeros_like(hidden, dtype=embeds.dtype).masked_fill(hidden, torch.finfo(embeds.dtype).min)
    output = language(
        inputs_embeds=embeds,
        attention_mask=mask[None, None].expand(embeds.shape[0], 1, -1, -1),
        position_ids=positions[None].expand(embeds.shape[0], -1),
        past_key_values=DynamicCache(list(zip(cached[::2], cached[1::2], strict=True))),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = [each for layer in output.past_key_values.layers for each in (layer.keys, layer.values)]
    return (output.logits[:, -1], *cache)


def of_one_row(graph: Graph) -> Graph:
    """The same graph with all lengths fixed, for one row at a time.

    Raises:
        InputError: It reads texts, whose length is not known before.
    """
    if any(name in TEXT_INPUTS for name in graph.example):
        raise InputError("--format executorch: is for models that read images alone")
    cases = [
        Case(
            *({name: tensor[row : row + 1] for name, tensor in part.items()} for part in (case.inputs, case.expected))
        )
        for case in graph.cases
        for row in range(len(next(iter(case.inputs.values()))))
    ]
    return replace(graph, example=cases[0].inputs, lengths={name: {} for name in graph.lengths}, cases=cases)


def whole_examples(graphs: ModelGraphs, examples: Sequence[Example]) -> list[Example]:
    """Those examples that have what the model reads.

    Raises:
        InputError: There are fewer than two, which tracing needs.
    """
    columns = graphs.columns
    whole = [
        each
        for each in examples
        if each.image is not None
        and (each.texts or not graphs.reads_text)
        and (columns is None or columns.find_problem(each.columns or {}) is None)
    ]
    if len(whole) < 2:
        needed = "an image and a text" if graphs.reads_text else "an image"
        needed += "" if columns is None else ", and columns that the model can read,"
        raise InputError(f"--input: two rows with {needed} are needed to compare with, not {len(whole)}")
    return whole
