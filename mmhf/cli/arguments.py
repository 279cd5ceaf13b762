"""The verbs of the command line and their arguments, known before torch is loaded.

`mmhf/verbs/VERB.py` runs a verb; `_checks.py` finds what is wrong with its arguments before that is imported.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from mmhf.cli.model_arguments import demo, embed, evaluate, export, predict, search, serve
from mmhf.cli.version_arguments import convert, diff, lineage, release, soup, verify

_TASKS = ("image-text-classification", "image-classification", "image-captioning", "contrastive")


def init(parser: ArgumentParser) -> None:
    """Look at your data and write a recipe that trains on it, or copy one that comes with mmhf.

    mmhf init data.csv                      a table: CSV, TSV, JSONL or parquet
    mmhf init photos/                       class folders, images with captions, tars, Flickr30k's or Fakeddit's layout
    mmhf init ORG/NAME                      a data set of the Hub
    mmhf init --list                        recipes that come with mmhf
    mmhf init plant_disease/resnet50        copy one of them

    Says what it saw, what it guessed and why. Where two readings are possible it asks on a terminal; with --yes or
    without a terminal it takes the better one.
    """
    parser.add_argument("data", nargs="?", help="a table, a folder, an archive, a data set of the Hub, or a recipe")
    parser.add_argument("--task", choices=_TASKS, help="absent: what the data is most likely for")
    parser.add_argument("--label", metavar="COLUMN", help="the column of the label; absent: found by looking")
    parser.add_argument("-o", "--output", type=Path, help="the recipe to write; default recipe.yaml")
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    parser.add_argument("--list", action="store_true", help="list the recipes that come with mmhf")


def fetch(parser: ArgumentParser) -> None:
    """Fetch a public data set that recipes are made for, and compare it with what is known of it.

    mmhf fetch                              list them
    mmhf fetch plant_village                into data/plant_village
    mmhf fetch isic2020 -o data/isic2020 --train dermatology/fusion data.limit=1000

    Says whose it is, its licence and what others report. What has to be asked for is named with the place to put it.
    If it is stopped, start it again and it continues where it stopped.
    """
    parser.add_argument("name", nargs="?", help="flickr30k, fakeddit, plant_village, fitzpatrick17k or isic2020")
    parser.add_argument("overrides", nargs="*", default=[], help="with --train: key=value, such as data.limit=1000")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="absent: data/NAME")
    parser.add_argument("--check", action="store_true", help="fetch nothing; compare what is there")
    parser.add_argument("--train", metavar="RECIPE", help="train this recipe on it afterwards")


def train(parser: ArgumentParser) -> None:
    """Train a recipe, evaluate the model, and release it if the recipe says so.

    mmhf train quickstart/fusion training.learning_rate=1e-4
    mmhf train quickstart/fusion --folds 5

    With --folds, each fold of the training and validation rows is validated on once, by a run of its own; the numbers
    are means and standard deviations over the folds. Killed and started again, it continues where it stopped.
    """
    _add_recipe(parser, "training.learning_rate=1e-4")
    parser.add_argument("--resume", action="store_true", help="resume the latest unfinished run of this recipe")
    parser.add_argument("--allow-changes", action="store_true", help="continue even though the recipe has changed")
    parser.add_argument(
        "--more",
        type=float,
        metavar="EPOCHS",
        help="train the last stage this many epochs longer than the recipe says; also resumes a finished run",
    )
    _add_folds(parser)


def prepare(parser: ArgumentParser) -> None:
    """Pack a recipe's data once, for starts in seconds.

    mmhf prepare fakeddit/v1.7 -o prepared/fakeddit
    mmhf train fakeddit/v1.7 data.prepared=prepared/fakeddit

    Rows, ids, labels and splits are those of the recipe, and images keep their own bytes; with data.exact=false large
    ones are scaled to what the model needs. If it is stopped, start it again and it continues where it stopped.
    """
    _add_recipe(parser, "data.exact=false")
    parser.add_argument("-o", "--output", type=Path, help="folder to fill; absent: the recipe's data.prepared")
    parser.add_argument("--overwrite", action="store_true", help="make a folder anew that holds other data")


def cache(parser: ArgumentParser) -> None:
    """Compute and store the features of a recipe's frozen encoders before training.

    mmhf cache quickstart/fusion
    accelerate launch --multi_gpu --num_processes 4 -m mmhf cache fakeddit/v1.7

    Training then finds them, just as it finds what other runs with the same encoders have stored. If it is stopped,
    start it again and it continues. An encoder that one stage trains before another freezes it is left to training.
    """
    _add_recipe(parser, "cache.dtype=float16")


def plan(parser: ArgumentParser) -> None:
    """Check a recipe, and show what it would do: values and where they come from, rows, stages, rates, steps, memory.

    mmhf plan quickstart/fusion training.per_device_train_batch_size=64
    mmhf plan --schema > recipe.schema.json

    What training would refuse is an error: missing images, labels that are ids, batches larger than the data. It needs
    neither GPU nor weights; from the Hub it fetches configuration files at most, and none for timm's models.
    """
    parser.add_argument("recipe", nargs="?", help="YAML file, or a name of `mmhf init --list`")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value, such as training.learning_rate=1e-4")
    parser.add_argument("--all", action="store_true", help="also show default values, and each parameter group")
    parser.add_argument("--time", action="store_true", help="also run a few steps of each stage, to time them")
    parser.add_argument("--schema", action="store_true", help="write the JSON Schema of recipes, for editors")
    _add_folds(parser)


def find_lr(parser: ArgumentParser) -> None:
    """Try a range of learning rates for a stage in one short run, and plot the loss over them.

    mmhf find-lr quickstart/fusion --stage head

    Trains a throw-away copy of the model as the run begins, while the rate grows from step to step; groups keep the
    ratios of their rates. Only the plot is kept.
    """
    _add_recipe(parser, "data.limit=1000")
    parser.add_argument("--stage", metavar="NAME", help="the stage to try; absent: the first")
    parser.add_argument("--from", dest="lowest", type=float, default=1e-7, metavar="RATE", help="default 1e-7")
    parser.add_argument("--to", dest="highest", type=float, default=1.0, metavar="RATE", help="default 1")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="optimizer steps, default 100")
    parser.add_argument("--output", metavar="DIR", help="folder for the plot; default outputs/RECIPE/find_lr")


def sweep(parser: ArgumentParser) -> None:
    """Search for the best values of recipe keys.

    mmhf sweep quickstart/image_classifier space.yaml

        metric: f1_macro                       # of the validation split
        trials: 20
        pruner: {kind: median}
        space:
          training.weight_decay: {low: 1e-5, high: 1e-1, log: true}
          stages.0.epochs: {low: 1, high: 4}
          model.vision.pooling: [avg, max]

    Start it several times to run several trials at once: processes that name the same study, here or on machines that
    share its storage, divide its trials among themselves. If one is killed, another runs its trial, or it is run when
    the sweep is started again.
    """
    parser.add_argument("recipe", help="YAML file, or a name of `mmhf init --list`, such as quickstart/fusion")
    parser.add_argument("space", help="YAML file with the search space")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value for all trials, such as data.limit=1000")
    parser.add_argument("--study", metavar="NAME", help="default: RECIPE_SPACE")
    parser.add_argument("--storage", help="journal file, or URL of a database; default: journal.log in the folder")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: outputs/STUDY")
    parser.add_argument(
        "--trials", type=int, metavar="N", help="number of trials over all processes; absent: the space's"
    )
    parser.add_argument(
        "--stale-after", type=float, default=300.0, metavar="SECONDS",
        help="a trial of another machine that is silent for this long is taken over; default 300",
    )  # fmt: skip


def _add_recipe(parser: ArgumentParser, override: str) -> None:
    parser.add_argument("recipe", help="YAML file, or a name of `mmhf init --list`, such as quickstart/fusion")
    parser.add_argument("overrides", nargs="*", default=[], help=f"key=value, such as {override}")


def _add_folds(parser: ArgumentParser) -> None:
    parser.add_argument("--folds", type=int, metavar="K", help="cross-validation: a run for each of K folds")


VERBS: dict[str, Callable[[ArgumentParser], None]] = {
    "init": init,
    "fetch": fetch,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "embed": embed,
    "search": search,
    "demo": demo,
    "serve": serve,
    "export": export,
    "convert": convert,
    "release": release,
    "lineage": lineage,
    "diff": diff,
    "soup": soup,
    "verify": verify,
    "prepare": prepare,
    "cache": cache,
    "plan": plan,
    "find-lr": find_lr,
    "sweep": sweep,
}
"""Verb → what adds its arguments to a parser; its docstring is the verb's help, and its first line the summary."""
