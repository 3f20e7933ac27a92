"""The load generator's config, and its report, which is a real one.

`guidellm-report.json.gz` was written by guidellm 0.8.1 on its own mock server: twice 6 requests at 2 and 4 a second, 16
tokens each. What is not read of it was taken out.
"""

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.benching.load import config, read_timings
from pipelines.benching.workload import Workload, loads
from pipelines.core.errors import BadInput, QuantgateError
from tests.helpers.paths import ROOT

REPORT = ROOT / "tests" / "references" / "data" / "guidellm-report.json.gz"
WORK = Workload(prompt_tokens=64, output_tokens=16, requests=6, concurrency=4, loads=loads((2.0, 4.0), 4))


@pytest.fixture
def report() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress(REPORT.read_bytes()))
    return found


def test_the_report_is_read(report: dict[str, Any]) -> None:
    slow, fast = read_timings(report, "q8", WORK)
    assert (slow.load.name, fast.load.name) == ("2/s", "4/s")
    assert slow.seconds == pytest.approx(2.764, abs=1e-3)
    first = slow.requests[0]
    assert (first.ttft, first.itl, first.e2e) == pytest.approx((163.88, 11.277, 333.84), abs=0.01)
    assert {one.output_tokens for one in (*slow.requests, *fast.requests)} == {16}
    assert len({one.prompt for one in (*slow.requests, *fast.requests)}) == 12  # no prompt is sent twice to a server


def test_what_cannot_be_compared_is_refused(report: dict[str, Any]) -> None:
    def said(change: Any, kind: type[Exception] = BadInput, work: Workload = WORK) -> str:
        changed = copy.deepcopy(report)
        change(changed["benchmarks"])
        with pytest.raises(kind) as caught:
            read_timings(changed, "q8", work)
        return str(caught.value)

    failed = {"info": {"error": "ReadTimeout: no answer"}}
    assert "its server failed a request of '2/s': ReadTimeout: no answer" in said(
        lambda parts: parts[0]["requests"]["errored"].append(failed)
    )
    assert "guidellm tells of 5 of 6 requests of '4/s' to q8, none of which failed" in said(
        lambda parts: parts[1]["requests"]["successful"].pop(), QuantgateError
    )
    assert "its server wrote 9 tokens where 16 were asked for" in said(
        lambda parts: parts[0]["requests"]["successful"][2].update(output_tokens=9)
    )
    assert "reports 1 loads of 2" in said(lambda parts: parts.pop(), QuantgateError)


def test_lengths_are_forced_and_nothing_is_fetched() -> None:
    spec = config("http://127.0.0.1:1", WORK, Path("/model"), Path("/out.json"))["spec"]
    assert spec["backend"]["extras"]["body"] == {"temperature": 0, "ignore_eos": True}
    assert spec["data"] == [{"kind": "synthetic_text", "prompt_tokens": 64, "output_tokens": 16}]
    assert spec["profile"] == {"kind": "poisson", "rate": [2.0, 4.0]}
    assert spec["tokenizer"]["model"] == "/model"
    closed = WORK.model_copy(update={"loads": loads((), 8)})
    profile = config("http://127.0.0.1:1", closed, Path("/model"), Path("/out.json"))["spec"]["profile"]
    assert profile == {"kind": "concurrent", "streams": [1, 8]}
