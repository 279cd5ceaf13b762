import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from saved_families import save_tiny_family

from mmhf.errors import InputError
from mmhf.inference import JobSettings, search
from mmhf.inference.embedders import embed_table, load_embedder
from mmhf.inference.search import EmbeddingIndex, embed_query
from tests.inference.embedding_models import COLOURS, save_tiny_clip


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def index_path(model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    lines = ["image,text"]
    for row in range(30):
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{row}.png")
        lines.append(f"{row}.png,a {list(COLOURS)[row % 3]} picture")
    (folder / "4.png").write_bytes(b"broken")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    embed_table(model_dir, folder / "table.csv", folder / "index.parquet", JobSettings(shard_rows=8))
    return folder / "index.parquet"


def test_an_image_finds_itself_first_and_the_others_by_their_cosine(model_dir, index_path):
    query = embed_query(load_embedder(model_dir), image=index_path.parent / "11.png")
    hits = EmbeddingIndex(index_path).search(query, top=7)
    assert hits[0].row == 11 and hits[0].score == pytest.approx(1, abs=1e-5)
    assert hits[0].values["image"] == "11.png" and hits[0].image.size == (16, 16)
    embeds = pq.read_table(index_path).column("image_embedding").to_pylist()
    scores = [-2.0 if each is None else float(torch.tensor(each) @ query) for each in embeds]
    assert [hit.row for hit in hits] == np.argsort([-score for score in scores], kind="stable")[:7].tolist()


def test_texts_are_searched_among_if_asked_for(model_dir, index_path):
    query = embed_query(load_embedder(model_dir), text=" a green picture ")
    hits = EmbeddingIndex(index_path).search(query, among="text", top=10)
    assert {hit.values["text"] for hit in hits} == {"a green picture"}
    assert [hit.row for hit in hits] == sorted(hit.row for hit in hits)


def test_an_index_of_first_numbers_is_searched_by_those_of_the_query(index_path, tmp_path):
    model, output = save_tiny_family("dual encoder", tmp_path / "model"), tmp_path / "short.parquet"
    embed_table(model, index_path.parent / "table.csv", output, JobSettings(), dimensions=4)
    query = embed_query(load_embedder(model), image=index_path.parent / "11.png")
    assert len(query) == 16
    embeds = pq.read_table(output).column("image_embedding").to_pylist()
    short = torch.nn.functional.normalize(query[:4], dim=0)
    scores = [-2.0 if each is None else float(torch.tensor(each) @ short) for each in embeds]
    hits = EmbeddingIndex(output).search(query, top=7)
    assert hits[0].row == 11 and hits[0].score == pytest.approx(1, abs=1e-5)
    assert [hit.score for hit in hits] == pytest.approx(sorted(scores, reverse=True)[:7], abs=1e-5)
    with pytest.raises(InputError, match="its embeddings have 4 numbers, the query 3"):
        EmbeddingIndex(output).search(query[:3])
    # Another size is another job.
    embed_table(model, index_path.parent / "table.csv", output, JobSettings(overwrite=True), dimensions=8)
    assert EmbeddingIndex(output).search(query, top=1)[0].row == 11


@pytest.mark.parametrize(("dimensions", "what"), [(17, "embeddings have 16 numbers"), (0, "embeddings have 16")])
def test_sizes_that_a_model_does_not_have_are_refused(tmp_path, index_path, dimensions, what):
    model = save_tiny_family("dual encoder", tmp_path / "model")
    with pytest.raises(InputError, match=f"dimensions: {dimensions}, but {what}"):
        embed_table(model, index_path.parent / "table.csv", tmp_path / "out.parquet", dimensions=dimensions)


def test_a_model_that_was_not_trained_for_fewer_numbers_is_refused(model_dir, index_path, tmp_path):
    with pytest.raises(InputError, match="dimensions: 4, but the model was not trained for fewer numbers"):
        embed_table(model_dir, index_path.parent / "table.csv", tmp_path / "out.parquet", dimensions=4)


def test_more_than_there_are_gives_all_that_have_an_embedding(model_dir, index_path):
    query = embed_query(load_embedder(model_dir), text="red")
    assert len(EmbeddingIndex(index_path).search(query, top=99)) == 29


def test_images_that_are_gone_leave_the_row(model_dir, index_path):
    index = EmbeddingIndex(index_path)
    index._source["images"] = "/nowhere"
    (hit,) = index.search(embed_query(load_embedder(model_dir), text="red"), top=1)
    assert hit.image is None and hit.values["text"]


def test_another_model_is_refused(model_dir, index_path, tmp_path):
    index = EmbeddingIndex(index_path)
    index.check_model(model_dir)
    with pytest.raises(InputError, match="is not the model"):
        index.check_model(save_tiny_clip(tmp_path / "other", seed=1))
    with pytest.raises(InputError, match="name it with --model"):
        index.check_model(tmp_path / "gone")


def test_what_is_no_index_is_refused(tmp_path, index_path):
    with pytest.raises(InputError, match="no such file"):
        EmbeddingIndex(tmp_path / "x.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no file of embeddings"):
        EmbeddingIndex(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_text("text")
    with pytest.raises(InputError, match="no file of embeddings"):
        EmbeddingIndex(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="8 numbers, the query 3"):
        EmbeddingIndex(index_path).search(torch.ones(3))
    with pytest.raises(InputError, match="no embeddings of sounds"):
        EmbeddingIndex(index_path).search(torch.ones(8), among="sound")


def test_a_query_without_content_is_refused(model_dir, index_path):
    embedder = load_embedder(model_dir)
    with pytest.raises(InputError, match="--text: is empty"):
        embed_query(embedder, text="  ")
    with pytest.raises(InputError, match="--image .*4.png"):
        embed_query(embedder, image=index_path.parent / "4.png")


@pytest.fixture
def large_index(index_path, tmp_path, monkeypatch):
    """A copy of the index for which 64 MiB are 10 bytes."""
    shutil.copy(index_path, tmp_path / "index.parquet")
    monkeypatch.setattr(search, "_HELD_BYTES", 10)
    return tmp_path / "index.parquet"


def rows_of(hits):
    return [[hit.row for hit in of_query] for of_query in hits]


def test_many_queries_at_once_find_what_each_finds_alone(index_path):
    queries = torch.nn.functional.normalize(torch.randn(5, 8), dim=1)
    index = EmbeddingIndex(index_path)
    alone = [index.search(query, top=4) for query in queries]
    assert rows_of(index.search_all(queries, top=4)) == rows_of(alone)


def test_a_large_index_is_copied_once_and_mapped(index_path, large_index, caplog, monkeypatch):
    queries = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    with caplog.at_level("INFO", logger="mmhf"):
        expected = rows_of(EmbeddingIndex(large_index).search_all(queries, top=6))
        (file,) = large_index.with_name("index.parquet.vectors").glob("image-*.f32")
        written = file.stat().st_mtime_ns
        assert rows_of(EmbeddingIndex(large_index).search_all(queries, top=6)) == expected
    assert file.stat().st_mtime_ns == written and caplog.text.count("copied once") == 1
    monkeypatch.undo()
    assert rows_of(EmbeddingIndex(index_path).search_all(queries, top=6)) == expected


def test_a_copy_that_is_cut_short_or_of_another_index_is_made_anew(large_index, caplog):
    query = torch.nn.functional.normalize(torch.randn(8), dim=0)
    expected = EmbeddingIndex(large_index).search(query, top=6)
    (file,) = large_index.with_name("index.parquet.vectors").glob("image-*.f32")
    file.write_bytes(file.read_bytes()[:-4])
    assert rows_of([EmbeddingIndex(large_index).search(query, top=6)]) == rows_of([expected])
    assert "is cut short" in caplog.text
    table = pq.read_table(large_index)
    pq.write_table(table.slice(0, 12), large_index)
    assert max(hit.row for hit in EmbeddingIndex(large_index).search(query, top=6)) < 12
    (other,) = large_index.with_name("index.parquet.vectors").glob("image-*.f32")
    assert other != file


def test_where_nothing_can_be_written_the_index_itself_is_read(large_index, caplog, monkeypatch):
    query = torch.nn.functional.normalize(torch.randn(8), dim=0)
    large_index.with_name("index.parquet.vectors").write_text("in the way")
    found = EmbeddingIndex(large_index).search(query, top=6)
    assert "cannot be written" in caplog.text
    with pytest.raises(InputError, match="search without --approximate"):
        EmbeddingIndex(large_index).search(query, approximate=True)
    monkeypatch.undo()
    assert rows_of([found]) == rows_of([EmbeddingIndex(large_index).search(query, top=6)])


def test_an_approximate_search_says_how_much_it_finds(large_index):
    query = torch.nn.functional.normalize(torch.randn(8), dim=0)
    for _ in range(2):  # the second reads the clusters
        index = EmbeddingIndex(large_index)
        exact = index.search(query, top=5)
        assert index.recall is None
        found = index.search(query, top=5, approximate=True)
        assert index.recall >= 0.95
        assert len({hit.row for hit in found} & {hit.row for hit in exact}) >= 3
