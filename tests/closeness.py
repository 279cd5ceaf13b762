"""What is computed again from a file, in another process or in another batch is the same but for rounding.

Kernels round by processor, by number of threads and by the address of weights, which is another one once they are
mapped from a file. Tensors are compared by `torch.testing.assert_close`, at its tolerance for their type.
"""

from __future__ import annotations

from typing import Any

import pytest

RELATIVE, ABSOLUTE = 1e-5, 1e-6


def check_alike(given: Any, wanted: Any, *, rel: float = RELATIVE, abs: float = ABSOLUTE) -> None:
    """Answers of a pipeline, or rows of a table: equal but for the rounding of numbers, however deep they lie."""
    if isinstance(wanted, dict):
        assert given.keys() == wanted.keys()
        for key, value in wanted.items():
            check_alike(given[key], value, rel=rel, abs=abs)
    elif isinstance(wanted, list):
        assert len(given) == len(wanted)
        for one, other in zip(given, wanted, strict=True):
            check_alike(one, other, rel=rel, abs=abs)
    elif isinstance(wanted, float):
        assert given == pytest.approx(wanted, rel=rel, abs=abs)
    else:
        assert given == wanted
