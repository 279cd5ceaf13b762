from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmhf.data.captions import captions_in


@pytest.mark.parametrize(
    ("written", "texts"),
    [
        ("""['a red dog' "it's a dog" 'a "big" dog']""", ["a red dog", "it's a dog", 'a "big" dog']),
        ("['a'\n 'b']", ["a", "b"]),
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("('a', 'b')", ["a", "b"]),
        ("('a',)", ["a"]),
        ("['a', None, nan]", ["a", None, None]),
        ('["a", null]', ["a", None]),
        ("[]", []),
        ("['a\nb' 'c']", ["a\nb", "c"]),
        (["a", float("nan"), None], ["a", None, None]),
        (("a", "b"), ["a", "b"]),
        ("[a dog] runs [fast]", ["[a dog] runs [fast]"]),
        ("('quoted' word)", ["('quoted' word)"]),
        ("(a dog)", ["(a dog)"]),
    ],
)
def test_lists_as_people_write_them(written, texts):
    assert captions_in(written) == texts


@pytest.mark.parametrize("written", ["['a', 'b' 'c']", "['a''b']", "['a' 'b' ... 'c']", "['unclosed]", r"['\x']"])
def test_a_list_that_can_be_read_in_two_ways_is_refused(written):
    with pytest.raises(ValueError, match="cannot be read for certain"):
        captions_in(written)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=6))
def test_numpy_arrays_in_their_written_form(texts):
    with np.printoptions(threshold=100):
        assert captions_in(str(np.array(texts, dtype=object))) == texts
