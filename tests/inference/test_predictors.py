from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from mmhf.errors import InputError
from mmhf.inference import JobSettings, JobSummary, outputs, predict_table
from mmhf.inference.loading import choose_device, load_model
from mmhf.inference.shards import ShardFolder
from mmhf.inference.table_job import TableJob, reasons_by_kind
from tests.inference.conftest import write_csv


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def predict(model_dir: Path, table: Path, output: Path, images_dir: Path | None = None, **changes) -> JobSummary:
    own = {name: changes.pop(name) for name in ("threshold", "defuse_formulas") if name in changes}
    settings = JobSettings(**{"image_root": images_dir, "progress": False, "batch_size": 3, **changes})
    return predict_table(model_dir, table, output, settings, **own)


def probabilities(rows: list[dict]) -> np.ndarray:
    return np.array([[float(row["probability_fake"]), float(row["probability_true"])] for row in rows])


def test_predictions_equal_the_model_and_keep_rows_and_columns(model_dir, table, images_dir, rows, expected, tmp_path):
    summary = predict(model_dir, table, tmp_path / "out.csv", images_dir)
    written = read_csv(tmp_path / "out.csv")
    assert list(written[0]) == [
        "id", "image", "text", "label", "probability_fake", "probability_true", "confidence", "error",
    ]  # fmt: skip
    assert [{name: row[name] for name in ("id", "image", "text")} for row in written] == rows
    np.testing.assert_allclose(probabilities(written), expected, rtol=0, atol=1e-6)
    for row, wanted in zip(written, expected, strict=True):
        assert row["label"] == ["fake", "true"][wanted.argmax()]
        assert float(row["confidence"]) == max(float(row["probability_fake"]), float(row["probability_true"]))
        assert row["error"] == ""
    assert (summary.rows, summary.unpredicted, summary.errors, summary.resumed_rows) == (20, 0, {}, 0)
    assert sum(summary.labels.values()) == 20
    assert not (tmp_path / "out.csv.partial").exists()


@pytest.mark.slow
def test_parquet_holds_the_same_numbers_as_csv(model_dir, table, images_dir, tmp_path):
    for name in ("out.csv", "out.parquet"):
        predict(model_dir, table, tmp_path / name, images_dir)
    from_csv, from_parquet = read_csv(tmp_path / "out.csv"), pq.read_table(tmp_path / "out.parquet")
    assert from_parquet.schema.field("probability_true").type == pa.float64()
    assert probabilities(from_csv).tolist() == probabilities(from_parquet.to_pylist()).tolist()
    assert from_parquet.column("error").null_count == 20


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "parquet", "parquet with images", "folder"])
def test_every_kind_of_input_gives_the_same(kind, model_dir, images_dir, rows, expected, tmp_path):
    root: Path | None = images_dir
    if kind == "tsv":
        source = write_csv(tmp_path / "input.tsv", rows, delimiter="\t")
    elif kind == "jsonl":
        source = tmp_path / "input.jsonl"
        source.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    elif kind == "folder":
        source, root = tmp_path / "folder", None
        shutil.copytree(images_dir, source)
        write_csv(source / "metadata.csv", [{"file_name": row["image"], "text": row["text"]} for row in rows])
    else:
        source, table = tmp_path / "input.parquet", pa.Table.from_pylist(rows)
        if kind == "parquet with images":
            root = None
            structs = [{"bytes": (images_dir / row["image"]).read_bytes(), "path": None} for row in rows]
            table = table.set_column(1, "image", pa.array(structs))
        pq.write_table(table, source)
    predict(model_dir, source, tmp_path / "out.csv", root)
    written = read_csv(tmp_path / "out.csv")
    np.testing.assert_allclose(probabilities(written), expected, rtol=0, atol=1e-6)
    assert ("image" in written[0]) == (kind in ("tsv", "jsonl", "parquet"))


