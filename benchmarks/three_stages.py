"""Three stages against the head alone and against everything from the start, at equal epochs, over three seeds.

Trains the image classifier of a recipe in three ways and prints the test macro-F1 and accuracy of each, as mean and
standard deviation. "Everything" uses the rates of the recipe's last stage for the backbone and of its first stage for
the head; `--rate` tries others.

    python benchmarks/three_stages.py recipes/quickstart/image_classifier.yaml [--seeds 1 2 3] [key=value ...]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mmhf.recipe import load_recipe


def stages_by_way(recipe, rate):
    epochs = sum(stage.epochs for stage in recipe.stages)
    head_rate = recipe.stages[0].learning_rate
    shared = {"epochs": epochs, "schedule": "cosine", "min_lr": 1e-7, "batch_norm": recipe.stages[-1].batch_norm}
    return {
        "three stages": None,
        "head only": [{"name": "head", "train": ["head"], "learning_rate": head_rate, **shared}],
        "everything": [
            {"name": "all", "train": "all", "learning_rate": {"vision": rate, "head": head_rate}, **shared}
        ],
    }


def train(recipe_path, overrides, stages, seed, folder):
    changed = [f"stages={json.dumps(stages)}"] if stages else []
    fixed = [f"training.seed={seed}", f"training.output_dir={folder}", "training.disable_tqdm=true", "release=null"]
    saving = ["training.save_strategy=no", "training.eval_strategy=no", "training.load_best_model_at_end=false"]
    command = [sys.executable, "-m", "mmhf", "train", recipe_path, *overrides, *changed, *fixed, *saving]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads((folder / "metrics.json").read_text())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rate", type=float, help="backbone's learning rate when everything trains from the start")
    options = parser.parse_intermixed_args()
    recipe = load_recipe(options.recipe, options.overrides).recipe
    ways = stages_by_way(recipe, options.rate or recipe.stages[-1].learning_rate["vision"])
    results = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            for way, stages in ways.items():
                folder = Path(scratch) / f"{way.replace(' ', '_')}_{seed}"
                results[way].append(train(options.recipe, options.overrides, stages, seed, folder))
                print(f"seed {seed}, {way}: macro-F1 {results[way][-1]['test_f1_macro']:.4f}", flush=True)
    for way, runs in results.items():
        for name in ("f1_macro", "accuracy"):
            values = [run[f"test_{name}"] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{way}: test {name} {statistics.mean(values):.4f} ± {spread:.4f}")


if __name__ == "__main__":
    main()
