import csv
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from mmhf.errors import InputError
from mmhf.inference.embedders import RowEmbedder, embed_table
from mmhf.inference.jobs import JobSettings
from mmhf.inference.table_job import TableJob
from mmhf.models.dual_encoder.building import build_dual_encoder, build_dual_encoder_processor
from mmhf.recipe import recipe_from_dict
from tests.inference.embedding_models import COLOURS, save_tiny_clip


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def dual_encoder_dir(tmp_path_factory):
    """A dual encoder of mmhf's own."""
    recipe = recipe_from_dict(
        {
            "task": "contrastive",
            "model": {
                "vision": {"patch_size": 8, "width": 16, "layers": 1, "heads": 2},
                "text": {"width": 16, "layers": 1, "heads": 2, "vocab_size": 300},
                "embedding_dim": 8,
            },
            "data": {"source": "sample", "image_size": 16, "max_length": 12},
        },
        name="tiny",
    ).recipe
    folder = tmp_path_factory.mktemp("dual_encoder")
    processor = build_dual_encoder_processor(recipe.model, recipe.data, ["a red picture", "green and blue"])
    torch.manual_seed(0)
    build_dual_encoder(recipe, processor.tokenizer).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def table(tmp_path):
    """Twelve rows; row 3 has a broken image, row 5 no text, row 7 neither."""
    folder = tmp_path / "data"
    folder.mkdir()
    generator = np.random.default_rng(0)
    with (folder / "table.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "image", "text"])
        for row in range(12):
            image = generator.integers(0, 255, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / f"{row}.png")
            if row in (3, 7):
                (folder / f"{row}.png").write_bytes(b"not an image")
            words = generator.choice([*COLOURS, "a", "picture"], 1 + row % 3)
            writer.writerow([row, f"{row}.png", "" if row in (5, 7) else " ".join(words)])
    return folder / "table.csv"


def by_hand(model_dir, table):
    """Embeddings of each row alone, by transformers."""
    model, processor = AutoModel.from_pretrained(model_dir).eval(), AutoProcessor.from_pretrained(model_dir)
    images, texts = {}, {}
    for row in csv.DictReader(table.open()):
        number = int(row["id"])
        with torch.no_grad():
            if number not in (3, 7):
                inputs = processor(images=Image.open(table.parent / row["image"]), return_tensors="pt")
                images[number] = model.get_image_features(**inputs).pooler_output[0]
            if row["text"]:
                inputs = processor(text=row["text"], return_tensors="pt")
                texts[number] = model.get_text_features(**inputs).pooler_output[0]
    return images, texts


def small(**options):
    return JobSettings(batch_size=3, shard_rows=4, progress=False, **options)


@pytest.mark.parametrize(("kind", "workers"), [("model_dir", 0), ("model_dir", 2), ("dual_encoder_dir", 0)])
@pytest.mark.slow
def test_embeddings_are_the_models_own_of_length_one(request, table, tmp_path, kind, workers):
    model_dir = request.getfixturevalue(kind)
    output = tmp_path / "out.parquet"
    summary = embed_table(model_dir, table, output, small(workers=workers))
    written = pq.read_table(output)
    assert [int(row) for row in written.column("id").to_pylist()] == list(range(12))
    for name, expected in zip(("image_embedding", "text_embedding"), by_hand(model_dir, table), strict=True):
        assert written.schema.field(name).type == pa.list_(pa.float32(), 8)
        for row, embeds in enumerate(written.column(name).to_pylist()):
            assert (embeds is None) == (row not in expected)
            if embeds is not None:
                unit = torch.nn.functional.normalize(expected[row], dim=0)
                assert torch.allclose(torch.tensor(embeds), unit, atol=1e-5)
    errors = written.column("error").to_pylist()
    assert [row for row, error in enumerate(errors) if error] == [3, 5, 7]
    assert errors[5] == "the text is empty" and errors[7].endswith("; the text is empty")
    assert summary.embedded == {"image": 10, "text": 10} and summary.rows_here == 12
    assert sum(summary.errors.values()) == 3 and not list(tmp_path.glob("*.partial"))


def test_a_folder_of_images_needs_no_table(model_dir, table, tmp_path):
    folder = table.parent
    table.unlink()
    embed_table(model_dir, folder, tmp_path / "out.parquet", small())
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.column_names == ["file_name", "image_embedding", "error"]
    assert written.column("image_embedding").null_count == 2


def test_texts_alone_need_no_images(model_dir, table, tmp_path):
    output = tmp_path / "out.parquet"
    summary = embed_table(model_dir, table, output, small(columns={"text": "id"}), modalities=["text"])
    assert summary.embedded == {"text": 12}
    assert "image_embedding" not in pq.read_schema(output).names


def test_a_shard_without_any_image_keeps_the_type(model_dir, table, tmp_path):
    for row in range(4):
        (table.parent / f"{row}.png").write_bytes(b"")
    embed_table(model_dir, table, tmp_path / "out.parquet", small())
    column = pq.read_table(tmp_path / "out.parquet").column("image_embedding")
    assert column.type == pa.list_(pa.float32(), 8) and column.null_count == 5


def in_children(what, model_dir, table, folder):
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, str(Path(__file__).with_name("embed_in_children.py")), what, model_dir, table, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: int(value) for name, value in (pair.split("=") for pair in done.stdout.split())}


