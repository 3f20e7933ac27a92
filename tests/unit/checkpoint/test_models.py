"""Models of the hub that cannot be had: what is said of each, on a stand-in for the Hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from pipelines.checkpoint.load import load_model
from pipelines.core.errors import BadInput
from tests.helpers.hub_server import HubServer, plain_client, serve


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub that has an empty private repository, `me/model`."""
    plain_client(monkeypatch)
    with serve("hf_secret") as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        HfApi(endpoint=server.url, token=server.token).create_repo("me/model", private=True)
        yield server


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "token", "told"),
    [
        (
            "me/model",
            "hf_secret",
            "the repository has none of the files of a checkpoint\n",
        ),
        (
            "me/modle",
            "hf_secret",
            "there is no such repository on the hub, or it needs a token\n    check",
        ),
        (
            "me/model@v9",
            "hf_secret",
            "the repository has no revision 'v9'\n    give one of its",
        ),
        ("me/model", "hf_other", "the hub refused: Client error '401 Unauthorized' for url"),
    ],
)
def test_what_the_hub_does_not_give_is_told_with_a_way_on(
    monkeypatch: pytest.MonkeyPatch, name: str, token: str, told: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BadInput) as error:
        load_model(name)
    assert str(error.value).startswith(f"{name}: {told}")
    assert len(str(error.value).splitlines()) == 2
