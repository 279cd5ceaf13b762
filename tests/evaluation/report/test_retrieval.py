import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from mmhf.evaluation.report.retrieval import (
    MeasuredRetrieval,
    RetrievalExample,
    retrieval_sections,
    worst_captions,
    write_contact_sheet,
)
from mmhf.evaluation.report.sections import RunFacts, write_report
from mmhf.evaluation.retrieval import embedding_view, evaluate_retrieval
from mmhf.evaluation.retrieval.plots import save_retrieval_plots


def evaluation():
    """Captions 0 and 2 find their image first, caption 3 third; caption 1 has none."""
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0.1, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.2], [0.3, 0.9, 0.1]])
    return evaluate_retrieval(images, texts, [0, -1, 1, 2])


def test_the_worst_captions_are_named_by_their_rows():
    assert worst_captions(evaluation()) == [(3, 3)]


def test_a_report_says_every_number_with_its_definition(tmp_path):
    found = evaluation()
    example = RetrievalExample(
        id="<7>", image=Image.new("RGB", (8, 8)), caption="a <b>", rank=1234, found_instead="a dog"
    )
    history = [{"step": step, "loss": 1 / step} for step in range(1, 5)]
    run = RunFacts(
        folder=tmp_path, title="run", recipe_yaml="task: contrastive", trained={"model": "DualEncoderModel"}
    )
    view = embedding_view(torch.eye(3), torch.eye(3), [0, 1, 2])
    measured = MeasuredRetrieval(
        evaluation=found, examples=[example], zero_shot={"zero_shot_accuracy": 0.4321}, view=view
    )
    plots = save_retrieval_plots(tmp_path / "plots", {"test": found}, views={"test": view}, log_history=history)
    sections = retrieval_sections(run, {"test": measured}, plots=plots)
    assert [section.title for section in sections] == [
        "What was trained",
        "Metrics",
        "Training curves",
        "Recall: test",
        "Embeddings: test",
        "Captions whose image is found last: test",
        "Bad rows",
        "Recipe",
    ]
    write_report(run, sections)
    page = (tmp_path / "report.html").read_text()
    for text in (
        *found.metrics,
        "CLIP_benchmark",
        "0.4321",
        "3 images with their first captions",
        "1 captions have no readable image",
        "1,234",
        "a &lt;b&gt;",
    ):
        assert text in page


@pytest.mark.usefixtures("drawn_figures")
def test_the_recall_plot_reaches_one(tmp_path):
    paths = save_retrieval_plots(tmp_path, {"test": evaluation()})
    assert paths.keys() == {"test_recall"}
    pixels = np.asarray(Image.open(paths["test_recall"]).convert("RGB"))
    assert (pixels == (0x25, 0x63, 0xEB)).all(axis=-1).sum() > 100


@dataclass
class Hit:
    values: dict[str, object]
    row: int = 3
    score: float = 0.5
    image: None = None


@pytest.mark.parametrize(
    ("values", "text_column", "shown"),
    [
        ({"image": "a.jpg", "caption": "a <dog>"}, None, "a &lt;dog&gt;"),
        ({"image": "a.jpg", "captions": ["a cat", "more"]}, None, "a cat"),
        ({"image": "a.jpg", "caption": "no", "words": "yes"}, "words", "yes"),
        ({"image": "a.jpg", "words": None}, "words", "(no text)"),
    ],
)
def test_a_contact_sheet_shows_the_caption_below_the_picture(tmp_path, values, text_column, shown):
    write_contact_sheet(tmp_path / "sheet.html", {"<q>": [Hit(values)]}, title="Search", text_column=text_column)
    page = (tmp_path / "sheet.html").read_text()
    assert re.search(rf"<p[^>]*>{re.escape(shown)}</p>", page)
    assert "&lt;q&gt;" in page and "0.5000" in page and "a.jpg" in page


def test_a_contact_sheet_says_nothing_of_texts_that_do_not_exist(tmp_path):
    write_contact_sheet(tmp_path / "sheet.html", {"q": [Hit({"image": "a.jpg"})], "none": []}, title="Search")
    page = (tmp_path / "sheet.html").read_text()
    assert "(no text)" not in page and "Nothing was found." in page
