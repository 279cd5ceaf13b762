import numpy as np
import torch
from PIL import Image

from mmhf.evaluation.report import write_report
from mmhf.evaluation.retrieval import (
    RetrievalExample,
    evaluate_retrieval,
    retrieval_report_sections,
    save_retrieval_plots,
    worst_captions,
)


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
    sections = retrieval_report_sections(
        {"test": found},
        recipe_yaml="task: contrastive",
        facts={"model": "DualEncoderModel"},
        more_metrics={"test": {"zero_shot_accuracy": 0.4321}},
        plots=save_retrieval_plots(tmp_path / "plots", {"test": found}, log_history=history),
        examples={"test": [example]},
    )
    assert [section.title for section in sections] == [
        "What was trained",
        "Metrics",
        "Training curves",
        "Recall: test",
        "Captions whose image is found last: test",
        "Bad rows",
        "Recipe",
    ]
    write_report(tmp_path / "report.html", sections, "run")
    page = (tmp_path / "report.html").read_text()
    for text in (
        *found.metrics,
        "CLIP_benchmark",
        "0.4321",
        "1 captions have no readable image",
        "1,234",
        "a &lt;b&gt;",
    ):
        assert text in page


def test_the_recall_plot_reaches_one(tmp_path):
    paths = save_retrieval_plots(tmp_path, {"test": evaluation()})
    assert paths.keys() == {"test_recall"}
    pixels = np.asarray(Image.open(paths["test_recall"]).convert("RGB"))
    assert (pixels == (0x25, 0x63, 0xEB)).all(axis=-1).sum() > 100
