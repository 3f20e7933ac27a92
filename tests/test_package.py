"""The record's published schema, and what the card says."""

import json
from pathlib import Path

import jsonschema

from pipelines.package import Manifest

ROOT = Path(__file__).parent.parent


def test_the_committed_schema_is_the_codes() -> None:
    committed = json.loads((ROOT / "docs" / "quantgate.schema.json").read_text())
    assert committed == Manifest.model_json_schema(mode="serialization"), "run `make docs`"


def test_the_schema_promises_what_downstream_ci_reads() -> None:
    schema = json.loads((ROOT / "docs" / "quantgate.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema_version"]["const"] == 1
    gate = schema["$defs"]["GateRecord"]
    assert {"verdict", "certified", "retention", "lower_bound"} <= set(gate["required"])
    assert gate["properties"]["verdict"]["enum"] == ["PASS", "FAIL", "INCONCLUSIVE"]
    assert "bits_per_weight" in schema["$defs"]["SizeRecord"]["required"]
