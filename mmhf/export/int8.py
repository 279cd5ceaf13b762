"""Graphs with weights of 8 bits, and what that costs in quality on the validation split."""

from __future__ import annotations

import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mmhf.conventions import IGNORED_LABEL
from mmhf.errors import InputError
from mmhf.evaluation.classification import classification_metrics
from mmhf.evaluation.multi_label import multi_label_metrics
from mmhf.evaluation.ordinal import ordinal_metrics
from mmhf.evaluation.regression import regression_metrics
from mmhf.evaluation.retrieval import retrieval_metrics
from mmhf.export.formats import Runner
from mmhf.export.graphs import Graph, ModelGraphs
from mmhf.models.classification_loss import class_names
from mmhf.models.targets import MULTI_LABEL, ORDINAL, REGRESSION, SINGLE_LABEL, target_of
from mmhf.recipe import ResolvedRecipe
from mmhf.tasks import task_of
from mmhf.tasks.contrastive import SplitEmbeddings

logger = logging.getLogger(__name__)

SPLIT = "validation"
_CALIBRATION_ROWS, _BATCH = 64, 8
_SHOWN = {"classify": ("accuracy", "f1_macro", "map", "mae"), "match": ("mean_recall",), "caption": ("loss",)}
_METRICS = {
    SINGLE_LABEL: classification_metrics,
    MULTI_LABEL: multi_label_metrics,
    REGRESSION: regression_metrics,
    ORDINAL: ordinal_metrics,
}

Arrays = Mapping[str, NDArray[Any]]


