"""`mmhf fetch`, with a server of this machine in the place of those that public data sets lie on."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image

from mmhf.data.public_data import PUBLIC_DATA, Figure, Part, PublicData
from mmhf.recipe import load_recipe
from mmhf.recipe.shipped import shipped_recipes


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (10 * number, 0, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


class Server:
    """Serves `files`, from where a request says on, and notes where that was."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.starts: list[int] = []
        self.has_ranges = True
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = served.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                start = 0
                if served.has_ranges and "Range" in self.headers:
                    start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
                if self.command == "GET":
                    served.starts.append(start)
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                if served.has_ranges:
                    self.send_header("Accept-Ranges", "bytes")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content[start:])

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def leaves(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PublicData:
    """A data set of four photographs in two folders of an archive, a table, and photographs to be asked for."""
    monkeypatch.chdir(tmp_path)
    names = [f"leaves-master/raw/color/{'ab'[number % 2]}/{number}.jpg" for number in range(4)]
    server.files["/master.zip"] = archive(
        {**{name: picture(number) for number, name in enumerate(names)}, "leaves-master/raw/grey/a/0.jpg": b""}
    )
    server.files["/rows.csv"] = b'id,text\n1,"two\nlines"\n2,x\n'
    data = PublicData(
        title="leaves",
        licence="CC0",
        page="https://example.org/leaves",
        parts=[
            Part("color", f"{server.url}/master.zip", member="leaves-master/raw/color", images=4, classes=2),
            Part("rows.csv", f"{server.url}/rows.csv", rows=2),
            Part("asked", "https://example.org/form", by_hand=True, images=1, is_named_by_md5=True),
        ],
        recipes={"plant_disease/mobilenetv3": ("data.path={folder}/color",)},
        figures=[Figure("a model", "accuracy 0.9", "a split", "somebody, 2020")],
    )
    monkeypatch.setitem(PUBLIC_DATA, "leaves", data)  # type: ignore[arg-type]
    return data


def ask_for(folder: Path, content: bytes = picture(7)) -> None:
    (folder / "asked").mkdir(parents=True)
    (folder / "asked" / f"{hashlib.md5(picture(7)).hexdigest()}.jpg").write_bytes(content)


def test_what_can_be_fetched_is_and_the_rest_is_named(leaves, server, mmhf_cli, tmp_path):
    outcome = mmhf_cli("fetch", "leaves")
    folder = tmp_path / "data" / "leaves"
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1] == (
        "error: mmhf fetch leaves: put there what is missing: data/leaves/asked from https://example.org/form; "
        "then start again"
    )
    for fact in ("CC0", "https://example.org/leaves", "accuracy 0.9", "somebody, 2020", "none of it was measured"):
        assert fact in outcome.out
    assert "mmhf train plant_disease/mobilenetv3 data.path=data/leaves/color" in outcome.out
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == ["color", "rows.csv"]
    assert (folder / "color" / "b" / "3.jpg").read_bytes() == picture(3)
    assert len(list((folder / "color").glob("*/*.jpg"))) == 4
    ask_for(folder)
    requests = len(server.starts)
    outcome = mmhf_cli("fetch", "leaves")
    assert outcome.code == 0 and outcome.err.count("as it is known") == 3, outcome.err
    assert len(server.starts) == requests, "what was there was fetched again"


def test_what_differs_from_what_is_known_is_told(leaves, mmhf_cli, tmp_path):
    mmhf_cli("fetch", "leaves")
    folder = tmp_path / "data" / "leaves"
    ask_for(folder, picture(8))
    (folder / "color" / "a" / "0.jpg").unlink()
    (folder / "rows.csv").write_text("id\n1\n")
    outcome = mmhf_cli("fetch", "leaves", "--check")
    assert outcome.code == 2
    assert "data/leaves/color: 3 images; 4 are known" in outcome.err
    assert "data/leaves/rows.csv: 1 rows; 2 are known" in outcome.err
    assert "1 images are not what their names say, their MD5: " in outcome.err
    assert "asked: holds images with other content" in outcome.err.splitlines()[-1]
    shutil.rmtree(folder / "asked")
    shutil.rmtree(folder / "color")
    outcome = mmhf_cli("fetch", "leaves", "--check")
    assert outcome.code == 2 and not (folder / "color").exists()
    assert "data/leaves/color from http://127" in outcome.err and "data/leaves/asked from" in outcome.err


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_download_goes_on_where_it_stopped(has_ranges, leaves, server, mmhf_cli, tmp_path):
    server.has_ranges = has_ranges
    folder = tmp_path / "data" / "leaves"
    ask_for(folder)
    (folder / ".master.zip.fetched").write_bytes(server.files["/master.zip"][:100])
    assert mmhf_cli("fetch", "leaves").code == 0
    assert server.starts[0] == (100 if has_ranges else 0)
    assert (folder / "color" / "a" / "2.jpg").read_bytes() == picture(2)
    assert not list(folder.glob(".*.fetched"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive at all", "damaged archive"),
        (archive({"other/0.jpg": b""}), "holds no leaves-master/raw/color"),
        (archive({"leaves-master/raw/color/../../../../0.jpg": b""}), "leaves the data folder"),
    ],
)
def test_an_archive_that_is_not_what_it_should_be_leaves_nothing(content, message, leaves, server, mmhf_cli, tmp_path):
    server.files["/master.zip"] = content
    outcome = mmhf_cli("fetch", "leaves")
    assert outcome.code == 2 and message in outcome.err.splitlines()[-1]
    assert not (tmp_path / "data" / "leaves" / "color").exists()
    assert not list(tmp_path.rglob("0.jpg"))


def test_an_address_that_does_not_answer_is_named(leaves, server, mmhf_cli):
    del server.files["/master.zip"]
    outcome = mmhf_cli("fetch", "leaves")
    assert outcome.code == 2
    assert f"{server.url}/master.zip: cannot be fetched" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err


def test_wrong_names(leaves, refusal):
    assert "did you mean flickr30k?" in refusal("fetch", "flicker30k")
    assert "recipes for leaves are plant_disease/mobilenetv3" in refusal("fetch", "leaves", "--train", "fakeddit/v1.6")


def test_it_trains_afterwards(leaves, monkeypatch, succeed, tmp_path):
    ask_for(tmp_path / "data" / "leaves")
    trained = []
    monkeypatch.setattr("mmhf.verbs.train.train", lambda *given: trained.append(given))
    succeed("fetch", "leaves", "training.seed=1", "--train", "plant_disease/mobilenetv3")
    assert trained == [("plant_disease/mobilenetv3", ["data.path=data/leaves/color", "training.seed=1"])]


def test_all_are_listed(succeed):
    lines = succeed("fetch").splitlines()
    assert [line.split()[0] for line in lines] == list(PUBLIC_DATA)


@pytest.mark.parametrize("name", PUBLIC_DATA)
def test_recipes_and_overrides_of_each_exist(name: str, tmp_path: Path) -> None:
    data = PUBLIC_DATA[name]
    assert data.recipes.keys() <= shipped_recipes().keys()
    load: Callable[..., object] = load_recipe
    for recipe in data.recipes:
        load(shipped_recipes()[recipe], data.overrides(recipe, str(tmp_path)))
    assert all(part.address.startswith("https://") for part in data.parts) and data.figures and data.licence
