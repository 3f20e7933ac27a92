"""Service level objectives: how they are written, kept and shown."""

import pytest
from scipy.stats import binom
from statsmodels.stats.proportion import proportion_confint

from pipelines.benching.slo import Slo, parse_slo, requests_to_show, shown_share
from pipelines.core.errors import BadInput


@pytest.mark.parametrize(
    ("text", "slo"),
    [
        ("ttft=500,itl=50", Slo(ttft=500, itl=50)),
        ("e2e=2.5s", Slo(e2e=2500)),
        (" ttft = 80ms , share = 0.9 ", Slo(ttft=80, share=0.9)),
    ],
)
def test_limits_are_read(text: str, slo: Slo) -> None:
    assert parse_slo(text) == slo


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tttf=500", "'tttf' is nothing that it limits\n    did you mean ttft?"),
        ("tpot=5", "'tpot' is nothing that it limits"),
        ("ttft=fast", "'ttft=fast' has no value"),
        ("ttft", "'ttft' has no value"),
        ("ttft=1,ttft=2", "ttft is given twice"),
        ("ttft=0", "needs times above 0"),
        ("ttft=-5", "has no value"),
        ("share=0.9", "limits no time"),
        ("ttft=1,share=1", "a share between 0 and 1"),
        ("ttft=1,share=0.9s", "has no value"),
        ("", "'' is nothing that it limits"),
    ],
)
def test_what_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_slo(text)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"--slo {text}: ")


def test_every_limit_counts() -> None:
    slo = Slo(ttft=100, itl=10)
    assert slo.is_kept(100, 10, 99999)
    assert not slo.is_kept(100.1, 1, 1)
    assert not slo.is_kept(1, 10.1, 1)
    assert not Slo(e2e=5).is_kept(0, 0, 6)
    assert str(slo) == "ttft ≤ 100 ms, itl ≤ 10 ms"


def test_a_share_is_shown_by_wilsons_bound() -> None:
    for kept, requests in ((90, 100), (0, 10), (50, 50), (299, 300)):
        lower, _ = proportion_confint(kept, requests, alpha=0.1, method="wilson")  # 5% on each side
        assert shown_share(kept, requests, 0.95) == pytest.approx(lower, abs=1e-12)


def test_the_bound_holds_as_often_as_it_says() -> None:
    n, share = 400, 0.99
    covered = sum(binom.pmf(kept, n, share) for kept in range(n + 1) if shown_share(kept, n, 0.95) <= share)
    assert covered > 0.93


def test_so_many_requests_show_a_share() -> None:
    needed = requests_to_show(0.99, 0.95)
    assert needed == 268
    assert shown_share(needed, needed, 0.95) >= 0.99 > shown_share(needed - 1, needed - 1, 0.95)
