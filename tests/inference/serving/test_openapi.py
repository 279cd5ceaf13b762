"""The OpenAPI page keeps its word, whatever is sent: requests are made up from it, right ones and wrong ones."""

from __future__ import annotations

import pytest
import requests
from hypothesis import HealthCheck, given, settings

from mmhf.inference import JobSettings
from mmhf.inference.embedders import embed_table
from mmhf.inference.serving.shelf import Asked

EXAMPLES = 12
KEPT = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


def ask(client, operation, mode, kept):
    """Send requests to one operation, and hold the answers to the page; gives its path with their statuses."""
    seen = set()

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def answered(case):
        prepared = requests.Request(**case.as_transport_kwargs(base_url="http://testserver")).prepare()
        response = client.request(prepared.method, prepared.url, content=prepared.body, headers=dict(prepared.headers))
        seen.add((operation.path, response.status_code))
        case.validate_response(response, checks=kept)

    answered()
    return seen


@pytest.mark.slow
def test_made_up_requests_are_answered_or_refused_as_the_page_says(serve, tiny_model, images_dir, tmp_path):
    import schemathesis
    from schemathesis import checks

    dual = tiny_model("dual encoder")
    embed_table(dual, images_dir, tmp_path / "index.parquet", JobSettings(device="cpu"), modalities=["image"])
    client = serve(
        {"fusion": tiny_model("fusion"), "captioner": tiny_model("captioner"), "dual": dual},
        indexes=[Asked("index", str(tmp_path / "index.parquet"))],
        max_queue=32,
    )
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    checks.load_all_checks()
    kept = checks.CHECKS.get_by_names(KEPT)
    seen = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            if mode is schemathesis.GenerationMode.POSITIVE or operation.body:  # else nothing can be wrong
                seen |= ask(client, operation, mode, kept)
    assert {path for path, _ in seen} >= {"/v1/predict", "/v1/embed", "/v1/zero-shot", "/v1/search", "/metrics"}
    assert {status for path, status in seen if path == "/v1/predict"} >= {422}
    assert client.get("/health").json() == {"status": "ok"}