@pytest.fixture
def wild(tmp_path: Path, images_dir: Path, rows: list[dict[str, str]]) -> tuple[Path, dict[int, str]]:
    """A table with bad rows, and for each the words that its error must hold."""
    folder = tmp_path / "wild"
    shutil.copytree(images_dir, folder)
    changed = [dict(row) for row in rows]
    (folder / "1.png").unlink()
    (folder / "3.png").write_bytes(b"")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:-200])
    (folder / "5.png").write_text("<!DOCTYPE html><html><body>404</body></html>")
    changed[6]["image"] = ""
    changed[7]["image"] = "../input.csv"
    changed[8]["image"] = "/etc/hostname"
    (tmp_path / "outside.png").write_bytes((images_dir / "0.png").read_bytes())
    (folder / "9.png").unlink()
    (folder / "9.png").symlink_to(tmp_path / "outside.png")
    changed[10]["image"] = "a\x00b.png"
    changed[11]["text"] = ""
    changed[12]["text"] = "   "
    reasons = {
        1: "missing", 3: "empty", 4: "damaged", 5: "not an image", 6: "no image is named", 7: "leaves the data folder",
        8: "not relative to the data folder", 9: "link out of the data folder", 10: "NUL character",
    }  # fmt: skip
    # The odd but good ones.
    Image.open(folder / "13.png").convert("CMYK").save(folder / "13.png", "JPEG")
    Image.open(folder / "14.png").convert("RGBA").save(folder / "14.png")
    Image.open(folder / "15.png").convert("P").save(folder / "15.png", "GIF")
    Image.new("L", (1, 1)).save(folder / "16.png")
    return write_csv(folder / "input.csv", changed), reasons


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_named_and_no_row_is_lost(wild, model_dir, expected, tmp_path, workers):
    table, reasons = wild
    summary = predict(model_dir, table, tmp_path / "out.csv", workers=workers)
    written = read_csv(tmp_path / "out.csv")
    assert [row["id"] for row in written] == [f"{index:03d}" for index in range(20)]
    for index, row in enumerate(written):
        if index in reasons:
            assert reasons[index] in row["error"]
            assert row["label"] == row["probability_fake"] == row["confidence"] == ""
        else:
            assert ("text is empty" in row["error"]) == (index in (11, 12))
            assert row["label"]
    good = [index for index in range(20) if index not in reasons and index not in (11, 12, 13, 14, 15, 16)]
    np.testing.assert_allclose(probabilities([written[i] for i in good]), expected[good], rtol=0, atol=1e-6)
    assert summary.unpredicted == len(reasons)
    assert sum(summary.errors.values()) == len(reasons) + 2


def test_a_table_of_only_bad_rows(model_dir, tmp_path):
    table = write_csv(tmp_path / "input.csv", [{"image": f"{index}.png", "text": "frog"} for index in range(5)])
    summary = predict(model_dir, table, tmp_path / "out.parquet")
    assert (summary.rows, summary.unpredicted, summary.labels) == (5, 5, {})
    assert pq.read_table(tmp_path / "out.parquet").column("label").null_count == 5


def test_malformed_lines_and_nan_keep_their_place(model_dir, images_dir, tmp_path):
    lines = ["id,image,text", '1,0.png,"a ""red"" frog,\nsitting"', "2,1.png", "3,2.png,a,b", "4,3.png,lamp"]
    (tmp_path / "input.csv").write_text("\n".join(lines))
    predict(model_dir, tmp_path / "input.csv", tmp_path / "out.csv", images_dir)
    written = read_csv(tmp_path / "out.csv")
    assert [row["id"] for row in written] == ["1", "", "", "4"]
    assert [bool(row["label"]) for row in written] == [True, False, False, True]
    assert written[0]["text"] == 'a "red" frog,\nsitting'
    assert [row["error"][:16] for row in written[1:3]] == ["malformed row 2:", "malformed row 3:"]

    lines = ['{"image": "0.png", "text": null}', "[1]", '{"image": "1.png"', '{"image": "2.png", "text": 7}']
    (tmp_path / "input.jsonl").write_text("\n".join(lines))
    predict(model_dir, tmp_path / "input.jsonl", tmp_path / "out.parquet", images_dir)
    result = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["label"] is not None for row in result] == [True, False, False, True]
    assert "text is empty" in result[0]["error"] and "malformed row" in result[2]["error"]

    pq.write_table(pa.table({"image": ["0.png"], "text": pa.array([float("nan")])}), tmp_path / "input.parquet")
    summary = predict(model_dir, tmp_path / "input.parquet", tmp_path / "nan.csv", images_dir)
    assert (summary.unpredicted, len(summary.errors)) == (0, 1)


