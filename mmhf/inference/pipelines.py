"""`pipeline("image-text-classification")`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor

from mmhf.data.images import decode_image
from mmhf.errors import InputError
from mmhf.inference.processor_pipeline import ProcessorPipeline
from mmhf.models.classification_loss import class_names
from mmhf.models.fusion.column_features import ColumnValues
from mmhf.models.fusion.modeling_fusion import FusionForImageTextClassification
from mmhf.models.targets import target_of

Example = Mapping[str, Any]


class ImageTextClassificationPipeline(ProcessorPipeline):
    """Classify pairs of an image and a text.

    Example:

    ```python
    >>> from mmhf import pipeline

    >>> classifier = pipeline("image-text-classification", model="releases/fakeddit/v1.8")
    >>> classifier({"image": "photo.jpg", "text": "a frog on a lamp"})
    [{'label': 'true', 'score': 0.91}, {'label': 'fake', 'score': 0.09}]
    >>> classifier(image=["a.jpg", "b.jpg"], text=["a frog", "a lamp"], batch_size=2, top_k=1)
    [[{'label': 'true', 'score': 0.88}], [{'label': 'fake', 'score': 0.67}]]
    ```
    """

    model_class = FusionForImageTextClassification

    def __call__(  # type: ignore[override]
        self,
        inputs: Example | Image | str | bytes | Iterable[Example] | None = None,
        *,
        image: Image | str | bytes | Sequence[Image | str | bytes] | None = None,
        text: str | Sequence[str] | None = None,
        columns: ColumnValues | Sequence[ColumnValues] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Classify one pair or many.

        Args:
            inputs (`dict`, or a list, generator or data set of `dict`): `{"image": ..., "text": ...}` each; an image
                is a PIL image, a path or the bytes of a file. A generator is consumed as results are asked for. A
                model that was trained on rows without a text takes an image by itself, too. A model that reads columns
                of a table takes `"columns": {"age": 40, ...}` besides, where a column that is not named is missing.
            image, text, columns: Instead of `inputs`: one of each, or lists of equal length.
                A model that was trained on rows without an image, or without a text, takes None for it.
            top_k (`int`, *optional*): How many labels to return; absent = all.
            batch_size (`int`, defaults to 1): Pairs per forward pass.
            num_workers (`int`, defaults to 0): Processes that decode images.

        Returns:
            `list[dict]` for one pair: `label` and `score` (its probability), the most probable first; for a list, a
            list of those, and for a generator or data set an iterator. With a model that has an abstention threshold,
            each also has `abstain`: whether the highest probability is below it. Of a model of several labels, each
            has `given`: whether its probability reaches its own threshold; of a model of ordered classes, whether it
            is the answer. A model of numbers gives each as `score`, in the order of its columns.

        Raises:
            InputError: An input lacks its image, text or columns, has a column or value that the model does not read,
                or the lists differ in length.
            BadImageError: An image cannot be read.
        """
        if isinstance(inputs, Image | str | bytes):
            if text is None and "text" not in self.model.config.missing_modalities:
                raise InputError('the model reads an image and a text: give {"image": ..., "text": ...}')
            inputs = {"image": inputs, "text": text, "columns": columns}
        elif inputs is None:
            inputs = _pairs(image, text, columns)
        elif image is not None or text is not None or columns is not None:
            raise InputError("give either inputs or image=, text= and columns=, not both")
        if isinstance(inputs, (list, tuple)):
            return super().__call__(list(inputs), **kwargs) if inputs else []
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(  # type: ignore[override]
        self, top_k: int | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k={top_k}: expected 1 or more")
        return {}, {}, {} if top_k is None else {"top_k": top_k}

    def preprocess(self, input_: Example) -> dict[str, Any]:  # type: ignore[override]
        config = self.model.config
        optional = config.missing_modalities
        missing = [key for key in ("image", "text") if input_.get(key) is None]
        unnamed = [key for key in missing if key not in input_ and key != config.mask]
        if len(missing) == 2 or unnamed or not set(missing) <= set(optional):
            raise InputError(f"an input needs image and text; {', '.join(missing)} is missing from {sorted(input_)}")
        text = input_.get("text")
        if not isinstance(text, str | None):
            raise InputError(f"text: expected a string, got {text!r}")
        assert self.processor is not None
        image = None if input_.get("image") is None else decode_image(input_["image"])
        if text is not None:
            text = text.strip() or (None if "text" in optional else "")
        columns = self._columns(input_.get("columns"))
        encoding = self.processor(images=[image], text=[text], masks=bool(optional), **columns)
        return {**encoding, "pixel_values": encoding["pixel_values"].to(self.dtype)}

    def _columns(self, values: object) -> dict[str, Any]:
        """The processor's argument for an input's columns."""
        config = self.model.config
        if config.columns is None or config.mask == "columns":
            if values is not None:
                raise InputError("columns: the model reads none; leave them away")
            return {}
        if values is None and "columns" not in config.missing_modalities:
            names = [each["name"] for kind in ("numbers", "categories") for each in config.columns[kind]]
            raise InputError(f'an input needs "columns", a dict with values of {", ".join(names)}')
        if not isinstance(values, Mapping | None):
            raise InputError(f"columns: expected a dict of values by column, got {values!r}")
        return {"columns": [values]}

    def _forward(self, input_tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        return {"logits": self.model(**input_tensors).logits}

    def postprocess(  # type: ignore[override]
        self, model_outputs: Mapping[str, Tensor], top_k: int | None = None
    ) -> list[dict[str, Any]]:
        target = target_of(self.model.config)
        scores = target.scores(model_outputs["logits"][0]).tolist()
        return target.answers(scores, class_names(self.model), self.model.config)[:top_k]


def _pairs(
    image: Any, text: str | Sequence[str] | None, columns: ColumnValues | Sequence[ColumnValues] | None
) -> Example | list[Example]:
    if image is None or text is None:
        raise InputError("give inputs, or both image= and text=")
    several = isinstance(image, (list, tuple))
    if several != (not isinstance(text, str)):
        raise InputError("image= and text= must both be single or both be lists")
    if columns is not None and several != isinstance(columns, (list, tuple)):
        raise InputError("columns= must be single or a list as image= and text= are")
    if not several:
        return {"image": image, "text": text, "columns": columns}
    if len(image) != len(text):
        raise InputError(f"{len(image)} images for {len(text)} texts")
    rows: Sequence[Any] = [None] * len(image) if columns is None else list(columns)
    if len(rows) != len(image):
        raise InputError(f"{len(image)} images for {len(rows)} rows of columns")
    return [{"image": one, "text": other, "columns": row} for one, other, row in zip(image, text, rows, strict=True)]
