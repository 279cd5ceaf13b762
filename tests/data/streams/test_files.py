from __future__ import annotations

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmhf.data.streams.files import expand_braces, list_files


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{000..002}.tar", ["000.tar", "001.tar", "002.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("x{a,b{1..2},}y", ["xay", "xb1y", "xb2y", "xy"]),
        ("{only}", ["{only}"]),
        ("open{", ["open{"]),
        ("a}b{1,2}", ["a}b1", "a}b2"]),
        ("", [""]),
    ],
)
def test_braces_as_in_a_shell(pattern, names):
    assert expand_braces(pattern) == names


@given(st.text(alphabet="{},.019ab"))
def test_any_text_is_read(pattern):
    names = expand_braces(pattern)
    assert names and (names == [pattern] or "{" in pattern)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 4))
def test_a_range_has_every_number_at_its_width(first, last, width):
    names = expand_braces(f"{{{first:0{width}d}..{last:0{width}d}}}")
    assert [int(name) for name in names] == list(range(first, last + 1)) or first > last
    assert len(names) == abs(last - first) + 1


def test_stars_are_listed_on_disk_and_behind_urls(tmp_path):
    for name in ("b1.tar", "a2.tar", "c.zip"):
        (tmp_path / name).touch()
        fsspec.filesystem("memory").pipe_file(f"/patterns/{name}", b"")
    assert list_files(str(tmp_path / "*.tar")) == [str(tmp_path / "a2.tar"), str(tmp_path / "b1.tar")]
    assert list_files("memory://patterns/{a,b}*.tar") == ["memory:///patterns/a2.tar", "memory:///patterns/b1.tar"]
    assert list_files(["https://x/{0..1}.tar", "y"]) == ["https://x/0.tar", "https://x/1.tar", "y"]
