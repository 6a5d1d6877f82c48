"""Programs, prompts and traces on the nine real tokenizers and on small vocabularies."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from itertools import pairwise

import cases
import numpy as np
import pytest

from thinkguard import FormatError, InputError, PolicyError, ThinkFormat, ThinkPolicy, ThinkProgram, Vocabulary, cli
from thinkguard.core._core import Tables
from thinkguard.core.names import Kind

BYTES = [bytes([b]) for b in range(256)]
NAMED = {
    "qwen3": None, "r1-distill-qwen": None, "deepseek-v3-r1": None, "magistral-2507": None, "gpt-oss": None,
    "qwen2.5-instruct": "think", "phi-4": "think", "olmo3-think": None, "mistral-v1-spm": "think",
}  # fmt: skip


@pytest.fixture(scope="module")
def programs(tokenizer_dirs):
    return {name: ThinkProgram(format, tokenizer_dirs[name]) for name, format in NAMED.items()}


def small(added=(), pieces=()):
    names = ["<eos>", "<bos>", "<turn>", *added]
    ids = {name: 256 + len(pieces) + i for i, name in enumerate(names)}
    return Vocabulary.from_parts(
        [*BYTES, *pieces], added=ids, special=[ids["<eos>"], ids["<bos>"]], eos_ids=[ids["<eos>"]], bos_ids=[ids["<bos>"]]
    )


@pytest.mark.parametrize("name", NAMED)
def test_a_program_is_small_and_pickles(programs, name):
    program = programs[name]
    assert program.nbytes < 4e6
    again = pickle.loads(pickle.dumps(program))
    prompt = program.vocabulary.encode("x")
    assert again.start(prompt).as_dict() == program.start(prompt).as_dict()


@pytest.mark.parametrize("name", NAMED)
def test_what_is_forced_is_spelled_by_the_tokenizer(programs, name):
    program = programs[name]
    bound = program.bind(ThinkPolicy(close_message="Time is up."))
    spelled = [b"".join(map(program.vocabulary.token_bytes, bound.sequence(seq))).decode() for seq in (1, 2)]
    assert spelled == [program.format.open_text, "Time is up." + program.format.close_text]


def test_the_first_step_forces_the_start_and_a_prompt_that_opened_it_does_not(programs):
    program = programs["qwen3"]
    encode = program.vocabulary.encode
    head = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert program.start(encode(head)).decide().token == program.vocabulary.added["<think>"]
    assert program.start(encode(head + "<think>\n")).phase == 1
    assert program.start(encode(head + "<think>\n\n</think>\n\n")).phase == 4
    assert program.start(encode(head + "Sure, ")).phase == 4, "a prefilled answer"


def header_tokens(program, turn):
    """How many tokens at the start of a turn spell the header's own text, white space behind each left out."""
    rest, count = program.format.header_text.encode(), 0
    while rest and count < len(turn):
        piece = program.vocabulary.token_bytes(int(turn[count]))
        piece = (piece.lstrip(b" ") if count == 0 else piece).rstrip(b" \n\r\t")
        if not rest.startswith(piece):
            return 0
        rest, count = rest[len(piece) :], count + 1
    return 0 if rest else count


@pytest.mark.parametrize("name", NAMED)
def test_a_prompt_is_read_from_its_end_as_it_is_read_whole(programs, name):
    """Turns of all lengths around the windows that are looked at, of every role, in every order."""
    program, rng = programs[name], random.Random(name)
    encode, tokenizer = program.vocabulary.encode, program.format
    heads = [*(tokenizer.boundaries or ()), *tokenizer.assistant_headers, *tokenizer.turn_ends, "assistant", "user"]
    heads += [text for text in program.vocabulary.added if "start" in text or "Assistant" in text or "INST" in text]
    words = encode(" so then one more word of it\n")
    empty = dict.fromkeys(("name_offset", "name_token", "name_next"), np.empty(0, np.int32))
    unnamed = Tables(program.tables.arrays | empty, program.tables.scalars, program.tables.turns)
    for _ in range(60):
        ids = []
        for _ in range(rng.randrange(1, 7)):
            ids += encode("".join(rng.choices(heads, k=rng.randrange(3))))
            ids += rng.choices(words, k=rng.choice([0, 1, 9, 250, 256, 263, 1100]))
        begin, raw = program.turn(ids)
        whole, is_raw = unnamed.turn_start(np.array(ids, np.int32))
        header = 0 if is_raw else header_tokens(program, ids[whole:])
        assert (begin, raw) == (whole + header, is_raw)
        assert program.turn(np.array(ids)) == program.turn(tuple(ids)) == (begin, raw)


