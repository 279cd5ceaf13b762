import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mmhf.errors import InputError
from mmhf.inference import JobSettings
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
