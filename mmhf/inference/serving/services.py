"""What a served model does with inputs: one class for models that predict, one for those that embed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from mmhf.conventions import Processor
from mmhf.errors import InputError
from mmhf.inference.embedders import DualEncoderEmbedder, load_embedder
from mmhf.inference.inputs import COLUMNS, IMAGE, TEXT, Example
from mmhf.inference.jobs import RowModel
from mmhf.inference.label_predictors import LabelPredictor
from mmhf.inference.loading import columns_of, load_model, model_type_of
from mmhf.inference.predictors import CaptionPredictor
from mmhf.inference.serving.limits import Limits, RefusedError, read_picture, read_text
from mmhf.inference.serving.schemas import Generation, Input, Prediction
from mmhf.models.contrastive_loss import unit_prefix
from mmhf.models.family import families, family_of

_PREFIXES = {"probabilities": "probability_", "numbers": "predicted_"}
_NO_IMAGE = "no image"


@dataclass(eq=False)
class CaptionStream:
    """A caption on its way to one client.

    Args:
        emit (`Callable`): Given each piece of the caption, from the model's thread.
        stop (`threading.Event`): Set when nobody reads it any more.
    """

    emit: Callable[[str], None]
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class PredictOptions:
    """What inputs must agree in to be predicted together.

    Args:
        threshold (`float`, *optional*): See `ClassificationPredictor`.
        generation (`tuple`): Names and values, see `CaptionPredictor`.
        stream ([`CaptionStream`], *optional*): Who reads the caption while it is written; equal to no other.
    """

    threshold: float | None = None
    generation: tuple[tuple[str, Any], ...] = ()
    stream: CaptionStream | None = None


class PredictService:
    """A classifier or a captioner, by the predictor that `mmhf predict` has.

    Args:
        model (`PreTrainedModel`): In eval mode, on its device.
        processor (`Processor`): Of the model.
    """

    def __init__(self, model: PreTrainedModel, processor: Processor) -> None:
        self.model: Any = model
        self.processor = processor
        family = family_of(model)
        self.task = family.task
        self._predictor_class = family.load("predictor")
        self._plain = self.predictor(PredictOptions())
        self.writes_captions = isinstance(self._plain, CaptionPredictor)
        self.reads = list(self._plain.reads)
        self.labels = self._plain.label_names if isinstance(self._plain, LabelPredictor) else None
        self._may_lack = list(model.config.missing_modalities) if TEXT in self.reads else []
        self.columns = columns_of(model)

    def predictor(self, options: PredictOptions) -> RowModel:
        """The predictor for some options.

        Raises:
            InputError: The model does not know them.
        """
        made: RowModel = self._predictor_class.of(
            self.model, self.processor, threshold=options.threshold, generation=dict(options.generation)
        )
        return made

    def options(
        self, threshold: float | None, generation: Generation, stream: CaptionStream | None = None
    ) -> PredictOptions:
        """The options of a request.

        Raises:
            RefusedError: The model does not know them.
        """
        given = generation.model_dump(exclude_none=True)
        if stream is not None and not self.writes_captions:
            raise RefusedError(422, "stream: only captions are written piece by piece.")
        if stream is not None and given.get("num_beams", self.model.generation_config.num_beams or 1) > 1:
            raise RefusedError(
                422, "stream: with several beams no word is certain before the last; num_beams has to be 1."
            )
        options = PredictOptions(threshold, tuple(sorted(given.items())), stream)
        try:
            self.predictor(options)
        except InputError as error:
            raise RefusedError(422, f"{error}.") from None
        return options

    def read(self, given: Input, where: str, limits: Limits) -> Example:
        """Decode an input.

        Raises:
            RefusedError: It lacks something, has what the model does not read, or an image that cannot be read.
        """
        for name in (IMAGE, TEXT, COLUMNS):
            is_given = getattr(given, name) is not None
            if is_given and name not in self.reads:
                reads = "images alone" if TEXT not in self.reads else "images and texts alone"
                raise RefusedError(422, f"{where}.{name}: the model reads {reads}.")
            if not is_given and name in self.reads and name not in self._may_lack:
                raise RefusedError(422, f"{where}.{name}: is missing; the model reads {' and '.join(self.reads)}.")
        if self.columns is not None and given.columns is not None:
            problem = self.columns.find_problem(given.columns)
            if problem is not None:
                raise RefusedError(422, f"{where}.{problem}.")
        text = "" if given.text is None else read_text(given.text, f"{where}.text", limits)
        texts = (text,) if text else ()
        if given.image is None:
            if not text:
                raise RefusedError(422, f"{where}: has neither an image nor a text.")
            return Example(None, texts, _NO_IMAGE, columns=given.columns)
        return Example(read_picture(given.image, f"{where}.image", limits), texts, columns=given.columns)

    def run(self, key: Hashable, items: list[Example]) -> Sequence[Prediction]:
        """Predictions of inputs with the same options."""
        options = cast(PredictOptions, key)
        if options.stream is not None:
            return [self._stream(options, options.stream, example) for example in items]
        predictor = self.predictor(options)
        batch = predictor.collator(items)
        rows = predictor.make(batch).to_pylist()
        return [_prediction(row, note) for row, note in zip(rows, batch.errors, strict=True)]

    def warm_up(self) -> None:
        """Run a grey picture, so that no request waits for what is done once."""
        picture = torch.full((3, 64, 64), 127, dtype=torch.uint8)
        options = PredictOptions(generation=(("max_new_tokens", 2),)) if self.writes_captions else PredictOptions()
        columns = None if self.columns is None else self.columns.usual_row()
        self.run(options, [Example(picture, ("a",) if TEXT in self.reads else (), columns=columns)])

    def _stream(self, options: PredictOptions, stream: CaptionStream, example: Example) -> Prediction:
        predictor = self.predictor(options)
        assert isinstance(predictor, CaptionPredictor)
        (encoding,) = predictor.collator([example]).encodings.values()
        predictor.generation |= {
            "streamer": _Pieces(self.processor, stream.emit),
            "stopping_criteria": StoppingCriteriaList([_Stopped(stream.stop)]),
        }
        return _prediction(predictor.predict(encoding).to_pylist()[0], None)


def _prediction(row: Mapping[str, Any], note: str | None) -> Prediction:
    scores = {
        field: {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)} or None
        for field, prefix in _PREFIXES.items()
    }
    others = {name: value for name, value in row.items() if not name.startswith(tuple(_PREFIXES.values()))}
    return Prediction(**others, **scores, note=note)


class _Pieces(BaseStreamer):
    """Tells the pieces of a caption as its tokens come."""

    def __init__(self, processor: Any, emit: Callable[[str], None]) -> None:
        self._processor, self._emit = processor, emit
        self._tokens: list[int] = []
        self._told = ""
        self._begun = False

    def put(self, value: torch.Tensor) -> None:
        # The first are those that the caption is to go on from: none.
        if self._begun:
            self._tokens += value.flatten().tolist()
            self._tell(whole=False)
        self._begun = True

    def end(self) -> None:
        self._tell(whole=True)

    def _tell(self, *, whole: bool) -> None:
        (text,) = self._processor.captions([self._tokens])
        # A token may end within a character.
        if text.startswith(self._told) and len(text) > len(self._told) and (whole or not text.endswith("\ufffd")):
            self._emit(text[len(self._told) :])
            self._told = text


class _Stopped(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), dtype=torch.bool, device=input_ids.device)


Embeddings = NDArray[np.float32]


class EmbedService:
    """A dual encoder.

    Args:
        embedder ([`DualEncoderEmbedder`]): As `mmhf embed` has it.
    """

    labels = columns = None
    task = "contrastive"

    def __init__(self, embedder: DualEncoderEmbedder) -> None:
        self.embedder = embedder
        self.reads = list(embedder.modalities)

    def read(self, given: Input, where: str, limits: Limits) -> dict[str, torch.Tensor | str]:
        """Decode what an input has: `image`, `text` or both.

        Raises:
            RefusedError: It has neither, an empty text, or an image that cannot be read.
        """
        found: dict[str, torch.Tensor | str] = {}
        if given.columns is not None:
            raise RefusedError(422, f"{where}.columns: the model reads images and texts alone.")
        if given.image is not None:
            found[IMAGE] = read_picture(given.image, f"{where}.image", limits)
        if given.text is not None:
            found[TEXT] = read_text(given.text, f"{where}.text", limits)
            if not found[TEXT]:
                raise RefusedError(422, f"{where}.text: is empty.")
        if not found:
            raise RefusedError(422, f"{where}: has neither an image nor a text.")
        return found

    def run(self, key: Hashable, items: list[Any]) -> Sequence[Embeddings]:
        """Embeddings (D,) of images or of texts, whichever the key says."""
        modality = str(key)
        return list(self.embedder.embed(modality, self.embedder.inputs.encode(modality, items)).numpy())

    def shortener(self, dimensions: int | None) -> Callable[[Embeddings], Embeddings]:
        """What takes the first so many numbers of an embedding (D,), and brings them to length 1.

        Raises:
            RefusedError: The model was not trained for it.
        """
        if dimensions is None:
            return lambda embedding: embedding
        try:
            self.embedder.check_dimensions(dimensions)
        except InputError as error:
            raise RefusedError(422, f"{error}.") from None
        return lambda embedding: unit_prefix(torch.from_numpy(embedding), dimensions).numpy()

    def warm_up(self) -> None:
        """As of [`PredictService`]."""
        self.run(IMAGE, [torch.full((3, 64, 64), 127, dtype=torch.uint8)])
        self.run(TEXT, ["a"])


Service = PredictService | EmbedService


def load_service(path: Path, device: torch.device | None = None) -> Service:
    """Load the model of a run or release folder, of any family, or a dual encoder that transformers saved.

    Raises:
        InputError: The folder holds no such model, or is damaged.
    """
    family = families().get(model_type_of(path))
    if family is None or family.embedder is not None:
        service: Service = EmbedService(load_embedder(path, device=device))
    else:
        service = PredictService(*load_model(path, needs="predictor", device=device))
    service.warm_up()
    return service
