from __future__ import annotations

import json
from pathlib import Path

from mmhf.evaluation.details_file import write_details


def test_definitions_and_tables_are_kept_and_empty_tables_are_not(tmp_path: Path):
    rows = [{"label": "Äpfel", "f1": 0.5, "roc_auc": None}]
    write_details(tmp_path / "evaluation.json", {"f1": "What F1 is."}, {"test": {"By class": rows, "By group": []}})
    assert json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8")) == {
        "protocols": {"f1": "What F1 is."},
        "tables": {"test": {"By class": rows}},
    }
