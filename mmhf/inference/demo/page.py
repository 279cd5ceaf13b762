"""The page: upload an image, type a text and values of columns, read the answer and what it rests on."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL.Image import Image

from mmhf.data.images import BadImageError, decode_image
from mmhf.errors import InputError
from mmhf.inference.demo.subjects import Answer, Subject

MAX_TEXT = 1000
"""Longer texts, in characters, are refused."""
_UPLOADS_KEPT_SECONDS = 3600
# Files reach us as they were uploaded: gradio's own reading opens them before we can refuse them. It still checks that
# they are uploads, and not other files of this machine.
_LISTENING: dict[str, Any] = {"preprocess": False, "api_visibility": "private", "concurrency_limit": 1}
_TEXT_LABEL = {"classifier": "Text", "dual encoder": "Classes, separated by commas (may be empty)"}
_WAY = {
    "classifier": "Choose an image{and_text}, and press Classify.",
    "captioner": "Choose an image, and press Describe.",
    "dual encoder": "Choose an image to see its nearest captions; name classes to have it classified among them.",
}
_BUTTON = {"classifier": "Classify", "captioner": "Describe", "dual encoder": "Compare"}
_DEEPEST = 0.7
"""How much of its colour the weightiest word has behind it, so that it can be read."""

Upload = dict[str, Any] | None
"""gradio's `ImageData` as a dictionary; its `path` lies in the folder of uploads."""


@dataclass(frozen=True)
class Page:
    """A page that is not served yet.

    Args:
        subject (`Subject`): The model.
        name (`str`): What the page calls it.
        examples (`list[list[str]]`): From `write_examples`.
    """

    subject: Subject
    name: str
    examples: list[list[str]]

    def build(self) -> gr.Blocks:
        """Lay the page out; it asks nothing of any other machine."""
        blocks = gr.Blocks(
            title=self.name, analytics_enabled=False, delete_cache=(_UPLOADS_KEPT_SECONDS, _UPLOADS_KEPT_SECONDS)
        )
        with blocks:
            way = _WAY[self.subject.family].format(and_text=" and a text" if self.subject.takes_text else "")
            # Not as Markdown, which makes a link to an e-mail address of `releases/name@v1.8`.
            name = f'<h1 style="overflow-wrap: anywhere">{html.escape(self.name)}</h1>'
            gr.HTML(f"{name}<p>{way}</p>", elem_id="title", padding=False)
            with gr.Row():
                with gr.Column():
                    image = gr.Image(
                        label="Image", sources=["upload", "clipboard"], height=320, elem_id="image", buttons=[]
                    )
                    label = _TEXT_LABEL.get(self.subject.family, "")
                    text = gr.Textbox(label=label, visible=self.subject.takes_text, elem_id="text", lines=2)
                    fields = [_field(name, kind) for name, kind in self.subject.columns.items()]
                    button = gr.Button(_BUTTON[self.subject.family], variant="primary", elem_id="ask")
                    notice = gr.HTML(elem_id="notice")
                with gr.Column():
                    answers = self._answer_components()
                    explanations = self._explanation_components()
            if self.examples:
                gr.Examples(self.examples, [image, text] if self.subject.takes_text else [image], label="Examples")
            image.upload(self._check, image, [image, notice], **_LISTENING)
            given = [image, text, *fields]
            asked = button.click(self._ask, given, [*answers, notice], **_LISTENING)
            if explanations:
                asked.then(self._explain, given, explanations, **_LISTENING)
        return blocks

    def _answer_components(self) -> list[Any]:
        if self.subject.family == "captioner":
            return [gr.Textbox(label="Caption", elem_id="caption", interactive=False)]
        components: list[Any] = [gr.Label(label="Answer", elem_id="label", num_top_classes=5)]
        if self.subject.family == "dual encoder":
            components.append(
                gr.Dataframe(headers=["Nearest captions", "cosine"], elem_id="nearest", interactive=False)
            )
        return components

    def _explanation_components(self) -> list[Any]:
        if not self.subject.explains:
            return []
        heat = gr.Image(
            label="What the answer rests on: red speaks for it, violet against it",
            elem_id="heat",
            interactive=False,
            buttons=[],
            format="png",
            height=320,
        )
        if self.subject.family == "dual encoder" or not self.subject.takes_text:
            return [heat]
        words = gr.HighlightedText(label="Words: red speaks for the answer, violet against it", elem_id="words")
        return [heat, words]

    def _check(self, upload: Upload) -> tuple[Any, str]:
        """Refuse a file as soon as it is there."""
        try:
            self._open(upload)
        except BadImageError as error:
            return None, _refusal(error)
        return gr.skip(), ""

    def _ask(self, upload: Upload, text: str | None, *values: object) -> list[Any]:
        try:
            answer = self.subject.answer(self._open(upload), _bounded(text), self._columns(values))
        except (BadImageError, InputError) as error:
            return [*self._shown(Answer()), _refusal(error)]
        return [*self._shown(answer), ""]

    def _explain(self, upload: Upload, text: str | None, *values: object) -> Any:
        shown: list[Any] = [None, None]
        with contextlib.suppress(BadImageError, InputError):
            if (found := self.subject.explain(self._open(upload), _bounded(text), self._columns(values))) is not None:
                words = [
                    piece for word, relevance in found.words for piece in ((word, _DEEPEST * relevance), (" ", None))
                ]
                shown = [found.image, words or None]
        return shown if self.subject.family == "classifier" and self.subject.takes_text else shown[0]

    def _shown(self, answer: Answer) -> list[Any]:
        if self.subject.family == "captioner":
            return [answer.caption]
        numbers = ", ".join(f"{name}: {number:.4g}" for name, number in answer.numbers.items())
        shown: list[Any] = [answer.probabilities or numbers or None]
        if self.subject.family == "dual encoder":
            shown.append([[caption, f"{similarity:.3f}"] for caption, similarity in answer.nearest])
        return shown

    def _columns(self, values: Sequence[object]) -> dict[str, object]:
        """What was put into the fields; an empty one is a missing value."""
        given = dict(zip(self.subject.columns, values, strict=False))
        return {name: _bounded(value) if isinstance(value, str) else value for name, value in given.items()}

    def _open(self, upload: Upload) -> Image:
        if upload is None:
            raise BadImageError("no image is chosen")
        return decode_image(Path(upload["path"]))


def _field(name: str, kind: str | list[str]) -> Any:
    """The field of a column: a number, a text, or one of the categories that the model knows."""
    if isinstance(kind, list):
        # The browser shows the empty one as no choice at all.
        return gr.Dropdown(["", *kind], value="", label=name, elem_id=f"column-{name}")
    return gr.Textbox(label=f"{name} (a number)" if kind == "number" else name, elem_id=f"column-{name}")


def _bounded(text: str | None) -> str:
    text = text or ""
    if len(text) > MAX_TEXT:
        raise InputError(f"the text has {len(text)} characters, more than {MAX_TEXT}")
    return text


def _refusal(error: ValueError) -> str:
    return f"<strong>Refused:</strong> {html.escape(str(error))}"