@pytest.mark.slow
def test_workers_and_shards_do_not_change_the_file(model_dir, table, images_dir, tmp_path):
    variants = {"a": {}, "b": {"workers": 2}, "c": {"shard_rows": 6}, "d": {"shard_rows": 9, "workers": 1}}
    for name, changes in variants.items():
        predict(model_dir, table, tmp_path / f"{name}.csv", images_dir, **changes)
    assert len({(tmp_path / f"{name}.csv").read_bytes() for name in variants}) == 1


def test_limit(model_dir, table, images_dir, tmp_path, expected):
    summary = predict(model_dir, table, tmp_path / "out.csv", images_dir, limit=7)
    assert summary.rows == 7
    np.testing.assert_allclose(probabilities(read_csv(tmp_path / "out.csv")), expected[:7], rtol=0, atol=1e-6)
    assert predict(model_dir, table, tmp_path / "all.csv", images_dir, limit=700).rows == 20


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.slow
def test_threshold_decides_for_the_second_label(model_dir, table, images_dir, tmp_path, expected, threshold):
    predict(model_dir, table, tmp_path / "out.csv", images_dir, threshold=threshold)
    for row, wanted in zip(read_csv(tmp_path / "out.csv"), expected, strict=True):
        assert row["label"] == ("true" if wanted[1] >= threshold else "fake")
        assert row["confidence"] == row[f"probability_{row['label']}"]


def test_three_labels_have_three_probabilities_and_no_threshold(three_way_model_dir, table, images_dir, tmp_path):
    predict(three_way_model_dir, table, tmp_path / "out.csv", images_dir)
    for row in read_csv(tmp_path / "out.csv"):
        values = {name: float(row[f"probability_{name}"]) for name in ("true", "satire", "fake")}
        assert sum(values.values()) == pytest.approx(1)
        assert row["label"] == max(values, key=values.__getitem__)
    with pytest.raises(InputError, match="3 labels, a threshold needs two"):
        predict(three_way_model_dir, table, tmp_path / "b.csv", images_dir, threshold=0.5)


def test_an_input_column_named_as_a_prediction_is_kept_under_another_name(model_dir, rows, images_dir, tmp_path):
    extended = [{**row, "label": "gold", "input_label": "x", "error": "e"} for row in rows]
    table = write_csv(tmp_path / "input.csv", extended)
    predict(model_dir, table, tmp_path / "out.csv", images_dir)
    row = read_csv(tmp_path / "out.csv")[0]
    assert (row["input_input_label"], row["input_label"], row["input_error"]) == ("gold", "x", "e")
    assert row["label"] in ("fake", "true") and row["error"] == ""


def test_columns_come_from_the_call_or_the_recipe_or_are_the_usual_ones(
    model_dir, rows, images_dir, tmp_path, expected
):
    renamed = [{"id": row["image"].removesuffix(".png"), "title": row["text"]} for row in rows]
    table = write_csv(tmp_path / "input.csv", renamed)
    columns = {"image": "{id}.png", "text": "title"}
    predict(model_dir, table, tmp_path / "a.csv", images_dir, columns=columns)
    np.testing.assert_allclose(probabilities(read_csv(tmp_path / "a.csv")), expected, rtol=0, atol=1e-6)

    trained = shutil.copytree(model_dir, tmp_path / "trained")
    recipe = "task: image-text-classification\ndata: {source: table, columns: {image: photo, text: title}}\n"
    (trained / "recipe.yaml").write_text(recipe)
    table = write_csv(tmp_path / "b_in.csv", [{"photo": row["image"], "title": row["text"]} for row in rows])
    predict(trained, table, tmp_path / "b.csv", images_dir)
    assert probabilities(read_csv(tmp_path / "b.csv")).tolist() == probabilities(read_csv(tmp_path / "a.csv")).tolist()


