"""`pipeline("image-captioning")`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor

from mmhf.data.images import decode_image
from mmhf.errors import InputError
from mmhf.inference.processor_pipeline import ProcessorPipeline
from mmhf.models.captioner.modeling_captioner import PrefixCaptionerForConditionalGeneration
from mmhf.recipe.nearest import did_you_mean, nearest_names

# The keys of a recipe's section `generation`, not read from it: releases carry this file, and no recipes.
GENERATION_OPTIONS = (
    "max_new_tokens",
    "num_beams",
    "length_penalty",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "no_repeat_ngram_size",
)

ImageLike = Image | str | bytes | dict[str, Any]


def check_generation(options: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse what a recipe's section `generation` does not know, such as `num_beam=4`.

    Raises:
        InputError: An option is unknown.
    """
    for name in options:
        if name not in GENERATION_OPTIONS:
            hint = did_you_mean(nearest_names(name, GENERATION_OPTIONS))
            raise InputError(f"{name}: generation does not know it{hint}")
    return dict(options)


class ImageCaptioningPipeline(ProcessorPipeline):
    """Write captions for images.

    Example:

    ```python
    >>> from mmhf import pipeline

    >>> captioner = pipeline("image-captioning", model="releases/flickr30k/v1.0")
    >>> captioner("photo.jpg")
    [{'caption': 'A dog runs across the grass.'}]
    >>> captioner(["a.jpg", "b.jpg"], batch_size=2, num_beams=4)
    [[{'caption': 'A man on a bicycle.'}], [{'caption': 'Two children play in the snow.'}]]
    ```

    A model whose prompt names columns is asked with `{"image": "photo.jpg", "columns": {"question": "What is it?"}}`.
    """

    model_class = PrefixCaptionerForConditionalGeneration

    def __call__(self, inputs: ImageLike | Iterable[ImageLike], **kwargs: Any) -> Any:  # type: ignore[override]
        """Caption one image or many.

        Args:
            inputs (an image, or a list, generator or data set of images): Each a PIL image, a path, the bytes of a
                file, or `{"image": one of these}`, to which `"columns": {"kind": "a photo", ...}` belongs where the
                model's prompt names columns. A generator is consumed as results are asked for.
            batch_size (`int`, defaults to 1): Images per forward pass.
            num_workers (`int`, defaults to 0): Processes that decode images.
            num_beams, max_new_tokens, do_sample, temperature, top_p, top_k, ... (*optional*): As in a recipe's section
                `generation`; absent, the model's own way.

        Returns:
            `list[dict]` for one image: `[{"caption": str}]`; for a list, a list of those, and for a generator or data
            set an iterator.

        Raises:
            InputError: A keyword is unknown, or columns are missing, of another name, or not for this model.
            BadImageError: An image cannot be read.
        """
        if isinstance(inputs, (list, tuple)) and not inputs:
            return []
        return super().__call__(list(inputs) if isinstance(inputs, tuple) else inputs, **kwargs)

    def _sanitize_parameters(self, **generation: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return {}, check_generation(generation), {}

    def preprocess(self, input_: ImageLike) -> dict[str, Any]:  # type: ignore[override]
        image = input_["image"] if isinstance(input_, dict) and "image" in input_ else input_
        assert self.processor is not None
        columns = self._columns(input_.get("columns") if isinstance(input_, dict) else None)
        encoding = self.processor(images=[decode_image(image)], **columns)
        return {**encoding, "pixel_values": encoding["pixel_values"].to(self.dtype)}

    def _columns(self, values: object) -> dict[str, Any]:
        """The processor's argument for an input's columns."""
        prompt = self.model.config.prompt_of_rows()
        if prompt is None:
            if values is not None:
                raise InputError("columns: the model's prompt names none; leave them away")
            return {}
        if values is None:
            names = ", ".join(prompt.names)
            raise InputError(f'an input needs "columns", a dict with values of {names}, beside its "image"')
        if not isinstance(values, Mapping):
            raise InputError(f"columns: expected a dict of values by column, got {values!r}")
        return {"columns": [values]}

    def _forward(  # type: ignore[override]
        self, input_tensors: Mapping[str, Tensor], **generation: Any
    ) -> dict[str, Tensor]:
        model: Any = self.model
        return {"tokens": model.generate(**input_tensors, **generation)}

    def postprocess(  # type: ignore[override]
        self, model_outputs: Mapping[str, Any]
    ) -> list[dict[str, str]]:
        processor: Any = self.processor
        tokens: Tensor | Sequence[Any] = model_outputs["tokens"]
        return [{"caption": caption} for caption in processor.captions(tokens)]
