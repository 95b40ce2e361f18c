"""The interface's description: OpenAPI's document, and a page of it without any script."""

from __future__ import annotations

from html import escape
from typing import Any

from trainer.serve.asked import KINDS
from trainer.serve.limits import Limits

MASK = {
    "type": "object",
    "description": "COCO's run lengths; pycocotools.mask.decode reads size and counts",
    "required": ["size", "counts", "area"],
    "additionalProperties": False,
    "properties": {
        "size": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        "counts": {"type": "string"},
        "area": {"type": "integer", "description": "pixels"},
    },
}
ANSWER = {
    "type": "object",
    "required": ["question", "answer", "seconds", "masks", "masks_left_out"],
    "additionalProperties": False,
    "properties": {
        "question": {"type": "string"},
        "answer": {"type": "string"},
        "seconds": {"type": "number"},
        "masks": {"type": "array", "items": MASK, "description": "one for each [SEG]"},
        "masks_left_out": {"type": "integer", "description": "beyond the model's limit"},
    },
}
ANSWERS = {
    "type": "object",
    "required": ["height", "width", "answers"],
    "additionalProperties": False,
    "properties": {
        "height": {"type": "integer", "description": "of the upright picture"},
        "width": {"type": "integer", "description": "of the upright picture"},
        "answers": {"type": "array", "items": ANSWER, "description": "in the questions' order"},
    },
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "hint": {"type": "string"}},
}
HEALTH = {
    "type": "object",
    "required": ["status", "processes", "waiting"],
    "properties": {
        "status": {"enum": ["ready", "loading", "failed"]},
        "processes": {"type": "integer", "description": "that have loaded the model"},
        "waiting": {"type": "integer", "description": "requests"},
        "error": {"type": "string"},
    },
}
ANY = {"type": "object"}
REFUSED = {
    400: "the form cannot be read",
    413: "the picture's file is too large",
    415: "not multipart/form-data, or compressed",
    422: "the picture or a question cannot be used",
    429: "too many requests wait",
    503: "the model's process ended or is not there, or the server cannot keep the picture",
    504: "the time limit has passed",
}


def document(limits: Limits, needs_token: bool) -> dict[str, Any]:
    """The interface, as OpenAPI 3.1 describes it."""
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "lisa-segment", "version": "1"},
        "paths": {
            "/segment": {"post": _segment(limits)},
            "/health": {"get": _get("Whether the model is loaded", HEALTH, {503: HEALTH})},
            "/model": {"get": _get("The model, and what it takes", ANY)},
            "/openapi.json": {"get": _get("This document", ANY)},
        },
    }
    if needs_token:
        schemes = {"token": {"type": "http", "scheme": "bearer"}}
        described |= {"components": {"securitySchemes": schemes}, "security": [{"token": []}]}
        described["paths"]["/health"]["get"]["security"] = []
    return described


def _segment(limits: Limits) -> dict[str, Any]:
    question = {
        "type": "string",
        "pattern": r"[^\s\x00-\x1f\x7f-\xa0]",
        "maxLength": limits.letters,
    }
    form = {
        "type": "object",
        "required": ["picture", "question"],
        "additionalProperties": False,
        "properties": {
            "picture": {"type": "string", "format": "binary",
                        "description": f"a JPEG, PNG, WebP, BMP, TIFF, AVIF or GIF file of at most "
                        f"{limits.picture_bytes >> 20} MiB and {limits.pixels:,} pixels"},
            "question": {"type": "array", "items": question, "minItems": 1,
                         "maxItems": limits.questions,
                         "description": "give the field once for each"},
            "kind": {"enum": list(KINDS), "default": KINDS[0], "description":
                     "sentence: whole questions; phrase: noun phrases; explain: as sentence, and "
                     "the answer gives the reason"},
        },
    }  # fmt: skip
    answers = {200: _response("The answers", ANSWERS)}
    refused = {status: _response(why, ERROR) for status, why in REFUSED.items()}
    return {
        "summary": "Answers and masks of questions about a picture",
        "operationId": "segment",
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": _with_refusals(answers | refused),
    }


def _get(
    summary: str, schema: dict[str, Any], others: dict[int, dict[str, Any]] | None = None
) -> dict[str, Any]:
    found = {200: schema} | (others or {})
    responses = {status: _response(summary, one) for status, one in found.items()}
    return {"summary": summary, "responses": _with_refusals(responses)}


def _with_refusals(responses: dict[int, Any]) -> dict[str, Any]:
    guarded = {401: _response("a token is needed", ERROR),
               403: _response("another host or origin", ERROR)}  # fmt: skip
    return {str(status): one for status, one in sorted((guarded | responses).items())}


def _response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


STYLE = "body{font:16px/1.5 sans-serif;max-width:46em;margin:2em auto;padding:0 1em}" \
        "table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.2em .6em;" \
        "text-align:left}code,pre{background:#eee;padding:.1em .3em}"  # fmt: skip
TRY = """<form action="segment" method="post" enctype="multipart/form-data">
<p><input type="file" name="picture" required> <input name="question" size="40" required
placeholder="What would you drink from?"> <button>ask</button></p></form>"""
EXAMPLE = "curl -F picture=@a.jpg -F 'question=What is hot?' -F 'question=Who sits?' URL/segment"


def page(described: dict[str, Any]) -> str:
    """The document to read, with a form to try it; nothing comes from another server."""
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>lisa-segment</title>",
             f"<style>{STYLE}</style><h1>lisa-segment</h1>", TRY,
             f"<pre>{EXAMPLE}</pre>"]  # fmt: skip
    for path, methods in described["paths"].items():
        for method, facts in methods.items():
            parts += [f"<h2><code>{method.upper()} {path}</code></h2>", f"<p>{facts['summary']}"]
            parts += _fields(facts)
            parts += _rows({s: r["description"] for s, r in facts["responses"].items()}, "status")
    return "\n".join([*parts, '<p><a href="openapi.json">openapi.json</a></html>'])


def _fields(facts: dict[str, Any]) -> list[str]:
    if "requestBody" not in facts:
        return []
    form = facts["requestBody"]["content"]["multipart/form-data"]["schema"]
    return _rows({n: one["description"] for n, one in form["properties"].items()}, "field")


def _rows(facts: dict[str, str], what: str) -> list[str]:
    rows = [f"<tr><td><code>{escape(n)}</code><td>{escape(t)}" for n, t in facts.items()]
    return [f"<table><tr><th>{what}<th>", *rows, "</table>"]
