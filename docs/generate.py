"""Regenerates the documents that are made from code: `make docs`. The tests check that they are current."""

import json
from pathlib import Path

from pipelines.package import Manifest

HERE = Path(__file__).parent


def main() -> None:
    """Write docs/quantgate.schema.json."""
    schema = Manifest.model_json_schema(mode="serialization")
    (HERE / "quantgate.schema.json").write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