def test_what_stands_before_the_turn_costs_nothing(programs):
    """Ids that are no numbers stand for ones that nobody looks at."""
    program = programs["qwen3"]
    turn = program.vocabulary.encode("<|im_start|>assistant\n<think>\nSo")
    state = program.start([None] * 100_000 + [1] * 300 + turn)
    assert state.as_dict() == program.start(turn).as_dict()
    with pytest.raises(InputError, match="prompt_ids"):
        program.start([1] * 10 + turn[:3] + [-100] + turn[3:])
    for wrong in (7, {1, 2}, iter(turn), None):
        with pytest.raises((InputError, TypeError)):
            program.start(wrong)


def test_the_other_form_of_off_is_a_lone_end(tokenizer_dirs):
    program = ThinkProgram("glm4_7", tokenizer_dirs["deepseek-v3-r1"])
    row = program.start(program.vocabulary.encode("<｜User｜>hi<｜Assistant｜></think>"))
    assert (row.phase, row.closed_by) == (4, 6)


def test_max_tokens_that_cannot_hold_the_answer_is_refused(programs):
    program = programs["qwen3"]
    with pytest.raises(InputError, match="max_tokens=5 is too small: opening, closing and an answer of 1 take 7"):
        program.start(program.vocabulary.encode("<|im_start|>assistant\n"), max_tokens=5)


def test_max_tokens_holds_the_white_space_that_a_prompt_leaves_out(programs):
    """Behind a start without its newline the newline is forced, and EOS has to fit all the same."""
    program = programs["qwen3"]
    prompt = program.vocabulary.encode("<|im_start|>assistant\n<think>")
    with pytest.raises(InputError, match="max_tokens=5 is too small: opening, closing and an answer of 1 take 6"):
        program.start(prompt, max_tokens=5)
    assert program.start([*prompt, *program.vocabulary.encode("\n")], max_tokens=5).phase == 2  # closing


def test_an_end_marker_that_is_also_eos_is_refused(programs):
    program = programs["qwen3"]
    with pytest.raises(FormatError, match=r"'</think>' is token 151668, which is also in the EOS set.*eos_token_id="):
        program.bind(ThinkPolicy(), [151645, 151668])


def test_messages_that_could_write_a_marker_are_refused(programs):
    program = programs["qwen2.5-instruct"]
    for message in ("done</think>", "k>", "<|im_end|>"):
        with pytest.raises(PolicyError, match="close_message="):
            program.bind(ThinkPolicy(close_message=message))
    program.bind(ThinkPolicy(close_message="Time is up."))


def test_ids_that_are_no_ids_are_refused():
    program = ThinkProgram("think", small())
    with pytest.raises(InputError, match="prompt_ids holds -100"):
        program.start([1, -100])
    with pytest.raises(InputError, match="wanted one row of whole numbers"):
        program.start(np.zeros((2, 2), np.int64))
    with pytest.raises(InputError, match="turn_start=9"):
        program.start([1, 2], turn_start=9)
    with pytest.raises(PolicyError, match="no EOS is known"):
        program.start([1], ThinkPolicy(max_answer_tokens=3), eos_token_ids=[])


def test_a_format_whose_control_token_is_missing_is_refused():
    with pytest.raises(FormatError, match=r"needs '\[THINK\]' to be one added token"):
        ThinkProgram("mistral_think_tokens", small())


def test_a_vocabulary_that_could_not_finish_a_character_is_refused():
    with pytest.raises(FormatError, match="none for the continuation byte 0x80"):
        ThinkProgram("think", Vocabulary.from_parts([b"\xe2", *BYTES[:128]]))


def test_explain_splits_reasoning_and_answer():
    program = ThinkProgram("think", small())
    encode = program.vocabulary.encode
    trace = program.explain(encode("<turn>"), encode("<think>\nab\n</think>\n\nyes<eos>"))
    assert (trace.reasoning, trace.answer, trace.closed_by) == ("ab", "yes", "model")
    assert trace.thinking_tokens == len("ab\n</think")
    assert trace.well_formed
    assert trace.finished
    assert trace.forced == tuple(range(8)), "the start and its newline"


