"""Average the weights of models that were trained alike."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmhf.errors import InputError
from mmhf.files import RECIPE_FILE, whole_folder
from mmhf.hub.averaging import Ingredient, refuse_misfits, shared_fingerprint, write_average
from mmhf.hub.manifest import soup_names
from mmhf.hub.releases import ResolvedModel, resolve_model
from mmhf.recipe import load_recipe
from mmhf.recipe.nearest import did_you_mean, nearest_names
from mmhf.recipe.training_sections import greater_is_better
from mmhf.verbs.evaluate import evaluate

logger = logging.getLogger(__name__)

_SPLIT = "validation"


def run(options: argparse.Namespace) -> None:
    soup(
        options.models,
        options.output,
        weights=options.weights,
        alpha=options.alpha,
        greedy=options.greedy,
        metric=options.metric,
        overrides=options.override,
    )


def soup(
    models: Sequence[str | Path],
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    alpha: float | None = None,
    greedy: bool = False,
    metric: str | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Average the weights of models into a new folder, which can be evaluated and released.

    Args:
        models (`Sequence[str]`): Run folders, checkpoints, releases or `REPO@vX.Y`; two or more.
        output (`str` or `Path`): A folder that does not exist yet.
        weights (`Sequence[float]`, *optional*): Share of each; they are scaled to add up to 1. Absent: equal shares.
        alpha (`float`, *optional*): Of two models, the second one's share. With the frozen model first and the
            fine-tuned one second this is WiSE-FT (Wortsman et al., https://arxiv.org/abs/2109.01903).
        greedy (`bool`, defaults to `False`): Begin with the model that is best on the validation split, and take in
            each other one, the better first, unless the average gets worse (Wortsman et al.,
            https://arxiv.org/abs/2203.05482).
        metric (`str`, *optional*): What `greedy` goes by; absent: the recipe's `metric_for_best_model`, else the loss.
        overrides (`Sequence[str]`): For the evaluations of `greedy`, such as `data.path=data/other`.

    Returns:
        `Path`: The folder.

    Raises:
        InputError: A model does not fit the others, or the settings contradict each other; nothing is written.
    """
    output = Path(output)
    if output.exists():
        raise InputError(f"{output}: exists; name a new folder")
    shares = _shares(len(models), weights, alpha, greedy=greedy, metric=metric)
    found = [resolve_model(model) for model in models]
    refuse_misfits(found)
    if greedy:
        chosen = _greedy(found, metric, overrides, output.parent)
    else:
        pairs = zip(found, shares, strict=True)
        chosen = [Ingredient(model, share) for model, share in pairs if share > 0]
    with whole_folder(output) as folder:
        write_average(folder, chosen, fingerprint=shared_fingerprint(found))
    logger.info("The average of %s is in %s", ", ".join(soup_names([each.describe() for each in chosen])), output)
    logger.info("It has no numbers yet: mmhf evaluate %s --output %s", output, output)
    return output


def _shares(
    count: int, weights: Sequence[float] | None, alpha: float | None, *, greedy: bool, metric: str | None
) -> list[float]:
    """What each model counts for."""
    if count < 2:
        raise InputError("mmhf soup: name two models or more")
    asked = {"--weights": weights is not None, "--alpha": alpha is not None, "--greedy": greedy}
    if len(given := [name for name, is_given in asked.items() if is_given]) > 1:
        raise InputError(f"{' and '.join(given)}: each says what the models count for; give one of them")
    if metric is not None and not greedy:
        raise InputError("--metric: only --greedy compares models by a metric")
    if alpha is not None:
        if count != 2 or not 0.0 <= alpha <= 1.0:
            raise InputError(f"--alpha {alpha:g}: is the second one's share of two models, from 0 to 1; got {count}")
        weights = [1.0 - alpha, alpha]
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        shown = " ".join(f"{weight:g}" for weight in weights)
        raise InputError(f"--weights {shown}: one number for each of the {count} models, none below 0, not all 0")
    return [weight / sum(weights) for weight in weights]


def _greedy(
    models: Sequence[ResolvedModel], metric: str | None, overrides: Sequence[str], beside: Path
) -> list[Ingredient]:
    """The models whose equal average is best on the validation split, found one by one."""
    recipe = next((path for model in models if (path := model.path / RECIPE_FILE).is_file()), None)
    if recipe is None:
        raise InputError(f"{models[0].path}: no {RECIPE_FILE}, in none of the models; --greedy evaluates by one")
    asked = metric or load_recipe(recipe).recipe.training.get("metric_for_best_model") or "loss"
    judge = str(asked).removeprefix("eval_")
    sign = 1.0 if greater_is_better(judge) else -1.0
    beside.mkdir(parents=True, exist_ok=True)

    def score(kept: Sequence[ResolvedModel]) -> float:
        with tempfile.TemporaryDirectory(dir=beside, prefix=".soup-") as scratch:
            equal = [Ingredient(model, 1.0 / len(kept)) for model in kept]
            write_average(Path(scratch), equal, fingerprint={})
            numbers = evaluate(scratch, overrides=overrides, splits=[_SPLIT])[_SPLIT].metrics
        if judge not in numbers:
            near = did_you_mean(nearest_names(judge, numbers))
            raise InputError(f"--metric {judge}: is not measured{near} (measured: {', '.join(numbers)})")
        names = ", ".join(str(model.reference) for model in kept)
        logger.info("%s %s %.4f: %s", _SPLIT, judge, numbers[judge], names)
        return sign * numbers[judge]

    alone = {index: score([model]) for index, model in enumerate(models)}
    first, *others = sorted(alone, key=lambda index: -alone[index])
    kept, best = [models[first]], alone[first]
    for index in others:
        if (tried := score([*kept, models[index]])) >= best:
            kept, best = [*kept, models[index]], tried
    return [Ingredient(model, 1.0 / len(kept)) for model in kept]
