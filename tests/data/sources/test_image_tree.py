from __future__ import annotations

import posixpath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmhf.data.sources.image_tree import Listing, arrange
from mmhf.errors import InputError


def text_of(**kinds: str) -> st.SearchStrategy[str]:
    """Names of anything but the separator and what hides a file or is not stored as it is."""
    characters = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/", **kinds)
    return st.text(characters, min_size=1, max_size=12).filter(lambda name: name[0] != "." and name != "__MACOSX")


names = text_of()
class_names = st.lists(
    text_of(codec="ascii") | st.sampled_from(["train", "Test images", "Tomato, (late) blight", "葉"]),
    min_size=2,
    max_size=5,
    unique=True,
)
file_names = st.lists(names, min_size=1, max_size=4, unique=True)


def listing(*images: str, folders: tuple[str, ...] = ()) -> Listing:
    return Listing(list(images), set(folders))


def shown(tree) -> dict[str, list[tuple[str, str]]]:
    return {split: [tuple(image) for image in images] for split, images in tree.splits.items()}


@settings(max_examples=100, deadline=None)
@given(class_names, file_names, st.sampled_from(["", "data", "data/raw"]))
def test_any_names_make_classes(classes, files, wrapper):
    """Words such as train and test in class and file names decide nothing."""
    paths = [posixpath.join(wrapper, name, f"{file} test train.JPG") for name in classes for file in files]
    tree = arrange(listing(*paths), origin="x")
    assert not tree.is_split and not tree.empty and not tree.outside
    assert shown(tree) == {"train": sorted((path, path.split("/")[-2]) for path in paths)}


@settings(max_examples=60, deadline=None)
@given(
    class_names,
    st.dictionaries(
        st.sampled_from(["train", "validation", "test"]),
        st.sampled_from([str.lower, str.upper, str.title]),
        min_size=1,
    ),
    st.booleans(),
)
def test_split_folders(classes, cases, wrapped):
    paths = [
        ("archive/" if wrapped else "") + f"{case(split)}/{name}/1.png"
        for split, case in cases.items()
        for name in classes
    ]
    tree = arrange(listing(*paths), origin="x")
    assert tree.is_split and set(tree.splits) == set(cases)
    for images in tree.splits.values():
        assert sorted(image.label for image in images) == sorted(classes)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "VALIDATION", "dev"])
def test_names_of_the_validation_split(name):
    assert set(arrange(listing("train/a/1.jpg", f"{name}/a/2.jpg"), origin="x").splits) == {"train", "validation"}


def test_accents_typed_differently_are_one_class():
    tree = arrange(listing("train/caf\u00e9/1.jpg", "test/cafe\u0301/2.jpg", "test/b/3.jpg"), origin="x")
    assert {image.label for images in tree.splits.values() for image in images} == {"caf\u00e9", "b"}


def test_a_folder_in_the_tree():
    paths = [f"raw/{kind}/{name}/1.jpg" for kind in ("color", "grayscale") for name in ("a", "b")]
    tree = arrange(listing(*paths), origin="x", folder="raw/color")
    assert shown(tree) == {"train": [("raw/color/a/1.jpg", "a"), ("raw/color/b/1.jpg", "b")]}
    with pytest.raises(InputError, match=r"raw/color has folders with images \(a, b\).*set data.folder to raw/color"):
        arrange(listing(*paths), origin="x")
    with pytest.raises(InputError, match=r"data.folder: x has no folder 'raw/colour'; did you mean color\?"):
        arrange(listing(*paths), origin="x", folder="raw/colour")


def test_split_folders_by_other_names():
    paths = ["Training/a/1.jpg", "test_unseen/a/2.jpg", "test_seen/a/3.jpg", "Training/b/4.jpg"]
    with pytest.raises(
        InputError, match="beside the split folders Training there are test_seen, test_unseen; .*data.splits"
    ):
        arrange(listing(*paths), origin="x")
    tree = arrange(listing(*paths), origin="x", splits={"train": "Training", "test": "test_unseen"})
    assert shown(tree)["test"] == [("test_unseen/a/2.jpg", "a")]
    assert len(tree.splits["train"]) == 2
    with pytest.raises(InputError, match=r"data.splits.test: x has no folder 'test_unsen'; did you mean test_unseen"):
        arrange(listing(*paths), origin="x", splits={"test": "test_unsen"})


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"], "val and valid are both validation"),
        (["train/a/1.jpg", "test/1.jpg"], "the images in test are in no class folder"),
        (["1.jpg", "2.jpg"], "2 images are in no class folder"),
        (["a/1.jpg", "b/c/1.jpg"], r"b has folders with images \(c\)"),
        ([], "no images"),
    ],
)
def test_what_fits_no_layout(paths, message):
    with pytest.raises(InputError, match=message):
        arrange(listing(*paths), origin="x")


def test_empty_classes_and_images_outside_are_told():
    tree = arrange(listing("a/1.jpg", "b/1.jpg", "preview.png", folders=("c", "a/notes", ".git")), origin="x")
    assert (tree.empty, tree.outside) == (["c"], 1)
    tree = arrange(listing("train/a/1.jpg", "train/x.jpg", folders=("train/b",)), origin="x")
    assert (tree.empty, tree.outside) == (["train/b"], 1)


def test_files_that_are_not_looked_at_are_counted():
    files = Listing()
    taken = [
        name for name in ("a/x.JPG", "a/x.txt", ".git/x.jpg", "__MACOSX/a/x.jpg", "a/._x.jpg") if files.takes(name)
    ]
    assert taken == ["a/x.JPG"]
    assert files.ignored == {"hidden": 3, "not images": 1}
    with pytest.raises(InputError, match=r"no images in it \(other files: 3 hidden, 1 not images\)"):
        arrange(files, origin="x")