def test_a_model_of_fakeddit_reads_fakeddit(model_dir, rows, images_dir, tmp_path, expected):
    trained = shutil.copytree(model_dir, tmp_path / "trained")
    (trained / "recipe.yaml").write_text("data: {source: fakeddit, path: elsewhere, text: clean_title}\n")
    (tmp_path / "data" / "images").mkdir(parents=True)
    for row in rows:
        Image.open(images_dir / row["image"]).save(tmp_path / "data" / "images" / f"x{row['id']}.jpg", "PNG")
    lines = [{"id": f"x{row['id']}", "clean_title": row["text"], "hasImage": "True"} for row in rows]
    table = write_csv(tmp_path / "data" / "multimodal_test_public.tsv", lines, delimiter="\t")
    predict(trained, table, tmp_path / "out.csv")
    np.testing.assert_allclose(probabilities(read_csv(tmp_path / "out.csv")), expected, rtol=0, atol=1e-6)


def test_wrong_names_and_places_are_said_in_one_line(model_dir, table, images_dir, rows, tmp_path):
    (tmp_path / "done.csv").write_text("precious")
    (tmp_path / "empty.csv").write_text("image,text\n")
    (tmp_path / "nothing.csv").write_text("")
    (tmp_path / "latin.csv").write_bytes(b"image,text\n1.png,caf\x81\n")  # no letter in cp1252 either
    (tmp_path / "fake.parquet").write_text("not parquet")
    (tmp_path / "table.xlsx").write_text("")
    write_csv(tmp_path / "typo.csv", [{"imag": row["image"], "text": row["text"]} for row in rows])
    (tmp_path / "folder").mkdir()
    out = tmp_path / "out.csv"
    cases = [
        (tmp_path / "absent", table, out, {}, "absent: no such model folder"),
        (tmp_path / "folder", table, out, {}, "config.json is missing"),
        (model_dir, tmp_path / "absent.csv", out, {}, "absent.csv: no such file"),
        (model_dir, tmp_path / "empty.csv", out, {}, "has no rows"),
        (model_dir, tmp_path / "nothing.csv", out, {}, "header line"),
        (model_dir, tmp_path / "latin.csv", out, {}, "not UTF-8"),
        (model_dir, tmp_path / "fake.parquet", out, {}, "not a parquet file"),
        (model_dir, tmp_path / "table.xlsx", out, {}, "unknown kind of table"),
        (model_dir, tmp_path / "folder", out, {}, "needs one of metadata.csv"),
        (model_dir, tmp_path / "typo.csv", out, {}, "no column 'image'; did you mean imag?"),
        (model_dir, table, out, {"columns": {"text": "txt"}}, "no column 'txt'; did you mean text?"),
        (model_dir, table, out, {"columns": {"image": "{idd}.png"}}, "no column 'idd'; did you mean id?"),
        (model_dir, table, out, {"columns": {"label": "y"}}, "columns.label: unknown"),
        (model_dir, table, out, {"image_root": tmp_path / "absent"}, "image_root: no such folder"),
        (model_dir, table, out, {"device": "warp9"}, "device 'warp9'"),
        (model_dir, table, tmp_path / "out.json", {}, "name it .csv or .parquet"),
        (model_dir, table, tmp_path / "done.csv", {}, "exists already"),
    ]
    for model, source, output, changes, message in cases:
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            predict(model, source, output, **{"images_dir": images_dir, **changes})
        assert "\n" not in str(caught.value)
    assert (tmp_path / "done.csv").read_text() == "precious"
    assert not out.exists() and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    "changes", [{"threshold": 1.5}, {"limit": 0}, {"batch_size": 0}, {"workers": -1}, {"shard_rows": 0}]
)
def test_impossible_settings_are_refused(model_dir, table, tmp_path, changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        predict(model_dir, table, tmp_path / "out.csv", **changes)


def test_overwrite_replaces(model_dir, table, images_dir, tmp_path):
    (tmp_path / "out.csv").write_text("old")
    predict(model_dir, table, tmp_path / "out.csv", images_dir, overwrite=True)
    assert len(read_csv(tmp_path / "out.csv")) == 20


class InterruptedJobError(Exception):
    pass


@pytest.fixture
def begun(model_dir, images_dir, rows, tmp_path, monkeypatch):
    """A job that stopped after 12 of 20 rows, with its own copy of images and model."""
    own_images = shutil.copytree(images_dir, tmp_path / "images")
    own_model = shutil.copytree(model_dir, tmp_path / "own_model")
    table = write_csv(tmp_path / "input.csv", rows)
    arguments = {"images_dir": own_images, "shard_rows": 6}
    written = []

    write = ShardFolder.write

    def write_and_stop(self: ShardFolder, number: int, content: pa.Table) -> None:
        if len(written) == 2:
            raise InterruptedJobError
        written.append(number)
        write(self, number, content)

    with monkeypatch.context() as patch:
        patch.setattr(ShardFolder, "write", write_and_stop)
        with pytest.raises(InterruptedJobError):
            predict(own_model, table, tmp_path / "out.csv", **arguments)
    assert not (tmp_path / "out.csv").exists()
    return own_model, table, own_images, arguments, tmp_path / "out.csv"


def test_an_interrupted_job_goes_on(begun):
    model, table, _, arguments, output = begun
    summary = predict(model, table, output, **arguments)
    assert (summary.rows, summary.resumed_rows) == (20, 12)
    predict(model, table, output.with_name("whole.csv"), **arguments)
    assert output.read_bytes() == output.with_name("whole.csv").read_bytes()


@pytest.mark.parametrize("changed", ["input", "images", "model", "threshold", "limit", "batch size", "columns"])
@pytest.mark.slow
def test_an_interrupted_job_refuses_other_inputs(begun, changed):
    model, table, images, arguments, output = begun
    changes = {}
    if changed == "input":
        table.write_text(table.read_text().replace("lamp", "lampion"))
    elif changed == "images":
        Image.new("RGB", (50, 50)).save(images / "2.png")
    elif changed == "model":
        weights = bytearray((model / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (model / "model.safetensors").write_bytes(weights)
    elif changed == "columns":
        changes = {"columns": {"text": "id"}}
    else:
        changes = {changed.replace(" ", "_"): {"threshold": 0.4, "limit": 15, "batch size": 2}[changed]}
    arguments = {**arguments, **changes}
    with pytest.raises(InputError, match=f"begun with another .*{changed}"):
        predict(model, table, output, **arguments)
    assert not output.exists()
    summary = predict(model, table, output, **arguments, overwrite=True)
    assert summary.resumed_rows == 0
    fresh = output.with_name("fresh.csv")
    predict(model, table, fresh, **arguments)
    assert output.read_bytes() == fresh.read_bytes()


class HalfWriter:
    """Writes half a parquet file, and the power goes."""

    def __init__(self, path: Path, *args, **kwargs) -> None:
        Path(path).write_bytes(b"PAR1 and then the power went")

    def write_table(self, content: pa.Table) -> None:
        raise InterruptedJobError


@pytest.mark.parametrize("module", ["shards", "outputs"])
def test_a_file_that_was_half_written_is_not_taken_for_a_whole_one(begun, monkeypatch, module):
    model, table, _, arguments, output = begun
    output = output.with_suffix(".parquet")
    with monkeypatch.context() as patch:
        if module == "shards":
            half = SimpleNamespace(write_table=lambda content, path: HalfWriter(path).write_table(content))
            patch.setattr("mmhf.inference.shards.pq", half)
        else:
            patch.setattr(outputs.pq, "ParquetWriter", HalfWriter)
        with pytest.raises(InterruptedJobError):
            predict(model, table, output, **arguments)
    assert not output.exists()
    assert predict(model, table, output, **arguments).resumed_rows == (0 if module == "shards" else 20)
    assert len(pq.read_table(output)) == 20


def test_a_job_that_had_done_nothing_binds_nobody(begun):
    model, table, _, arguments, output = begun
    for shard in output.with_name("out.csv.partial").glob("shard-*"):
        shard.unlink()
    arguments = {**arguments, "limit": 9}
    assert predict(model, table, output, **arguments).rows == 9


def test_a_process_with_other_inputs_does_not_join_one_at_work(begun):
    model, table, _, arguments, output = begun
    identity = json.loads((output.parent / "out.csv.partial" / "identity.json").read_text())["identity"]
    with ShardFolder(output, identity).joined(discard_other=False):
        for changes in ({"limit": 5}, {"limit": 5, "overwrite": True}):
            with pytest.raises(InputError, match="another process"):
                predict(model, table, output, **arguments, **changes)
        assert predict(model, table, output, **arguments).resumed_rows == 12, "the same work is shared"


@pytest.mark.slow
def test_processes_share_the_work_and_write_what_one_would(wild, model_dir, tmp_path):
    table, _ = wild
    predict(model_dir, table, tmp_path / "alone.csv", shard_rows=2)
    script = [sys.executable, str(Path(__file__).with_name("predict_in_children.py")), "share"]
    done = in_a_program([*script, str(model_dir), str(table), str(tmp_path)])
    counts = {name: int(value) for name, value in (pair.split("=") for pair in done.split())}
    assert counts["rows"] == 20 and counts["most"] < 20
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


def in_a_program(command: list[str]) -> str:
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_what_is_done_is_not_done_again(model_dir, table, images_dir, tmp_path):
    output = tmp_path / "out.csv"
    first = predict(model_dir, table, output, images_dir)
    before = output.stat().st_mtime_ns
    again = predict(model_dir, table, output, images_dir)
    assert (again.rows_here, again.resumed_rows) == (0, 20) and output.stat().st_mtime_ns == before
    assert (again.labels, again.errors, again.filled) == (first.labels, first.errors, first.filled)
    with pytest.raises(InputError, match="exists and was made from other inputs"):
        predict(model_dir, table, output, images_dir, limit=5)
    output.write_text(output.read_text() + "a row by hand\n")
    with pytest.raises(InputError, match="exists already"):
        predict(model_dir, table, output, images_dir)


@pytest.mark.parametrize("output", ["out.csv", "out.parquet"])
@pytest.mark.slow
def test_images_are_known_by_their_content(begun, output):
    model, table, images, arguments, finished = begun
    predict(model, table, finished.with_name(output), **arguments)
    picture = images / "2.png"
    content, stat = picture.read_bytes(), picture.stat()
    picture.write_bytes(content)
    assert predict(model, table, finished.with_name(output), **arguments).rows_here == 0, "written anew, and the same"
    Image.new("RGB", Image.open(picture).size).save(picture)
    picture.write_bytes(picture.read_bytes().ljust(len(content), b"\0")[: len(content)])
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(InputError, match="made from other inputs"):
        predict(model, table, finished.with_name(output), **arguments)
    assert predict(model, table, finished.with_name(output), **arguments, overwrite=True).rows_here == 20


def test_an_image_that_nothing_was_made_of_yet_may_change(begun):
    model, table, images, arguments, output = begun
    Image.new("RGB", (40, 40)).save(images / "19.png")
    assert predict(model, table, output, **arguments).resumed_rows == 12


def test_overwriting_keeps_its_work_when_it_is_stopped(begun, monkeypatch):
    model, table, _, arguments, output = begun
    output.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(TableJob, "_assemble", lambda job: (_ for _ in ()).throw(InterruptedJobError))
        with pytest.raises(InterruptedJobError):
            predict(model, table, output, **arguments, overwrite=True)
    assert output.read_text() == "old"
    assert predict(model, table, output, **arguments, overwrite=True).resumed_rows == 20


@pytest.mark.slow
def test_killed_at_any_step_and_started_again_it_writes_the_same_file(model_dir, images_dir, wild, tmp_path):
    table, _ = wild
    script = Path(__file__).with_name("predict_in_children.py")
    (tmp_path / "outputs").mkdir()
    done = in_a_program([sys.executable, str(script), "kill", str(model_dir), str(table), str(tmp_path / "outputs")])
    steps, starts = map(int, re.fullmatch(r"steps=(\d+) starts=(\d+)\n", done).groups())
    assert steps > 15 and starts > 2


def test_damaged_models_do_not_load(model_dir, tmp_path):
    def damaged(name: str, content: bytes) -> Path:
        folder = shutil.copytree(model_dir, tmp_path / f"{len(list(tmp_path.iterdir()))}")
        (folder / name).write_bytes(content)
        return folder

    weights = (model_dir / "model.safetensors").read_bytes()
    config = (model_dir / "config.json").read_bytes()
    cases = [
        (damaged("model.safetensors", weights[:-8]), "does not load"),
        (damaged("model.safetensors", b""), "does not load"),
        (damaged("config.json", config[:100]), "does not load"),
        (damaged("config.json", b'{"model_type": "bert"}'), "a bert model; expected mmhf_fusion"),
        (damaged("config.json", config.replace(b'"embedding_dim": 16', b'"embedding_dim": 8')), "does not load"),
        (damaged("tokenizer.json", b"{"), "does not load"),
    ]
    for folder, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            load_model(folder, task="image-text-classification")
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_weights_that_lack_tensors_are_not_filled_with_random_ones(model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["head.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 tensors, such as head\.bias"):
        load_model(folder)


def test_the_device_is_found():
    assert choose_device("cpu").type == "cpu"
    assert choose_device().type in ("cpu", "cuda", "mps", "xpu")


def test_columns_that_are_only_passed_through_cost_no_work(model_dir, images_dir, rows, tmp_path):
    odd = [2**64, 2**70, "a", None, [1, "b"], {}, True, 0.5]
    lines = [json.dumps({**row, "odd": odd[at % len(odd)], "half": "\ud83d"}) for at, row in enumerate(rows)]
    (tmp_path / "input.jsonl").write_text("\n".join(lines))
    for name in ("out.csv", "out.parquet"):
        assert predict(model_dir, tmp_path / "input.jsonl", tmp_path / name, images_dir).unpredicted == 0
    written = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["odd"] for row in written[:8]] == [str(2**64), str(2**70), "a", None, '[1, "b"]', "{}", "true", "0.5"]
    assert [row["odd"] for row in read_csv(tmp_path / "out.csv")] == [row["odd"] or "" for row in written]
    assert {row["half"] for row in written} == {"\\ud83d"}


def test_columns_are_converted_before_any_work(model_dir, table, images_dir, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise InterruptedJobError

    monkeypatch.setattr("mmhf.inference.table_job.passed_columns", fail)
    monkeypatch.setattr(TableJob, "_fill", lambda job: pytest.fail("rows were predicted first"))
    with pytest.raises(InterruptedJobError):
        predict(model_dir, table, tmp_path / "out.csv", images_dir)


def test_a_list_is_no_text(model_dir, images_dir, tmp_path):
    lines = [{"image": "0.png", "text": ["a", "frog"]}, {"image": "1.png", "text": "frog"}]
    (tmp_path / "input.jsonl").write_text("\n".join(map(json.dumps, lines)))
    summary = predict(model_dir, tmp_path / "input.jsonl", tmp_path / "out.csv", images_dir)
    assert summary.unpredicted == 1 and "text is a list, not a text" in next(iter(summary.errors))


def test_reasons_that_name_something_else_in_each_row_are_told_as_one():
    found = {"image file not found: a.jpg": 1, "columns.age: 'x' is no number": 4, "the text is empty": 2}
    assert reasons_by_kind(found) == Counter(found)
    many = {f"image file not found: {number}.jpg": 1 + (number == 7) for number in range(1_200)}
    assert reasons_by_kind({**found, **many}) == {
        "columns.age: 'x' is no number": 4,
        "the text is empty": 2,
        "image file not found: 7.jpg (1,200 more like it)": 1_202,
    }
