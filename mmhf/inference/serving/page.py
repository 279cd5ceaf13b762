"""The page that describes the endpoints, with examples that run; it asks nothing of any other machine."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mmhf.inference.serving.schemas import (
    FORM_TYPE,
    JSON_TYPE,
    EmbedRequest,
    PredictRequest,
    SearchRequest,
    ZeroShotRequest,
    example_image,
)
from mmhf.inference.serving.services import EmbedService, PredictService
from mmhf.inference.serving.shelf import Shelf

_REQUESTS: dict[str, type[BaseModel]] = {
    "/v1/predict": PredictRequest,
    "/v1/embed": EmbedRequest,
    "/v1/zero-shot": ZeroShotRequest,
    "/v1/search": SearchRequest,
}
_FORM = {
    "type": "object",
    "description": "`image`, `text` and `columns` as often as there are inputs; the other fields by their names.",
    "properties": {
        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "text": {"type": "array", "items": {"type": "string"}},
        "columns": {"type": "array", "items": {"type": "string", "description": "JSON: column → value."}},
    },
}
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
}
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>mmhf serve</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
  section { border-top: 1px solid #ccc; margin-top: 1.5rem; }
  textarea { width: 100%; height: 10rem; font: 13px ui-monospace, monospace; }
  pre { background: #f4f4f4; padding: .6rem; overflow: auto; max-height: 20rem; white-space: pre-wrap; }
</style>
<h1>mmhf serve</h1>
<p>API key, if the server has one: <input id="key" type="password" autocomplete="off">.
   All of it for machines: <a href="/openapi.json">openapi.json</a>.</p>
<div id="all"></div>
<script>
const make = (tag, text, parent) => {
  const node = document.createElement(tag); node.textContent = text; parent.append(node); return node;
};
const send = async (method, path, type, body, out) => {
  const key = document.getElementById("key").value, headers = type ? {"Content-Type": type} : {};
  if (key) headers.Authorization = "Bearer " + key;
  try {
    const answer = await fetch(path, {method, headers, body});
    out.textContent = answer.status + "\\n";
    const reader = answer.body.getReader(), decoder = new TextDecoder();
    for (;;) {
      const {done, value} = await reader.read();
      if (done) break;
      out.textContent += decoder.decode(value, {stream: true});
    }
  } catch (error) { out.textContent = String(error); }
};
fetch("/openapi.json").then(answer => answer.json()).then(api => {
  for (const [path, methods] of Object.entries(api.paths))
    for (const [method, about] of Object.entries(methods)) {
      const section = make("section", "", document.getElementById("all"));
      make("h2", method.toUpperCase() + " " + path, section);
      make("p", about.summary + ". " + (about.description || ""), section);
      const json = ((about.requestBody || {}).content || {})["application/json"];
      const examples = json ? Object.entries(json.examples) : [["", null]];
      for (const [name, example] of examples) {
        let area = null;
        if (example) {
          make("h3", name, section);
          area = make("textarea", JSON.stringify(example.value, null, 2), section);
        }
        const button = make("button", "Send", section), out = make("pre", "", section);
        button.onclick = () =>
          send(method.toUpperCase(), path, area && "application/json", area ? area.value : undefined, out);
      }
    }
});
</script></html>
"""


def describe(app: FastAPI, shelf: Shelf) -> None:
    """Give an application its OpenAPI page: what requests look like, each with an example that these models answer."""
    examples = _examples(shelf)
    _, definitions = models_json_schema(
        [(kind, "validation") for kind in _REQUESTS.values()], ref_template="#/components/schemas/{model}"
    )

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = get_openapi(title=app.title, version=app.version, routes=app.routes)
            described.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
            for path, kind in _REQUESTS.items():
                if path in described["paths"]:
                    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
                    described["paths"][path]["post"]["requestBody"] = {
                        "required": True,
                        "content": {
                            JSON_TYPE: {"schema": schema, "examples": examples[path]},
                            FORM_TYPE: {"schema": _FORM},
                        },
                    }
            app.openapi_schema = described
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _examples(shelf: Shelf) -> dict[str, dict[str, Any]]:
    image = example_image()
    made: dict[str, dict[str, Any]] = {path: {} for path in _REQUESTS}
    for served in shelf:
        name, service = served.name, served.service
        if isinstance(service, PredictService):
            given: dict[str, Any] = {"image": image} | ({"text": "a drawing"} if "text" in service.reads else {})
            if service.columns is not None:
                given["columns"] = service.columns.usual_row()
            body: dict[str, Any] = {"model": name, "inputs": [given]}
            made["/v1/predict"][name] = {"value": body}
            if service.writes_captions:
                made["/v1/predict"][f"{name}, piece by piece"] = {"value": {**body, "stream": True}}
        if isinstance(service, EmbedService):
            body = {"model": name, "inputs": [{"image": image}, {"text": "a drawing"}]}
            made["/v1/embed"][name] = {"value": body}
            made["/v1/zero-shot"][name] = {
                "value": {"model": name, "inputs": [{"image": image}], "labels": ["a drawing", "a photo"]}
            }
            for index in served.indexes:
                made["/v1/search"][f"{name}, {index}"] = {
                    "value": {"model": name, "index": index, "inputs": [{"text": "a drawing"}], "top": 3}
                }
    return made