@pytest.mark.slow
def test_the_output_does_not_depend_on_where_it_was_killed(model_dir, table, tmp_path):
    assert in_children("kill", model_dir, table, tmp_path)["steps"] > 30


@pytest.mark.slow
def test_processes_share_the_shards_and_write_what_one_would(model_dir, table, tmp_path):
    counts = in_children("share", model_dir, table, tmp_path)
    assert counts["rows"] == 12 and counts["most"] < 12


def test_what_is_done_is_not_done_again(model_dir, table, tmp_path, monkeypatch):
    output = tmp_path / "out.parquet"
    embed_table(model_dir, table, output, small())
    before = output.stat().st_mtime_ns
    assert embed_table(model_dir, table, output, small()).rows_here == 0
    assert output.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="made from other inputs"):
        embed_table(model_dir, table, output, small(limit=5))
    assert embed_table(model_dir, table, output, small(limit=5, overwrite=True)).rows == 5


def test_another_model_does_not_go_on_with_the_work_of_the_first(model_dir, table, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    output = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(TableJob, "_assemble", stop)
        with pytest.raises(KeyboardInterrupt):
            embed_table(model_dir, table, output, small())
    other = save_tiny_clip(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="begun with another model"):
        embed_table(other, table, output, small())
    assert embed_table(model_dir, table, output, small()).rows_here == 0


def test_a_process_with_other_inputs_does_not_join_those_at_work(model_dir, table, tmp_path, monkeypatch):
    output, joined, may_end = tmp_path / "out.parquet", threading.Event(), threading.Event()
    exact = RowEmbedder.make

    def slow(*args):
        joined.set()
        may_end.wait(30)
        return exact(*args)

    monkeypatch.setattr(RowEmbedder, "make", slow)
    thread = threading.Thread(target=embed_table, args=(model_dir, table, output, small()))
    thread.start()
    assert joined.wait(60)
    try:
        with pytest.raises(InputError, match="another process is writing it"):
            embed_table(model_dir, table, output, small(limit=5, overwrite=True))
    finally:
        may_end.set()
        thread.join()
    assert len(pq.read_table(output)) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "out.csv"}, "name it .parquet"),
        ({"modalities": ["sound"]}, "does not embed sound"),
        ({"modalities": ["image"], "columns": {"text": "text"}}, "columns.text"),
        ({"columns": {"image": "picture"}}, "picture"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_cannot_be_embedded_is_refused(model_dir, table, tmp_path, options, message):
    output = tmp_path / options.pop("output", "out.parquet")
    modalities = options.pop("modalities", ())
    with pytest.raises(InputError, match=message):
        embed_table(model_dir, table, output, JobSettings(**options), modalities=modalities)


def test_a_table_with_neither_images_nor_texts_is_refused(model_dir, tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="neither a column of images nor one of texts"):
        embed_table(model_dir, tmp_path / "table.csv", tmp_path / "out.parquet")


def test_another_kind_of_model_is_refused(tmp_path, table):
    from transformers import BertConfig, BertModel

    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="a bert model; embedding needs a dual encoder"):
        embed_table(tmp_path / "bert", table, tmp_path / "out.parquet")


def test_captions_are_embedded_each_row_s_as_one(model_dir, table, tmp_path):
    """A single caption is its own embedding, several have the mean of theirs; lists are read as pandas writes them."""
    captions = ["a red picture", ["a red picture", "blue"], json.dumps(["green", "a blue picture"]), []]
    lines = [json.dumps({"image": f"{row}.png", "captions": each}) for row, each in enumerate(captions)]
    (table.parent / "captions.jsonl").write_text("\n".join(lines))
    output = tmp_path / "out.parquet"
    summary = embed_table(model_dir, table.parent / "captions.jsonl", output, small())
    assert summary.embedded == {"image": 3, "text": 3}
    written = pq.read_table(output).to_pydict()
    model, processor = AutoModel.from_pretrained(model_dir).eval(), AutoProcessor.from_pretrained(model_dir)

    def of(text):
        with torch.no_grad():
            embeds = model.get_text_features(**processor(text=text, return_tensors="pt")).pooler_output[0]
        return torch.nn.functional.normalize(embeds, dim=0)

    expected = [of("a red picture"), of("a red picture") + of("blue"), of("green") + of("a blue picture")]
    for row, wanted in enumerate(expected):
        found = torch.tensor(written["text_embedding"][row])
        assert torch.allclose(found, torch.nn.functional.normalize(wanted, dim=0), atol=1e-5)
    assert written["text_embedding"][3] is None
    assert "not an image" in written["error"][3] and written["error"][3].endswith("; the text is empty")
    assert written["captions"][0] == "a red picture"


def test_the_columns_of_captions_that_a_model_was_trained_on(dual_encoder_dir, table, tmp_path):
    trained = shutil.copytree(dual_encoder_dir, tmp_path / "trained")
    (trained / "recipe.yaml").write_text(
        "data: {source: table, columns: {image: null, captions: [first, second], id: null}}\n"
    )
    (table.parent / "two.csv").write_text("image,first,second\n0.png,red,blue\n1.png,green,\n")
    summary = embed_table(trained, table.parent / "two.csv", tmp_path / "out.parquet", small())
    assert summary.embedded == {"image": 2, "text": 2} and not summary.errors
