"""From what the user calls a model to a checkpoint on disk: the embedded default, a local folder, or the hub."""

import re
from pathlib import Path

from pipelines.checkpoint.default_model import DEFAULT
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core.errors import bad_input, brief
from pipelines.core.paths import expanded

HUB_ID = re.compile(r"(?!.*\.\.)[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")
"""Without `..`, for the name and the revision become parts of paths."""
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*", "README.md")


def load_model(model: str | Path | None = None) -> Checkpoint:
    """Return the checkpoint that `model` names: a folder, a hub id `org/name[@revision]`, or none for the default
    model.

    Raises:
        BadInput: no such folder or repository, or not a sound safetensors checkpoint.
    """
    if model is None or str(model) == DEFAULT:
        from pipelines.checkpoint.default_model import default_model

        return default_model()
    folder = expanded(model)
    try:
        found = folder.is_dir()
    except OSError:  # a name that no file system takes
        found = False
    if found:
        return read_checkpoint(folder)
    if HUB_ID.fullmatch(str(model)):
        return _from_hub(str(model))
    raise bad_input(model, "is neither a folder nor a hub id", "give a checkpoint folder, or org/name[@revision]")


def _from_hub(model: str) -> Checkpoint:
    import httpx
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = model.partition("@")
    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=list(HUB_FILES),
                local_files_only=constants.HF_HUB_OFFLINE,  # else it asks the hub about a commit even then
            )
        )
    except HFValidationError as error:
        raise bad_input(
            model, f"is not a name the hub allows: {error}", "give a checkpoint folder, or org/name[@revision]"
        ) from None
    except RepositoryNotFoundError:
        remedy = "check the name; for a private or a gated repository, set HF_TOKEN"
        raise bad_input(model, "there is no such repository on the hub, or it needs a token", remedy) from None
    except RevisionNotFoundError:
        what = f"the repository has no revision '{revision}'"
        raise bad_input(model, what, "give one of its branches, tags or commits") from None
    except LocalEntryNotFoundError:
        remedy = "there is no folder of this name either; check the name, or the network and HF_HUB_OFFLINE"
        raise bad_input(model, "the hub cannot be reached and the model is not in its local cache", remedy) from None
    except (httpx.HTTPError, ConnectionError) as error:
        raise bad_input(model, f"the hub refused: {brief(error)}", "check HF_TOKEN and the network") from None
    if not folder.is_dir():
        remedy = f"give one that has {', '.join(HUB_FILES[:2])}"
        raise bad_input(model, "the repository has none of the files of a checkpoint", remedy)
    checkpoint = read_checkpoint(folder, label=name)
    return checkpoint.model_copy(update={"hub_id": name, "revision": folder.name})