class ValidationRows:
    """The validation split of a recipe in batches, as evaluation prepares it: the first calibrate, the others measure.

    Args:
        recipe (`ResolvedRecipe`): Where the data is.
        graphs ([`ModelGraphs`]): Of the model.

    Attributes:
        calibrating (`list[Mapping[str, NDArray]]`): Inputs and labels by name.
        num_rows (`int`): How many rows measure.

    Raises:
        InputError: There is no such split, it is a stream, or has too few rows.
    """

    def __init__(self, recipe: ResolvedRecipe, graphs: ModelGraphs) -> None:
        task = task_of(recipe.recipe)
        loaded = task.load_data(splits=[SPLIT], model=graphs.model)
        if not isinstance(loaded.splits[SPLIT], datasets.Dataset):
            raise InputError(f"--int8: the split {SPLIT} is a stream; give it as a table")
        rows: Any = task.torch_dataset(loaded, SPLIT)
        if len(rows) <= _BATCH:
            raise InputError(f"--int8: the split {SPLIT} has {len(rows)} rows; more than {_BATCH} are needed")
        self._first = min(_CALIBRATION_ROWS // _BATCH, len(rows) // _BATCH // 2) or 1
        self._loader: DataLoader[Any] = DataLoader(
            rows, batch_size=_BATCH, collate_fn=task.collator(graphs.processor, split=SPLIT, seed=0)
        )
        self.calibrating = list(itertools.islice(self._batches(), self._first))
        self.num_rows = len(rows) - self._first * _BATCH

    def measuring(self) -> Iterator[Arrays]:
        """The batches to measure."""
        return itertools.islice(self._batches(), self._first, None)

    def _batches(self) -> Iterator[Arrays]:
        for batch in self._loader:
            yield {name: value.numpy() for name, value in batch.items() if isinstance(value, Tensor)}


def quantize(graph: Graph, source: Path, target: Path, batches: Sequence[Arrays]) -> str:
    """Write a graph with weights of 8 bits.

    Of a convolutional network activations have 8 bits, too, by ranges that these batches have shown; of all others,
    the inputs of matrix products, by ranges that are found as it runs. Weights have 7 of their 8 bits, because
    processors without VNNI overflow with 8.

    Returns:
        `str`: `static` or `dynamic`.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> Arrays | None:
            batch = next(self.left, None)
            return None if batch is None else inputs_of(graph, batch)

    prepared = source.with_name(f"{source.stem}.prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    kinds = Counter(node.op_type for node in onnx.load(prepared, load_external_data=False).graph.node)
    options: dict[str, Any] = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
    is_convolutional = kinds["Conv"] > kinds["MatMul"] + kinds["Gemm"]
    if is_convolutional:
        quantize_static(prepared, target, Reader(), activation_type=QuantType.QUInt8, **options)
    else:
        quantize_dynamic(prepared, target, op_types_to_quantize=["MatMul", "Gemm"], **options)
    prepared.unlink()
    return "static" if is_convolutional else "dynamic"


def measure(
    graphs: ModelGraphs, rows: ValidationRows, candidates: Sequence[Sequence[tuple[Graph, Runner]]]
) -> list[dict[str, float]]:
    """The numbers of each candidate, by the definitions of `mmhf evaluate`.

    Args:
        graphs ([`ModelGraphs`]): Of the model.
        rows ([`ValidationRows`]): What is measured on.
        candidates (`Sequence`): Each the graphs of the model with what runs them.
    """
    if graphs.runner == "caption":
        return [{"loss": _loss_per_token(rows, candidate)} for candidate in candidates]
    found: list[dict[str, list[NDArray[Any]]]] = [defaultdict(list) for _ in candidates]
    targets = []
    for batch in rows.measuring():
        targets.append(batch["labels" if graphs.runner == "classify" else "image_index"])
        for outputs, candidate in zip(found, candidates, strict=True):
            for graph, run in candidate:
                for name, array in run(inputs_of(graph, batch)).items():
                    outputs[name].append(array)
    truth, metrics = np.concatenate(targets), []
    for each in found:
        joined = {name: np.concatenate(arrays) for name, arrays in each.items()}
        if graphs.runner == "classify":
            measured = _METRICS[target_of(graphs.model.config)]
            metrics.append(measured(joined["logits"], truth, class_names(graphs.model)))
        else:
            split = SplitEmbeddings.of((joined["text_embeds"], joined["image_embeds"]), truth)
            metrics.append(retrieval_metrics(split.images, split.texts, split.owners))
    return metrics


def _loss_per_token(rows: ValidationRows, candidate: Sequence[tuple[Graph, Runner]]) -> float:
    """The mean loss of a token of the captions, each behind the image and the tokens before it."""
    (_, image), (graph, language) = candidate
    shapes = {name: tensor.shape for name, tensor in graph.example.items() if name.startswith("past_")}
    total, num_tokens = 0.0, 0
    for batch in (part for whole in rows.measuring() for part in _with_one_prompt(whole)):
        labels = batch["labels"]
        prefix = image({"pixel_values": batch["pixel_values"]})["prefix"]
        past = {name: np.zeros((len(labels), shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()}
        tokens = batch["input_ids"][:, :0]
        if "prompt_ids" in batch:
            tokens = batch["prompt_ids"][:, batch["prompt_mask"][0] == 1]
        for position in range(labels.shape[1]):
            found = language({"prefix": prefix, "input_ids": tokens, **past})
            known = labels[:, position] != IGNORED_LABEL
            logits = found["logits"][known].astype(np.float64)
            wanted = np.take_along_axis(logits, labels[known, position, None], axis=1)[:, 0]
            total += float((np.logaddexp.reduce(logits, axis=1) - wanted).sum())
            num_tokens += int(known.sum())
            past = {name: found[name.replace("past_", "present_", 1)] for name in past}
            prefix, tokens = prefix[:, :0], batch["input_ids"][:, position : position + 1]
    return total / num_tokens


def _with_one_prompt(batch: Arrays) -> Iterator[Arrays]:
    """A batch, or its rows one by one where each has a prompt of its own: the graphs have no mask."""
    if "prompt_ids" not in batch:
        yield batch
        return
    for row in range(len(batch["labels"])):
        yield {name: values[row : row + 1] for name, values in batch.items()}


def inputs_of(graph: Graph, batch: Arrays) -> Arrays:
    """What a graph reads of a batch; rows of which nothing is said to be missing have all."""
    present = np.ones(len(batch["pixel_values"]), np.int64)
    return {name: batch.get(name, present) if name.endswith("_mask") else batch[name] for name in graph.example}


def tell(graphs: ModelGraphs, before: Mapping[str, float], after: Mapping[str, float], rows: int) -> dict[str, Any]:
    """Log what weights of 8 bits cost, and say it for `settings.json`."""
    for name in (name for name in _SHOWN[graphs.runner] if name in before):
        change = after[name] - before[name]
        logger.info("int8: %s %.4f (%+.4f) on %d rows of the split %s", name, after[name], change, rows, SPLIT)
    return {"rows": rows, "split": SPLIT, "float32": dict(before), "int8": dict(after)}
