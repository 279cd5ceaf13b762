"""Arguments of the verbs about versions of models, which `arguments.py` lists with all others."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction
from pathlib import Path

_PROGRAMS = ("captioner", "clip-from-scratch", "dermatology", "fake-news", "plant-disease")


def convert(parser: ArgumentParser) -> None:
    """Turn a checkpoint (.pth) of one of the programs that mmhf replaces into a release.

    mmhf convert checkpoints/best_model_1.6.pth -o releases/fakeddit/v1.6
    mmhf convert models/resnet50_best.pth --labels data/plant_disease/train -o releases/plants/v1.0
    mmhf convert checkpoints/checkpoint_epoch_20.pth --tokenizer openai/clip-vit-base-patch32 -o releases/clip/v1.0
    mmhf convert checkpoints/best_model.pth --embeddings pubmedbert_512_cls.parquet -o releases/skin/v1.0
    mmhf convert saved_models/model_state_dict_20241201_120000-1.pth -o releases/captioner/v1.0
    mmhf evaluate releases/fakeddit/v1.6 data.path=data/fakeddit.csv

    Nothing in the file is executed. What its tensors do not tell, such as an activation, is a key of the new recipe:
    model.fusion.activation=gelu model.text.pooling=mean.
    """
    parser.add_argument("checkpoint", type=Path, help="the .pth file")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value of the new recipe")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="a folder to make, such as releases/plants/v1.0"
    )
    parser.add_argument("--from", dest="program", choices=_PROGRAMS, help="what saved it; absent: what its names say")
    parser.add_argument("--version", help="of the release; absent: the output's or the file's name, else 1.0")
    parser.add_argument(
        "--vision", help="its image encoder, such as torchvision/resnet50; absent: found by its shapes"
    )
    parser.add_argument("--text", help="its text encoder or language model: a Hub name or a folder")
    parser.add_argument("--tokenizer", help="its tokenizer, where that belongs to no encoder")
    parser.add_argument(
        "--labels", help="names of its classes: a,b,c, a file with one name per line, or a folder of classes"
    )
    parser.add_argument("--embeddings", type=Path, help="dermatology: its parquet file of text embeddings")
    parser.add_argument("--texts", type=Path, help="dermatology: the table of the embedded texts, row by row")
    parser.add_argument("--metadata", type=Path, help="captioner: training_metadata_*.json; absent: the one beside it")
    parser.add_argument("--include-frozen", action="store_true", help="captioner: also store CLIP and Qwen")
    parser.add_argument(
        "--allow-missing",
        action="append",
        default=[],
        metavar="NAME",
        help="a tensor that may be missing or left over",
    )


def release(parser: ArgumentParser) -> None:
    """Keep a finished run as an immutable version of a model, in a folder or on the Hub.

    mmhf release outputs/quickstart --repo releases/quickstart --version 0.2
    mmhf release outputs/fakeddit --repo ORG/NAME --version 1.8 --best-metric test_f1_macro
    """
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--repo", help="folder that holds the versions of the model, or ORG/NAME on the Hub")
    parser.add_argument("--version", help="the new version, such as 1.8")
    parser.add_argument(
        "--push",
        action=BooleanOptionalAction,
        help="release to the Hub, or not; absent: to the Hub if the repo is ORG/NAME and no folder has that name",
    )
    parser.add_argument("--private", action="store_true", default=None, help="create the repository as a private one")
    parser.add_argument("--channel", help="branch to move to this version instead of main, such as experimental")
    parser.add_argument(
        "--best-metric", help="keep the tag `best` at the version that is best by this, such as test_f1_macro"
    )
    parser.add_argument(
        "--lora", choices=("merge", "keep"), help="low-rank changes: merged into the weights, or kept apart from them"
    )
    parser.add_argument("--card", type=Path, help="YAML file with the keys of `release.card`")


def lineage(parser: ArgumentParser) -> None:
    """Show which version of a model was trained from which, with the settings and numbers that changed.

    mmhf lineage releases/fakeddit
    mmhf lineage ORG/NAME --metric test_f1_macro
    """
    parser.add_argument("repo", help="folder that holds the versions of a model, or ORG/NAME on the Hub")
    parser.add_argument("--metric", action="append", help="number to show, such as test_f1_macro; may be repeated")


def diff(parser: ArgumentParser) -> None:
    """Compare two versions: settings, numbers, sizes, data, environment.

    mmhf diff releases/fakeddit@v1.7 releases/fakeddit@v1.8
    mmhf diff ORG/NAME@v1.7 OTHER/NAME@v1.8
    """
    parser.add_argument("old", help="REPO@vX.Y, a release folder, or ORG/NAME@vX.Y on the Hub")
    parser.add_argument("new", help="the other one")


def soup(parser: ArgumentParser) -> None:
    """Average the weights of models that were trained alike.

    mmhf soup outputs/seed1 outputs/seed2 outputs/seed3 -o outputs/soup
    mmhf soup outputs/frozen outputs/finetuned --alpha 0.5 -o outputs/between       (WiSE-FT)
    mmhf soup outputs/a outputs/b outputs/c --greedy --metric f1_macro -o outputs/best
    mmhf evaluate outputs/soup --output outputs/soup

    All must have the same architecture, classes and processor; what does not fit is named and nothing is written. The
    new folder is like a run's: it can be evaluated, released and trained on, and its lineage names all parents.
    """
    parser.add_argument(
        "models", nargs="+", help="two or more, each a run folder, a checkpoint, a release or REPO@vX.Y"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder to make")
    parser.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="share of each model; absent: equal shares"
    )
    parser.add_argument("--alpha", type=float, help="of two models, the second one's share, from 0 to 1")
    parser.add_argument(
        "--greedy", action="store_true", help="take in only what makes the average no worse on the validation split"
    )
    parser.add_argument("--metric", help="what --greedy goes by; absent: the recipe's metric_for_best_model")
    parser.add_argument(
        "--override", action="append", default=[], metavar="KEY=VALUE", help="of the recipe, such as data.path=data/x"
    )


def verify(parser: ArgumentParser) -> None:
    """Check a release: the hash of each file, and its numbers by evaluating it again.

    mmhf verify releases/fakeddit@v1.8
    mmhf verify ORG/NAME@v1.8 data.path=data/fakeddit --tolerance 1e-3
    """
    parser.add_argument("model", help="a release: REPO@vX.Y, its folder, or ORG/NAME@vX.Y on the Hub")
    parser.add_argument("overrides", nargs="*", default=[], help="location of the data, such as data.path=data/other")
    parser.add_argument(
        "--split", action="append", help="validation or test; may be repeated; absent: all on the card"
    )
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest absolute difference of a number")
    parser.add_argument("--batch-size", type=int, default=32)
