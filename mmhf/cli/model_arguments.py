"""Arguments of the verbs that use a trained model, which `arguments.py` lists with all others."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

_MODEL = "a run folder, a release, or REPO@vX.Y"
_DEVICE = "cpu, cuda, cuda:1, mps; absent: the accelerator, if there is one"
_FORMATS = ("onnx", "openvino", "executorch", "torch")


def evaluate(parser: ArgumentParser) -> None:
    """Measure a run or a release on any split of any data, with the preprocessing that it was trained with.

    mmhf evaluate releases/quickstart@v0.1
    mmhf evaluate releases/fakeddit@v1.6 fakeddit/v1.7 data.limit=1000 --split test --output outputs/check
    mmhf evaluate --predictions captions.jsonl --references captions_val2014.json --output outputs/check
    mmhf evaluate releases/clip@v0.1 --clip-benchmark data/wds_flowers --clip-benchmark data/wds_flickr8k -o results
    """
    parser.add_argument("model", nargs="?", help=_MODEL)
    parser.add_argument(
        "recipe", nargs="?", help="recipe whose `data:` is used; absent: the one that trained the model"
    )
    parser.add_argument("overrides", nargs="*", default=[], help="key=value, such as data.path=data/other")
    parser.add_argument("--split", action="append", help="train, validation or test; may be repeated")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images")
    parser.add_argument("-o", "--output", type=Path, help="folder for metrics.json, plots and report.html")
    parser.add_argument(
        "--clip-benchmark",
        type=Path,
        action="append",
        metavar="DIR",
        help="a data set in CLIP_benchmark's layout, for a dual encoder; may be repeated. --output gets its JSON",
    )
    _add_views(parser)
    captions = parser.add_argument_group("captions made elsewhere, instead of a model")
    captions.add_argument(
        "--predictions", type=Path, help="table with one caption per image, and optionally its references"
    )
    captions.add_argument("--references", type=Path, help="table with their references, such as COCO's annotations")
    captions.add_argument("--images", type=Path, help="folder of their images, for the gallery and CLIPScore")
    captions.add_argument("--clip", help="a CLIP (folder or Hub repository) that measures CLIPScore")


def predict(parser: ArgumentParser) -> None:
    """Predict every row of a table or folder.

    mmhf predict releases/fakeddit@v1.7 --input data/test.tsv --column image={id}.jpg --output predictions.csv

    Start it as often as there are processors, or with `accelerate launch` for one process per GPU: they share the
    work. If it is killed, start it again and it continues where it stopped.
    """
    parser.add_argument("model", help=_MODEL)
    _add_table_job(parser, output="CSV or parquet file")
    parser.add_argument(
        "--threshold",
        type=float,
        help="two classes: predict the second one from this probability on; several labels a row: any of them",
    )
    parser.add_argument(
        "--generation", action="append", default=[], metavar="KEY=VALUE", help="captions: such as num_beams=4"
    )
    _add_views(parser)
    parser.add_argument(
        "--text-embeddings",
        type=Path,
        help="table of text embeddings for these texts (mmhf embed --text), for models trained on one",
    )
    parser.add_argument(
        "--defuse-formulas",
        action="store_true",
        help="CSV for spreadsheets: put ' before texts that would run as formulas, such as =cmd",
    )


def embed(parser: ArgumentParser) -> None:
    """Embed the images and texts of a table or folder with a dual encoder.

    mmhf embed releases/flickr30k@v1.0 --input photos/ --output photos.parquet

    Or embed texts with any text encoder, for fusion models that are trained on the table (`model.text.embeddings`).
    If the input is a recipe, all texts of its data are embedded:

    mmhf embed pubmedbert --text --input dermatology/fusion --max-length 256 --output pubmedbert.parquet

    Start it as often as there are processors, or with `accelerate launch` for one process per GPU: they share the
    work. If it is killed, start it again and it continues where it stopped.
    """
    parser.add_argument(
        "model",
        help=f"{_MODEL} of a dual encoder; with --text a text encoder: "
        "pubmedbert, sapbert, biosyn, qwen, minilm, a Hub repository, a folder or pypi/NAME",
    )
    _add_table_job(parser, output="parquet file")
    parser.add_argument("--images", action="store_true", help="embed images; absent with --texts: what the input has")
    parser.add_argument("--texts", action="store_true", help="embed texts")
    parser.add_argument(
        "--dimensions",
        type=int,
        metavar="N",
        help="keep the first N numbers of each embedding; the model was trained with contrastive.matryoshka",
    )
    texts = parser.add_argument_group("texts with a text encoder, whose output the table holds as it is")
    texts.add_argument("--text", action="store_true", help="MODEL is a text encoder; --input may be a recipe")
    texts.add_argument("--pooling", help="mean, cls, last_token, max or pooler; absent: the encoder's usual one")
    texts.add_argument("--prefix", help="put before each text, such as an instruction")
    texts.add_argument(
        "--max-length", type=int, help="maximum length of a text in tokens; absent: the recipe's, or 512"
    )


def search(parser: ArgumentParser) -> None:
    """Search the output of `mmhf embed` by text or image, and show the results.

    mmhf search photos.parquet --text "a dog on a beach" --image holiday.jpg
    """
    parser.add_argument("index", type=Path, help="parquet file that `mmhf embed` wrote")
    parser.add_argument("--text", action="append", default=[], help="what to look for; may be repeated")
    parser.add_argument(
        "--image", action="append", default=[], help="image file to find similar images for; may be repeated"
    )
    parser.add_argument("--among", choices=["image", "text"], help="absent: images, where there are any")
    parser.add_argument("--top", type=int, default=24, metavar="N", help="rows to find for each, default 24")
    parser.add_argument(
        "--approximate", action="store_true", help="look into the clusters around a query only, for millions of rows"
    )
    parser.add_argument("--output", type=Path, help="contact sheet; default: INDEX.html next to the index")
    parser.add_argument("--model", help="new location of the model, if it was moved")
    parser.add_argument("--device", help=_DEVICE)


def demo(parser: ArgumentParser) -> None:
    """Open a page to try out a model: upload an image, type a text, see the answer and what it is based on.

    mmhf demo releases/fakeddit@v1.7
    mmhf demo ORG/NAME@v1.7 --port 8000
    mmhf demo --server http://127.0.0.1:8000
    """
    parser.add_argument("model", nargs="?", help=_MODEL)
    parser.add_argument(
        "--server",
        metavar="URL",
        help="ask the model that mmhf serve has there; MODEL is its name, where there are several",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; absent: for this machine only")
    parser.add_argument("--port", type=int, help="absent: the first free one from 7860 on")
    parser.add_argument(
        "--captions",
        type=Path,
        help="dual encoders: file with the captions to choose from, one per line; absent: the sample's",
    )
    parser.add_argument("--max-upload", type=int, default=20, metavar="MB", help="refuse larger files (default: 20)")
    parser.add_argument("--device", help=_DEVICE)


def serve(parser: ArgumentParser) -> None:
    """Serve models over HTTP: predictions, captions, embeddings, search.

    mmhf serve releases/fakeddit@v1.8
    mmhf serve plants=releases/plants clip=ORG/NAME@v1.0 --index photos.parquet --port 9000

    http://127.0.0.1:8000/ describes the endpoints, with examples that run. If MMHF_API_KEY is set, requests need that
    key. SIGTERM answers what was accepted and ends; SIGHUP loads new versions and takes them when they are ready.
    """
    parser.add_argument("model", nargs="+", metavar="MODEL", help=f"{_MODEL}; NAME=MODEL gives it a name for requests")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; absent: for this machine only")
    parser.add_argument("--port", type=int, default=8000, help="default 8000; 0: a free one")
    parser.add_argument(
        "--index", action="append", default=[], metavar="FILE",
        help="dual encoders: output of `mmhf embed` to search, or NAME=FILE; may be repeated",
    )  # fmt: skip
    parser.add_argument("--device", help=_DEVICE)
    batches = parser.add_argument_group("batches")
    batches.add_argument("--max-batch", type=int, default=32, metavar="N", help="inputs that run together, default 32")
    batches.add_argument(
        "--max-wait", type=float, default=5.0, metavar="MS", help="how long an input waits for others, default 5"
    )
    limits = parser.add_argument_group("what requests may cost")
    limits.add_argument(
        "--max-queue", type=int, default=256, metavar="N",
        help="requests under way, and inputs waiting for a model, before more are refused; default 256",
    )  # fmt: skip
    limits.add_argument("--max-body", type=float, default=20, metavar="MB", help="of a request, default 20")
    limits.add_argument("--max-pixels", type=float, default=25, metavar="MILLIONS", help="of an image, default 25")
    limits.add_argument("--max-text", type=int, default=10_000, metavar="N", help="characters, default 10,000")
    limits.add_argument("--timeout", type=float, default=30, metavar="SECONDS", help="for an answer, default 30")


def export(parser: ArgumentParser) -> None:
    """Write a model as graphs that run without mmhf, with ONNX Runtime, OpenVINO or torch.

    mmhf export releases/fakeddit@v1.8 -o exported/fakeddit
    python exported/fakeddit/run_onnx.py photo.jpg "a text"
    mmhf export releases/plants@v1.0 -o exported/plants --int8 data.path=data/plants

    Each graph is compared with the model before the folder appears. settings.json says what is done to images and
    texts before them and with their outputs.
    """
    parser.add_argument("model", help=_MODEL)
    parser.add_argument(
        "overrides", nargs="*", default=[], help="where the data for --int8 is, such as data.path=data/other"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder to make")
    parser.add_argument("--format", choices=_FORMATS, default="onnx", help="default onnx; executorch is for phones")
    parser.add_argument(
        "--int8", action="store_true", help="weights of 8 bits; their cost is measured on the validation split"
    )
    parser.add_argument(
        "--input", type=Path, help="table or folder whose first rows are compared; absent: drawings of mmhf's sample"
    )


def _add_views(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--views",
        metavar="VIEWS",
        help="classifiers: average over views of each image, such as '{horizontal_flip: true}', or off; "
        "absent: as the model was saved",
    )


def _add_table_job(parser: ArgumentParser, *, output: str) -> None:
    """Add the options of a job over a table."""
    parser.add_argument("--input", type=Path, required=True, help="CSV, TSV, JSONL or parquet table, or a folder")
    parser.add_argument("--output", type=Path, required=True, help=output)
    parser.add_argument(
        "--column", action="append", default=[], metavar="NAME=COLUMN", help="column of image or text, or {id}.jpg"
    )
    parser.add_argument("--image-root", type=Path, help="folder of the images; absent: the table's own")
    parser.add_argument("--limit", type=int, help="the first rows only")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images, for each process")
    parser.add_argument("--device", help=_DEVICE)
    parser.add_argument("--overwrite", action="store_true", help="replace an output that was made from other inputs")
