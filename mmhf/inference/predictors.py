"""Labels and captions for every row of a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from transformers import BatchFeature, PreTrainedModel

from mmhf.conventions import Processor
from mmhf.data.pixels import PicturePreparer
from mmhf.data.text_embeddings import TextEmbeddingTable, TextTableProcessor
from mmhf.errors import InputError
from mmhf.inference.captioning import check_generation
from mmhf.inference.inputs import COLUMNS, IMAGE, TEXT, Example, TableRows, files_hash, model_hash
from mmhf.inference.jobs import Batch, JobSettings, JobSummary, place_rows
from mmhf.inference.loading import columns_of, load_model, takes_text
from mmhf.inference.outputs import check_output, refuse_existing
from mmhf.inference.table_job import TableJob
from mmhf.inference.views import ChosenViews, set_views
from mmhf.models.captioner import CaptionerProcessor, PrefixCaptionerForConditionalGeneration
from mmhf.models.family import family_of
from mmhf.models.fusion import FusionForImageTextClassification
from mmhf.models.fusion.building import check_same_table
from mmhf.models.fusion.column_features import ColumnFeatures
from mmhf.models.text_tables import TableEncoder
from mmhf.recipe.prompt_template import PromptTemplate

EMPTY_TEXT = "the text is empty; predicted from the image alone"
FROM_TEXT = "predicted from the text alone"
ROW = "row"


class PredictionCollator:
    """Encodes the rows that can be predicted.

    Args:
        processor (`Processor`): Called with `images` and, where the model takes it, `text`.
        with_text (`bool`): Whether it does.
        missing (`Collection[str]`): `image`, `text`, `columns`: those that a row may lack.
        hidden (`str`, *optional*): What the model never looks at, so that nobody misses it.
        columns ([`ColumnFeatures`] or [`PromptTemplate`], *optional*): The columns that the model reads.
    """

    def __init__(
        self,
        processor: Processor,
        *,
        with_text: bool,
        missing: Collection[str] = (),
        hidden: str | None = None,
        columns: ColumnFeatures | PromptTemplate | None = None,
    ) -> None:
        self.prepare = PicturePreparer(processor)
        self.processor: Processor = self.prepare.processor
        self.with_text = with_text
        self.missing = missing
        self.hidden = hidden
        self.columns = columns

    def __call__(self, examples: Sequence[Example]) -> Batch:
        texts = [each.texts[0] if each.texts else "" for each in examples]
        counts = [
            int(each.image is not None or (IMAGE in self.missing and bool(text)))
            for each, text in zip(examples, texts, strict=True)
        ]
        errors = [each.image_error for each in examples]
        for place, each in enumerate(examples):
            if each.image is None and counts[place]:
                errors[place] = f"{errors[place]}; {FROM_TEXT}"
            elif each.image is not None and self.with_text and not texts[place] and self.hidden != TEXT:
                errors[place] = EMPTY_TEXT
            if self.columns is not None and counts[place] and each.columns is not None:
                problem = self.columns.find_problem(each.columns)
                counts[place] = int(problem is None)
                notes = self.columns.notes(each.columns) if problem is None else [problem]
                errors[place] = "; ".join(filter(None, [errors[place], *notes])) or None
        used = [place for place, count in enumerate(counts) if count]
        encodings = {}
        if used:
            images = [None if (pixels := examples[place].image) is None else self.prepare(pixels) for place in used]
            encoding = self._encode(images, [texts[place] for place in used])
            if self.columns is not None:
                values = [examples[place].columns for place in used]
                encoding.update(self.processor(columns=values, **({"masks": True} if self.missing else {})))
            encodings[ROW] = encoding
        return Batch(encodings, {ROW: counts}, errors)

    def _encode(self, images: list[Any], texts: Sequence[str]) -> BatchFeature:
        if not self.with_text:
            return self.processor(images=images, return_tensors="pt")
        if not self.missing:
            return self.processor(images=images, text=list(texts))
        given = [text or None for text in texts] if TEXT in self.missing else list(texts)
        return self.processor(images=images, text=given, masks=True)


class CaptionPredictor:
    """Makes the column `caption`.

    Args:
        model (`PrefixCaptionerForConditionalGeneration`): In eval mode, on its device.
        processor ([`CaptionerProcessor`]): Reads captions out of tokens.
        generation (`Mapping[str, Any]`, *optional*): What differs from the model's own way, such as `num_beams`.
    """

    verb = "captioning"
    schema = pa.schema([("caption", pa.string())])
    columns = ("caption",)

    def __init__(
        self,
        model: PrefixCaptionerForConditionalGeneration,
        processor: CaptionerProcessor,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.generation = check_generation(generation or {})
        columns = columns_of(model)
        self.reads = (IMAGE,) if columns is None else (IMAGE, COLUMNS)
        self.collator = PredictionCollator(processor, with_text=False, columns=columns)

    @classmethod
    def of(
        cls,
        model: PrefixCaptionerForConditionalGeneration,
        processor: CaptionerProcessor,
        *,
        threshold: float | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> CaptionPredictor:
        """A predictor with what `predict_table` was told.

        Raises:
            InputError: A threshold, which belongs to labels.
        """
        if threshold is not None:
            raise InputError("threshold: the model writes captions, and no labels")
        return cls(model, processor, generation)

    def make(self, batch: Batch) -> pa.Table:
        """One row of `schema` for each row of the batch, null where there is no image."""
        made = self.predict(batch.encodings[ROW]) if batch.encodings else self.schema.empty_table()
        return place_rows(made, batch.counts[ROW])

    @torch.inference_mode()
    def predict(self, encoding: Mapping[str, torch.Tensor]) -> pa.Table:
        """One row of `schema` for each encoded row."""
        inputs: dict[str, Any] = {name: tensor.to(self.model.device) for name, tensor in encoding.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        captions = self.processor.captions(self.model.generate(**inputs, **self.generation))
        return pa.table([pa.array(captions, pa.string())], schema=self.schema)


def predict_table(
    model_dir: str | Path,
    input_path: str | Path,
    output_path: str | Path,
    settings: JobSettings | None = None,
    *,
    threshold: float | None = None,
    generation: Mapping[str, Any] | None = None,
    views: ChosenViews | None = None,
    text_embeddings: str | Path | None = None,
    defuse_formulas: bool = False,
) -> JobSummary:
    """Predict every row of a table or folder and write them, in order, with the input's own columns.

    A row that cannot be predicted keeps its place, with the reason in `error`; an empty text is predicted and noted
    there, and so is a row without a usable image if the model was trained to go by the text alone. Any number of
    processes may be started with the same arguments: they share the work. Killed at any moment and started again, it
    writes the file that it would have written; started again when it is done, nothing happens. Work in progress lies
    in `OUTPUT.partial/`; the output appears when it is complete, and `OUTPUT.job.json` says what it was made from.

    Args:
        model_dir (`str` or `Path`): Run or release folder.
        input_path (`str` or `Path`): CSV, TSV, JSONL or parquet file, or a folder of images: with a metadata file,
            or, for a model that takes no text, without one.
        output_path (`str` or `Path`): `.csv` or `.parquet`.
        settings ([`JobSettings`], *optional*): Columns, limit, batch size, device and the like.
        threshold (`float`, *optional*): Two classes: the second label is predicted from this probability on; absent:
            the more probable label. Several labels a row: each is given from it on; absent: from its own threshold on.
        generation (`Mapping[str, Any]`, *optional*): Captioners only: what differs from the model's own way, such as
            `num_beams`.
        views (`Mapping[str, Any]` or `"off"`, *optional*): Classifiers only: what answers are averaged over, such as
            `{"horizontal_flip": True}`, or `"off"` for the image as it is; absent: what the model was saved with.
        text_embeddings (`str` or `Path`, *optional*): Only models that were trained on a table of text embeddings: one
            with these rows' texts; absent: the encoder that made the model's reads them.
        defuse_formulas (`bool`, defaults to `False`): CSV only: put `'` before texts that a spreadsheet would run.

    Raises:
        InputError: The model, input or a column is absent, the output exists, or it was begun from other inputs.
    """
    settings, output = settings or JobSettings(), Path(output_path)
    check_output(output, (".csv", ".parquet"))
    if defuse_formulas and output.suffix.lower() != ".csv":
        raise InputError(f"{output}: defuse_formulas is for spreadsheets, which open .csv")
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold={threshold}: expected a probability between 0 and 1")
    if not settings.overwrite:
        refuse_existing(output)
    device = settings.choose_device()
    model, processor = load_model(model_dir, needs="predictor", device=device)
    if views is not None:
        set_views(model, processor, views)
    columns = columns_of(model)
    rows = settings.read(
        input_path,
        model_dir,
        reads={TEXT: takes_text(model) and model.config.mask != TEXT},
        value_columns=() if columns is None else columns.names,
    )
    if text_embeddings is not None:
        processor = _with_table(model, processor, rows, Path(text_embeddings))
    predictor = family_of(model).load("predictor").of(model, processor, threshold=threshold, generation=generation)
    identity = {
        **settings.facts(rows, device),
        "model": model_hash(Path(model_dir)),
        "threshold": str(threshold),
        "generation": str(dict(generation or {})),
        **({} if views is None else {"views": str(model.config.views)}),
        "text embeddings": "" if text_embeddings is None else files_hash([Path(text_embeddings)]),
        "formulas": "defused" if defuse_formulas else "as they are",
    }
    job = TableJob(predictor, rows, output, identity=identity, settings=settings, defuse_formulas=defuse_formulas)
    return job.run()


def _with_table(model: PreTrainedModel, processor: Processor, rows: TableRows, path: Path) -> TextTableProcessor:
    """The processor with a table of text embeddings that holds every text of these rows."""
    if not isinstance(model, FusionForImageTextClassification):
        raise InputError("text_embeddings: only a model of images and texts reads a table of them")
    table = TextEmbeddingTable.open(path)
    config: Any = model.config
    check_same_table(config, TableEncoder.from_dict(table.encoder), "the model")
    texts = rows.first_texts()
    may_lack = TEXT in config.missing_modalities
    absent = [
        number for number, place in enumerate(table.positions(texts)) if place < 0 and (texts[number] or not may_lack)
    ]
    if absent:
        raise InputError(
            f"{path}: has no embedding for {len(absent)} of {len(rows)} texts, such as that of row "
            f"{rows.table.rows[absent[0]]}; embed this table with mmhf embed --text, or go without text_embeddings"
        )
    return TextTableProcessor(processor, table)
