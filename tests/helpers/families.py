"""Small models of many families, with random weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from docs.models import write_tokenizer

COMMON = {
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.06,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
UNTIED = {"tie_word_embeddings": False}
ALL_HEADS = {"num_key_value_heads": 4}
"""As many keys and values as queries: what the values write is what the output projection reads."""
GEMMA = {"sliding_window": 32, "query_pre_attn_scalar": 16}
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "intermediate_size": 64}
TEXT = "\n\n".join(
    f"Chapter {n}. In the year {1500 + 7 * n} the {n}th ship left the harbour with {n * n} barrels of flour and salt."
    for n in range(40)
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return write_text(tmp_path_factory.mktemp("text"))


def write_text(folder: Path) -> tuple[str, ...]:
    """A calibration set in `folder`, and overrides that calibrate a recipe on a few short samples of it."""
    (folder / "text.txt").write_text(TEXT)
    (folder / "set.yaml").write_text(
        "{version: 1, name: ships, summary: of the tests, source: {kind: files, paths: [text.txt]}}"
    )
    return (f"calibrate={{set: {folder / 'set.yaml'}, samples: 8, seq_len: 64}}",)


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes a checkpoint of a model type, once for each set of arguments."""
    root = tmp_path_factory.mktemp("families")
    made: dict[str, Path] = {}

    def write(kind: str, dtype: str = "bfloat16", shards: str | None = None, **settings: object) -> Path:
        key = f"{kind} {dtype} {shards} {settings}"
        if key not in made:
            made[key] = write_model(root / str(len(made)), kind, dtype, shards, **settings)
        return made[key]

    return write


def write_model(folder: Path, kind: str, dtype: str, shards: str | None, **settings: object) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    told = {name: value for name, value in {**COMMON, **settings}.items() if value is not None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **told))
    enliven(model)
    model.to(getattr(torch, dtype)).save_pretrained(folder, **({"max_shard_size": shards} if shards else {}))
    write_tokenizer(folder)
    return folder


def enliven(model: torch.nn.Module) -> None:
    """Move norms and biases off the ones and zeros they start with."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            found |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    return found