def test_explain_names_what_was_illegal():
    program = ThinkProgram("think", small(["<think>", "</think>"]))
    encode = program.vocabulary.encode

    def whats(text):
        return [violation.what for violation in program.explain(encode("<turn>"), encode(text)).violations]

    assert whats("<think>\na<eos>") == ["EOS before the thinking was closed"]
    assert whats("<think>\na\n</think>\n\n<eos>") == ["EOS before an answer"]
    assert whats("<think>\na<think>b</think>c<eos>") == ["start marker out of place, while thinking"]
    assert whats("<think>\na</think>b</think>c<eos>") == ["end marker out of place, while answering"]
    assert "was due, but" in whats("abc<eos>")[0]


def test_a_quoted_marker_misleads_a_reader_and_the_trace_says_which():
    program = ThinkProgram("think", small())
    encode = program.vocabulary.encode
    policy = ThinkPolicy(markers_in_answer="allow")
    trace = program.explain(encode("<turn>"), encode("<think>\na</think>b </think> c<eos>"), policy)
    assert trace.answer == "b </think> c"
    assert trace.violations[0].what == "end marker quoted in the answer: a reader by text or tokens is misled"


def test_cli_explain(tmp_path, capsys, tokenizer_dirs):
    good = {"prompt": "<|im_start|>assistant\n", "output": "<think>\nab\n</think>\n\nyes<|im_end|>"}
    bad = {"prompt": "<|im_start|>assistant\n", "text": "<think>\nab<|im_end|>"}
    file = tmp_path / "outputs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in (good, bad)), encoding="utf-8")
    arguments = ["explain", "--tokenizer", str(tokenizer_dirs["qwen3"]), "--output", str(file)]
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert "1: well-formed; 1 think block(s), 2 thinking tokens, closed by model" in out
    assert "EOS before the thinking was closed" in out
    assert "1 of 2 outputs are well-formed" in err
    assert cli.main([*arguments, "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["well_formed"] for line in lines] == [True, False]
    file.write_text(json.dumps(good), encoding="utf-8")
    assert cli.main(arguments) == 0


def test_cli_errors_are_one_line_on_stderr(tmp_path, capsys, tokenizer_dirs):
    file = tmp_path / "outputs.jsonl"
    file.write_text('{"message": "x"}\n', encoding="utf-8")
    arguments = ["explain", "--tokenizer", str(tokenizer_dirs["qwen3"]), "--output", str(file)]
    assert cli.main(arguments) == 2
    assert "line 1: has the fields message, wanted one of" in capsys.readouterr().err
    file.write_text("nonsense\n", encoding="utf-8")
    assert cli.main(arguments) == 2
    assert "line 1: not JSON" in capsys.readouterr().err
    assert cli.main([*arguments, "--policy", '{"max_thinking": 3}']) == 2
    assert "did you mean 'max_thinking_tokens'" in capsys.readouterr().err
    assert cli.main(["explain", "--tokenizer", str(tmp_path / "none"), "--output", str(file)]) == 2
    assert cli.main(["formats", "qwenn3"]) == 2
    assert "'qwen3'" in capsys.readouterr().err


def test_cli_explain_judges_other_engines_by_structure_and_guarded_outputs_by_their_policy(
    tmp_path, capsys, tokenizer_dirs
):
    loose, silent = "<think>ab</think>yes<|im_end|>", "yes<|im_end|>"
    file = tmp_path / "outputs.jsonl"
    arguments = ["explain", "--tokenizer", str(tokenizer_dirs["qwen3"]), "--output", str(file)]
    file.write_text(json.dumps({"prompt": "<|im_start|>assistant\n", "output": loose}) + "\n", encoding="utf-8")
    assert cli.main(arguments) == 0, "the model's own white space is its own"
    assert cli.main([*arguments, "--policy", "{}"]) == 0
    assert "1 skipped" in capsys.readouterr().out, "the guard would have forced its own"
    assert cli.main([*arguments, "--policy", '{"min_answer_tokens": 3}']) == 1
    assert "EOS before an answer" in capsys.readouterr().out
    file.write_text(json.dumps({"prompt": "<|im_start|>assistant\n", "output": silent}) + "\n", encoding="utf-8")
    assert cli.main(arguments) == 1
    assert "the thinking was never opened" in capsys.readouterr().out
    guarded = {"prompt": "<|im_start|>assistant\n", "output": "<think>\na b c\n</think>\n\nyes<|im_end|>"}
    file.write_text(json.dumps(guarded) + "\n", encoding="utf-8")
    policy = ["--policy", '{"reserve_answer_tokens": 4}', "--max-tokens", "13"]
    assert cli.main([*arguments, *policy]) == 0
    assert "closed by budget" in capsys.readouterr().out


def test_cli_formats(capsys):
    assert cli.main(["formats"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*ThinkFormat.names(), *ThinkFormat.refused()))
    assert cli.main(["formats", "qwen3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["open_text"] == "<think>\n"


def test_explain_takes_any_number_for_an_id_and_nothing_else():
    program = ThinkProgram("think", small())
    ids = program.vocabulary.encode("<think>\na</think>b")
    for wrong in (-1, 2**31, 2**70):
        trace = program.explain([], [*ids, wrong, 99])
        assert [v.what for v in trace.violations] == [f"{wrong} is no token id: nothing is enforced from here on"]
        assert (trace.reasoning, trace.answer) == ("a", "b")
    for wrong in (1.5, None, "1", [1]):
        with pytest.raises(InputError, match=r"output_ids holds .* wanted one row of whole numbers"):
            program.explain([], [wrong])


@pytest.mark.parametrize("added", [(), ("<think>", "</think>")], ids=["text", "tokens"])
def test_a_lone_end_is_no_part_of_the_answer(added):
    program = ThinkProgram("think", small(added))
    trace = program.explain([], program.vocabulary.encode(" </think> yes<eos>"), ThinkPolicy(opening="allow"))
    assert trace.answer == "yes"
    assert "end marker out of place" in trace.violations[0].what


def explained(tokenizer_dirs, tmp_path, content, *arguments):
    file = tmp_path / "outputs.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return cli.main(["explain", "--tokenizer", str(tokenizer_dirs["qwen3"]), "--output", str(file), *arguments])


def test_cli_explain_with_thinking_that_the_prompt_opened(tokenizer_dirs, tmp_path, capsys):
    record = {"output": "a\n</think>\n\nyes"}
    assert explained(tokenizer_dirs, tmp_path, record) == 1
    assert "1 end a thinking that nothing opened; if the prompt did: --prompt $'<think>\\n'" in capsys.readouterr().err
    assert explained(tokenizer_dirs, tmp_path, record, "--prompt", "<think>\n") == 0
    assert "answer 'yes'" in capsys.readouterr().out


def test_cli_explain_names_the_line_of_what_it_cannot_read(tokenizer_dirs, tmp_path, capsys):
    chat = [{"role": "user", "content": "x"}]
    for content, message in {
        b'{"output": "\xff"}': "'utf-8' codec can't decode byte 0xff",
        b'{"output_ids": 5}': "line 1: output_ids is of type int: wanted a list of token ids",
        b'{"output_ids": "12"}': "line 1: output_ids is of type str: wanted a list of token ids",
        b'{"output_ids": [1, null]}': "line 1: output_ids holds None",
        json.dumps({"prompt": chat, "output": "x"}).encode(): "line 1: prompt is of type list: wanted text",
    }.items():
        assert explained(tokenizer_dirs, tmp_path, content) == 2
        assert message in capsys.readouterr().err
    assert explained(tokenizer_dirs, tmp_path, b"", "--policy", "{x") == 2
    assert "--policy {x: not JSON" in capsys.readouterr().err
    good = b'\xef\xbb\xbf{"output": "<think>\\na\\ud83d</think>b"}'
    assert explained(tokenizer_dirs, tmp_path, good) == 0, "a byte order mark, half a surrogate pair"


def test_cli_is_silent_when_its_reader_leaves(tokenizer_dirs, tmp_path):
    file = tmp_path / "outputs.jsonl"
    file.write_text('{"output": "<think>\\na</think>b"}\n' * 2000)
    arguments = ["explain", "--tokenizer", str(tokenizer_dirs["qwen3"]), "--output", str(file)]
    command = [sys.executable, "-m", "thinkguard", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


def test_marks_that_are_skipped_speak_of_half_written_markers_alone():
    halves = int(Kind.EXTENDS | Kind.GROWS_END | Kind.BEGINS_END | Kind.HALF_START | Kind.HALF_END)
    skipped = 0
    for seed in range(60):
        program, _, _ = cases.case(random.Random(seed))
        arrays = program.tables.arrays
        places, masks = pairwise(arrays["mark_offset"].tolist()), arrays["mark_mask"].tolist()
        for (begin, end), num in zip(places, arrays["nodes"]["halves"].tolist(), strict=True):
            assert 0 <= num <= end - begin
            assert not any(mask & ~halves for mask in masks[begin : begin + num])
            assert begin + num == end or masks[begin + num] & ~halves, "as many as there are"
            skipped += num
    assert skipped > 300
