"""BOS and padding that also begin turns: a chat is a chat, a text stays a text, and what is taken for one is said once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the Hugging Face adapter needs torch")
transformers = pytest.importorskip("transformers", reason="tokenizers are loaded as people load them")

from bos_turns import CONVERSATIONS, KINDS, TEXTS, folder_of  # noqa: E402

from thinkguard import ThinkPolicy, ThinkProgram  # noqa: E402
from thinkguard.core.names import ActionKind, Phase  # noqa: E402
from thinkguard.hf import ThinkLogitsProcessor  # noqa: E402
from thinkguard.hf import scores as hf_scores  # noqa: E402


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = folder_of(request.param, tmp_path_factory.mktemp("bos"))
    return transformers.PreTrainedTokenizerFast.from_pretrained(path)


@pytest.fixture(scope="module")
def program(tokenizer: Any) -> ThinkProgram:
    return ThinkProgram("think", tokenizer)


def chat(tokenizer: Any, name: str, **more: Any) -> list[int]:
    text = tokenizer.apply_chat_template(CONVERSATIONS[name], tokenize=False, **{"add_generation_prompt": True, **more})
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_chat_is_a_chat(tokenizer: Any, program: ThinkProgram, name: str) -> None:
    ids = chat(tokenizer, name)
    begin, raw = program.turn(ids)
    assert not raw
    assert tokenizer.decode(ids[begin:]).strip() == ""
    assert program.start(ids).decide().kind == ActionKind.FORCE
    padded = [tokenizer.pad_token_id] * 7 + ids
    assert program.turn(padded) == (begin + 7, False)
    said = program.vocabulary.encode("Sure, it is")
    assert program.start([*ids, *said]).phase == Phase.ANSWERING, "an answer that was begun for the model"
    long = program.vocabulary.encode("Hm. " * 500)
    assert program.turn([*ids, *long]) == (begin, False), "the turn begins before the first window"


def test_a_text_stays_a_text(tokenizer: Any, program: ThinkProgram) -> None:
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    for text in TEXTS:
        ids = program.vocabulary.encode(text)
        for lead in ([], [pad] * 3):
            assert program.turn([*lead, *ids])[1], (text, lead)
    story = program.vocabulary.encode(TEXTS[0])
    assert program.turn([bos, *story])[1]
    assert program.turn([pad, pad, bos, *story])[1]
    alone = [program.turn([*lead, *story]) for lead in ([], [pad], [bos], [pad, bos])]
    assert {program.start([*lead, *story]).phase for lead in ([], [pad], [bos], [pad, bos])} == {Phase.BEFORE}
    assert [begin for begin, _ in alone] == [0, 1, 1, 2]


def make_model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, initializer_range=1.0,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config).eval()


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("attached", [True, False])
def test_generate_guards_chats_and_says_of_texts_once(
    tokenizer: Any, attached: bool, on_device: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a padded batch as well; on a GPU as in the host's memory."""
    monkeypatch.setattr(hf_scores, "_ON_CPU", on_device)
    model = make_model(tokenizer)
    guard = ThinkLogitsProcessor(tokenizer, format="think", max_thinking_tokens=4)

    def generate(rows: list[list[int]]) -> list[str]:
        width = max(map(len, rows))
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
        more = {} if attached else {"logits_processor": [guard]}
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = model.generate(ids, attention_mask=mask, max_new_tokens=40, do_sample=False, **more)
        return [tokenizer.decode(row[width:]) for row in out]

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "thinkguard"]

    def run(rows: list[list[int]]) -> list[str]:
        if not attached:
            return generate(rows)
        with guard.attach(model):
            return generate(rows)

    with caplog.at_level(logging.WARNING, "thinkguard"):
        for text in run([chat(tokenizer, name) for name in CONVERSATIONS]):
            assert text.startswith("<think>\n")
            assert text.count("</think>") == 1
        assert warnings() == []
        if on_device and not attached:
            return  # by itself it does not know where a call begins: only the first one's prompts are read
        story = tokenizer(TEXTS[0], add_special_tokens=False).input_ids
        for _ in range(2):
            (text,) = run([story])
            assert text.startswith("<think>\n"), "it was asked for, so a text is guarded too"
        (said,) = warnings()
    assert "format 'think'" in said
    assert "chat template" in said


def test_an_explained_chat_is_read_by_the_same_rule(tokenizer: Any, program: ThinkProgram) -> None:
    ids = chat(tokenizer, "a system message")
    output = program.vocabulary.encode("<think>\nSo.\n</think>\n\nIt is 42.") + [tokenizer.eos_token_id]
    trace = program.explain(ids, output, ThinkPolicy())
    assert (trace.reasoning, trace.answer, trace.well_formed) == ("So.", "It is 42.", True)


def test_folders_are_read_alike(tmp_path: Path) -> None:
    """By a folder's files, as vLLM's adapter and the command line read it, and by the tokenizer that they make."""
    for kind in KINDS:
        path = folder_of(kind, tmp_path / kind.replace(" ", "-"))
        loaded = transformers.PreTrainedTokenizerFast.from_pretrained(path)
        ids = chat(loaded, "one turn")
        assert ThinkProgram("think", path).turn(ids) == ThinkProgram("think", loaded).turn(ids)
