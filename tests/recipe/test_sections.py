from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from mmhf.errors import InputError
from mmhf.recipe import load_recipe
from mmhf.recipe.sections import DataPath

_RECIPE = Path(__file__).parents[2] / "recipes" / "fakeddit" / "v1.6.yaml"


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA123:hunter2@bucket/data",
        "s3://AKIA123:hunter2@{version}/data",
        "https://someone:hunter2@host/data.zip",
        "https://host/data.zip?X-Amz-Credential=AKIA123&X-Amz-Signature=hunter2",
        "https://host/data.zip?x-goog-signature=hunter2",
        "https://host/data.zip?sv=2024&sig=hunter2",
        "https://host/data.zip?access_token=hunter2",
    ],
)
def test_a_url_with_credentials_is_refused_without_repeating_them(url: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(_RECIPE.read_text().replace("path: data/fakeddit", f"path: {url}"))
    for problem in ([recipe], [_RECIPE, [f"data.path={url}"]]):
        with pytest.raises(
            InputError, match=r"data\.path: the \w+:// URL holds credentials; leave them out"
        ) as refused:
            load_recipe(*problem)
        assert "hunter2" not in str(refused.value) and "AKIA123" not in str(refused.value)
        assert "\n" not in str(refused.value)


def test_credentials_under_an_unknown_key_are_not_repeated_either() -> None:
    with pytest.raises(InputError, match=r"data\.pth: unknown key.*did you mean path\?") as refused:
        load_recipe(_RECIPE, ["data.pth=s3://AKIA123:hunter2@bucket/data"])
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "place",
    [
        "data/with:colon@sign",
        "s3://bucket/a:b@c/train.csv",
        "gs://bucket/{version}/metadata.csv",
        "hf://datasets/user/repo@main/train.parquet",
        "https://host/data.zip?download=true",
        "https://someone@host/data.zip",
    ],
)
def test_other_paths_and_urls_pass(place: str) -> None:
    assert TypeAdapter(DataPath).validate_python(place) == place
