"""COCO's document is parsed as json would, with its outlines as text until they are looked at."""

import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.findings import Report
from trainer.data.formats.coco import read_coco
from trainer.data.formats.coco_document import parse_coco, value_of

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON_VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=9,
)
FIELDS = ("id", "image_id", "category_id", "segmentation", "bbox", "iscrowd", "attributes")
ENTRIES = st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES)


def plain(document: Any) -> Any:
    """The document with every outline parsed."""
    if not isinstance(document, dict) or not isinstance(document.get("annotations"), list):
        return document
    entries = [
        {key: value_of(value) for key, value in entry.items()} if isinstance(entry, dict) else entry
        for entry in document["annotations"]
    ]
    return document | {"annotations": entries}


@given(st.fixed_dictionaries({"images": JSON_VALUES, "annotations": st.lists(ENTRIES)}))
def test_a_document_has_the_values_that_json_gives(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    for given_as in (text, text.encode()):
        # As text: NaN is not equal to itself.
        assert json.dumps(plain(parse_coco(given_as))) == json.dumps(json.loads(text))


@given(SCALARS | st.lists(SCALARS))
def test_anything_else_is_read_whole(value: object) -> None:
    for text in (json.dumps(value), json.dumps({"annotations": value})):
        assert json.dumps(plain(parse_coco(text))) == json.dumps(json.loads(text))


@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False, places=2)))
def test_coordinates_are_the_same_numbers(numbers: list[Any]) -> None:
    listed = f"[{', '.join(map(str, numbers))}]"
    (entry,) = parse_coco(f'{{"annotations": [{{"segmentation": [{listed}]}}]}}')["annotations"]
    assert value_of(entry["segmentation"]) == [json.loads(listed)]


def test_an_outline_stays_text_that_another_process_can_parse() -> None:
    (entry,) = parse_coco('{"annotations": [{"segmentation": [[1, 2.5]], "area": 3}]}')[
        "annotations"
    ]
    outline = entry["segmentation"]
    assert isinstance(outline, msgspec.Raw) and "area" not in entry
    assert value_of(pickle.loads(pickle.dumps(outline))) == [[1, 2.5]]


@pytest.mark.parametrize("text", ["", "{", '{"annotations": [{"segmentation": [1,]}]}', "[] 1"])
def test_broken_text_fails_as_in_json(text: str) -> None:
    for given_as in (text, text.encode(), text.encode("utf-16-be")):  # which is not guessed
        with pytest.raises(json.JSONDecodeError):
            parse_coco(given_as)


def test_numbers_beyond_a_float_are_infinite() -> None:
    (entry,) = parse_coco('{"annotations": [{"segmentation": [1e999]}]}')["annotations"]
    assert isinstance(entry["segmentation"], msgspec.Raw)
    assert value_of(entry["segmentation"]) == [float("inf")]


@pytest.mark.parametrize("outline", ["[[1, " + "9" * 5000 + "]]", "[" * 500 + "]" * 500])
def test_an_outline_that_python_refuses_is_a_finding(outline: str, tmp_path: Path) -> None:
    """Though the file was parsed: within an outline it only has to look like JSON."""
    path = tmp_path / "instances.json"
    path.write_text(
        '{"images": [{"id": 1, "file_name": "1.png", "height": 9, "width": 9}], "categories": '
        '[{"id": 1, "name": "cup"}], "annotations": [{"id": 1, "image_id": 1, "category_id": 1, '
        f'"segmentation": {outline}}}]}}'
    )
    report = Report(path)
    read_coco(report)
    (finding,) = report.findings
    assert (
        finding.what.startswith("annotations[0].segmentation: got ") and "allowed" in finding.what
    )
