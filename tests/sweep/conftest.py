"""Sweeps whose trainings are a formula, so that what is tested is who runs what."""

import pytest

from mmhf.sweep import Patience, SharedStudy, load_space

GRID = """
metric: accuracy
sampler: {sampler}
space:
  a: {{low: 0, high: 5}}
  b: [x, y, z, w]
"""


@pytest.fixture
def space(tmp_path):
    def make(sampler="grid", more=""):
        path = tmp_path / "space.yaml"
        path.write_text(GRID.format(sampler=sampler) + more)
        return load_space(path)

    return make


@pytest.fixture
def open_study(tmp_path, space):
    """The study as another process would open it; `worker` makes it look like one."""

    def open_it(storage=None, *, sampler="grid", more="", worker=None, recipe="task: x", patience=None):
        study = SharedStudy(
            storage or str(tmp_path / "journal.log"),
            "sweep",
            space=space(sampler, more),
            recipe=recipe,
            patience=patience or Patience(heartbeat=0.05, here=0.0, elsewhere=1000),
        )
        study.worker = worker or study.worker
        return study

    return open_it
