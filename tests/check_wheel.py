"""Build the wheel, install it in an environment of its own, and use it there; run by `make wheel-test`.

The new environment sees the packages of this one, but not its mmhf, so that nothing but mmhf itself is installed. The
commands run in an empty folder: what they need must be in the wheel. They are README's: from a table of one's own,
from folders of classes and from a captioned folder to predictions, and to a release.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Pictures of the sample as a stranger would have them: files in a folder, named in a table with a text and a label.
WRITE_DATA = """
import csv, pathlib
from mmhf.sample_data import read_sample
pathlib.Path("photos").mkdir()
with open("data.csv", "w", newline="") as stream:
    writer = csv.writer(stream)
    writer.writerow(["photo", "title", "kind"])
    for number, row in enumerate(read_sample("train").slice(0, 80).to_pylist()):
        pathlib.Path(f"photos/{number}.jpg").write_bytes(row["image"]["bytes"])
        writer.writerow([f"{number}.jpg", "a drawing of " + row["caption"], ["even", "odd"][number % 2]])
        kind = pathlib.Path("kinds") / ["even", "odd"][number % 2]
        kind.mkdir(parents=True, exist_ok=True)
        (kind / f"{number}.jpg").write_bytes(row["image"]["bytes"])
        captioned = pathlib.Path("captioned")
        captioned.mkdir(exist_ok=True)
        (captioned / f"{number}.jpg").write_bytes(row["image"]["bytes"])
        (captioned / f"{number}.txt").write_text("a drawing of " + row["caption"])
"""
# What is typed for each shape of data: to init, to train (so that it takes seconds) and to predict.
SHAPES = {
    "data.csv": ([], ["stages.0.epochs=1", "~stages.1"], "data.csv"),
    "kinds": ([], ["stages.0.epochs=1", "~stages.1"], "photos"),
    "captioned": (["--task", "image-captioning"], ["training.num_train_epochs=1"], "photos"),
}


def run(*command: object, cwd: Path, **variables: str) -> str:
    sys.stderr.write(f"$ {' '.join(str(part) for part in command)}\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**environment, **variables}, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}\n{done.stderr}\nexit code {done.returncode}")
    return done.stdout


def build(folder: Path) -> Path:
    """Build the wheel from a copy of what git knows: an old `build/` would lend it files that are gone."""
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    source = folder / "source"
    for name in names:
        if (name.startswith(("mmhf/", "recipes/")) or (name and "/" not in name)) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


def check_content(wheel: Path) -> None:
    """Every module and the licence are in it, and nothing that acts on other programs of the environment."""
    names = zipfile.ZipFile(wheel).namelist()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mmhf").rglob("*.py")}
    recipes = {f"mmhf/{path.relative_to(ROOT)}" for path in (ROOT / "recipes").rglob("*.yaml")}
    missing = (modules | recipes | {"mmhf/py.typed", "mmhf/sample_data/sample.parquet"}) - set(names)
    assert not missing, f"not in the wheel: {sorted(missing)}"
    assert any(name.endswith("/LICENSE") for name in names), "the licence is not in the wheel"
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"mmhf"}, f"beside the package, the wheel holds {sorted(tops - {'mmhf'})}"


def install(wheel: Path, folder: Path) -> Path:
    """Make the environment; returns its folder of programs."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps", wheel, cwd=folder)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    # Such lines do not make Python read the `.pth` files in those folders, one of which leads to this tree's mmhf.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(others) + "\n", encoding="utf-8")
    return folder / "bin"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder)
        check_content(wheel)
        programs = install(wheel, folder / "environment")
        work = folder / "work"
        work.mkdir()
        where = run(programs / "python", "-c", "import mmhf; print(mmhf.__file__)", cwd=work).strip()
        assert Path(where).is_relative_to(folder), f"mmhf comes from {where}"
        # Two at a time, each with one core.
        settings = {"OMP_NUM_THREADS": "1", "MMHF_FEATURES": str(folder / "features"), "HF_HUB_OFFLINE": "1"}
        assert "train" in run(programs / "mmhf", "--help", cwd=work, **settings)
        run(programs / "mmhf", "init", "quickstart/fusion", "-o", "copied.yaml", cwd=work, **settings)
        assert "image-text-classification" in (work / "copied.yaml").read_text()
        run(programs / "python", "-c", WRITE_DATA, cwd=work)

        def from_data_to_predictions(data: str) -> Path:
            asked, overrides, rows = SHAPES[data]
            recipe = f"{Path(data).stem}.yaml"
            run(programs / "mmhf", "init", data, "--yes", *asked, "-o", recipe, cwd=work, **settings)
            run(programs / "mmhf", "train", recipe, *overrides, cwd=work, **settings)
            model, output = f"outputs/{Path(data).stem}", f"{Path(data).stem}_predictions.csv"
            run(programs / "mmhf", "predict", model, "--input", rows, "--output", output, cwd=work, **settings)
            assert len((work / output).read_text().splitlines()) == 81, data
            assert (work / model / "report.html").is_file(), data
            return Path(model)

        with ThreadPoolExecutor(2) as pool:
            model, *_ = pool.map(from_data_to_predictions, SHAPES)
        run(programs / "mmhf", "plan", "data.yaml", cwd=work, **settings)
        run(programs / "mmhf", "release", model, "--repo", "releases/own", "--version", "0.1", cwd=work, **settings)
        run(programs / "mmhf", "evaluate", "releases/own@v0.1", "--split", "test", cwd=work, **settings)
        sys.stderr.write(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, built, installed and used\n")


if __name__ == "__main__":
    main()
