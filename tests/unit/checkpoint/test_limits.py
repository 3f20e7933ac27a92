"""What a model can read: tokens and positions, wherever text is read."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.limits import known_token, language_config, positions
from pipelines.checkpoint.load import load_model
from pipelines.core.errors import BadInput
from pipelines.planning.stage import make_plan
from pipelines.quantization.stage import quantize
from pipelines.runtimes.lm_eval import Ends
from pipelines.runtimes.transformers_lm import TransformersLM
from pipelines.verification.stage import verify
from tests.conftest import edit_json, make_tiny, with_token

KINDS: list[tuple[str, dict[str, Any], int | None]] = [
    ("llama", {"max_position_embeddings": 32}, 32),
    ("opt", {"max_position_embeddings": 32}, 32),
    ("gpt2", {"n_positions": 48}, 48),
    ("mpt", {"max_seq_len": 64}, 64),
    ("whisper", {"max_target_positions": 48}, 48),
    ("roberta", {"max_position_embeddings": 514, "pad_token_id": 1}, 512),
    ("bloom", {}, None),
    ("mamba", {}, None),
]


@pytest.mark.parametrize(("kind", "settings", "expected"), KINDS, ids=[row[0] for row in KINDS])
def test_configs_call_positions_by_many_names(kind: str, settings: dict[str, Any], expected: int | None) -> None:
    assert positions(AutoConfig.for_model(kind, **settings)) == expected


def test_limits_are_those_of_the_language_model() -> None:
    text = {"max_position_embeddings": 77, "vocab_size": 99}
    config = AutoConfig.for_model("gemma3", text_config=text).get_text_config(decoder=True)
    assert (positions(config), known_token(config, None, 99, 98), known_token(config, 99)) == (77, 98, None)


def test_a_config_that_transformers_does_not_read_is_named(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "config.json", num_attention_heads=[])
    with pytest.raises(BadInput, match=r"config.json: transformers makes no config of it: .*\n    give the config"):
        language_config(load_model(tiny_copy))


def test_a_tokenizer_of_another_model_is_named_wherever_text_is_read(smollm2: Checkpoint, tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "model", smollm2, vocab_size=1000)
    told = rf"^{model}/tokenizer.json: gives a text token \d+, '.+', and the model embeds 1000 tokens\n    copy"
    with pytest.raises(BadInput, match=told):
        verify(quantize(make_plan("fp8", model)))
    lm = TransformersLM(model, "cpu")
    sentence = lm.tok_encode("Rivers carry the water back to the sea.")
    with pytest.raises(BadInput, match=told):
        lm.score_answers([(None, sentence[:3], sentence[3:])])
    with pytest.raises(BadInput, match=told):
        list(lm.write([sentence], Ends(4, (), None)))


def test_prompts_are_padded_with_a_token_that_the_model_knows(tiny_copy: Path) -> None:
    prompts = [[100, 101, 102], [103]]
    before = list(TransformersLM(tiny_copy, "cpu").write(prompts, Ends(6, (), None)))
    after = list(TransformersLM(with_token(tiny_copy, eos_token="<|end|>"), "cpu").write(prompts, Ends(6, (), None)))
    assert before == after


@pytest.mark.parametrize("count", [3, 20, 30])
def test_verification_reads_and_writes_within_the_positions(tiny_copy: Path, count: int) -> None:
    edit_json(tiny_copy / "config.json", max_position_embeddings=count)
    done = verify(quantize(make_plan("fp8", tiny_copy)))
    assert done.distance.tokens <= 8 * count / 2
    assert len(done.continuation) > 0
