"""For any logits whatever, a guarded output, decoded and read by an independent expression, is as its policy asks."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache

import pytest
from bans import draw_bans
from promise import Bench, Harmony, Job, Output, Reading, Script, Taste, Writer, draw_policy

from thinkguard import ThinkFormat, ThinkPolicy, ThinkProgram
from thinkguard.errors import FormatError

TOKENS = {"hostile": 10_800, "banned": 2_700, "spelled": 3_000, "characters": 2_500}  # generated for each case, at least
THINK = Reading()
TIGHT = Reading(implicit=("<function_calls>",), space=b"")
R1 = Reading(implicit=("<｜tool▁calls▁begin｜>",))
CALLS = ("<|tool_call|>", "<tool_call>")
WORDS = Reading(
    ("Here is my thought process:", "Here's my thought process:"), ("Here is my response:", "Here's my response:"),
    implicit=CALLS, off=r"Here is my thought process:\s*Here is my response:",
)  # fmt: skip
KIMI = Reading(("◁think▷",), ("◁/think▷",), off="◁think▷◁/think▷", space=b"")
MISTRAL = Reading(("[THINK]",), ("[/THINK]",), implicit=("[TOOL_CALLS]",), off=r"\[THINK\]\[/THINK\]", space=b"")
HARMONY = Harmony(("<|channel|>analysis<|message|>",), ("<|end|>",), off="", space=b"")


@dataclass(frozen=True)
class Case:
    tokenizer: str
    format: str | ThinkFormat | None
    reading: Reading


V3 = Reading(implicit=("<｜tool▁calls▁begin｜>", "<｜DSML｜function_calls>"), off="</think>", space=b"")
RESPONSE = Reading(openers=("<response>",), implicit=CALLS, off=r"<think></think>\s*<response>", space=b"")
# Openers that begin as the start does, and as the end does
ALIKE = ThinkFormat(
    name="alike", starts=("<think>",), ends=("</think>",), open_text="<think>\n", close_text="\n</think>\n\n",
    implicit_ends=("<think_tool>", "</thought>"),
)  # fmt: skip

CASES = {
    "qwen3": Case("qwen3", None, Reading(implicit=("<tool_call>",))),
    "r1-distill-qwen": Case("r1-distill-qwen", None, R1),
    "deepseek-v3-r1": Case("deepseek-v3-r1", None, R1),
    "deepseek-v3-hybrid": Case("deepseek-v3-r1", "deepseek_v3_hybrid", V3),
    "magistral-2507": Case("magistral-2507", None, MISTRAL),
    "gpt-oss": Case("gpt-oss", None, HARMONY),
    "qwen2.5-instruct": Case("qwen2.5-instruct", "think", Reading(implicit=("<tool_call>",))),
    "alike": Case("qwen2.5-instruct", ALIKE, Reading(implicit=ALIKE.implicit_ends)),
    "phi-4": Case("phi-4", "think", THINK),
    "olmo3-think": Case("olmo3-think", None, TIGHT),
    "mistral-v1-spm": Case("mistral-v1-spm", "think", THINK),
    "magistral-text": Case("magistral-2507", "magistral_2506_text", Reading(implicit=("[TOOL_CALLS]",))),
    "granite-words": Case("phi-4", "granite_3_2_text", WORDS),
    "granite-response": Case("olmo3-think", "granite_3_3", RESPONSE),
    "kimi-text": Case("phi-4", "kimi_vl_dev", KIMI),
}  # fmt: skip


@cache
def bench_of(name, directory):
    case = CASES[name]
    return Bench(name, directory, case.format, case.reading)


@pytest.fixture(params=CASES)
def bench(request, tokenizer_dirs):
    return bench_of(request.param, tokenizer_dirs[CASES[request.param].tokenizer])


def verify(bench: Bench, outputs: list[Output], what: str) -> None:
    failures = [(output, wrong) for output in outputs if (wrong := bench.check(output))]
    for output, wrong in failures[:4]:
        print(f"\n{bench.name}, {what}: {wrong}\n  {output.job.policy}, max_tokens={output.job.max_tokens}")
        print(f"  finished={output.finished}, {len(output.ids)} tokens: {bench.decode(output.ids)!r}\n  {output.ids}")
        print("  forced", [i for i, forced in enumerate(output.forced) if forced])
    assert not failures, (
        f"{bench.name}, {what}: {len(failures)} of {len(outputs)} outputs break the promise: {failures[0][1]}"
    )


def limit(rng):
    return rng.choice([None, None, rng.randrange(8, 40), rng.randrange(30, 90)])


def test_the_cases_are_enough():
    assert sum(TOKENS.values()) * len(CASES) >= 200_000
    assert len({case.tokenizer for case in CASES.values()}) == 9


def test_hostile_logits(bench):
    rng = random.Random(f"logits {bench.name}")
    before = bench.num_sampled
    while bench.num_sampled - before < TOKENS["hostile"]:
        jobs = [
            Job(draw_policy(rng), Taste(name, rng.choice([1, 1, 0.7])), limit(rng), rng.randrange(20, 90))
            for name in rng.choices(list(Taste.MIXES), k=60)
        ]
        verify(bench, bench.generate(jobs, rng), "hostile logits")
    print(f"{bench.name}: {bench.num_sampled - before} tokens of hostile logits")


def test_another_processor_bans_what_is_forced(bench, own_template):
    """What `bad_words`, `allowed_token_ids` and `no_repeat_ngram_size` do; bans.py says what an output promises then."""
    rng = random.Random(f"bans {bench.name}")
    before, seen = bench.num_sampled, Counter()
    opened = bench.reading.starts[0].encode() if own_template else b""
    prompts = [tuple(prompt_ids(bench, f"{typed}\n" * 2)) for typed in TYPED]  # pairs of tokens that are due
    while bench.num_sampled - before < TOKENS["banned"]:
        jobs = []
        for name in rng.sample([*Taste.MIXES] * 3, 3 * len(Taste.MIXES)):
            prompt, given = (), {}
            if rng.random() < 0.2:
                prompt, given = rng.choice(prompts), {"opening": rng.choice(["force", "allow"])}
            taste, policy, start = Taste(name, rng.choice([1, 1, 0.7])), draw_policy(rng, **given), opened if prompt else b""
            jobs.append(Job(policy, taste, limit(rng), rng.randrange(20, 90), prompt, start, draw_bans(rng)))
        outputs = bench.generate(jobs, rng)
        verify(bench, outputs, "other processors' bans")
        for output in outputs:
            job, denied = output.job, output.denied
            seen.update(name for name, count in asdict(denied).items() if count)
            if not denied and job.policy.markers_in_answer == "ban":
                trace = bench.program.explain(job.prompt, output.ids, job.policy, max_tokens=job.max_tokens)
                assert (trace.skipped, trace.violations) == ((), ()), trace
                seen["none"] += 1
    print(f"{bench.name}: {bench.num_sampled - before} tokens under other processors' bans, {dict(seen)}")
    assert min(seen[name] for name in ("none", "opening", "close")) > 0
    assert seen["stopped"] < seen.total() / 10


def spelled_markers(bench):
    marks = [*bench.reading.ends, *bench.reading.starts, *bench.reading.openers, *bench.reading.implicit]
    if isinstance(bench.reading, Harmony):
        marks = [
            "<|end|>",
            "<|start|>assistant<|channel|>final<|message|>",
            "<|channel|>analysis<|message|>",
            "<|call|>",
        ]
    return [before + mark + after for mark in marks for before, after in ((".", "\n\n"), ("x=4.\n", ""), ("", "\nSo"))]


def test_markers_spelled_in_every_split(bench):
    rng = random.Random(f"splits {bench.name}")
    before = bench.num_sampled
    texts = spelled_markers(bench)
    share = max(8, 240 // len(texts))
    specials = [t for t in bench.pools["special"].tolist() if t not in bench.eos]
    jobs = []
    for text in texts:
        for tokens in bench.splits(text.encode(), rng, share):
            where = rng.choice(["thinking", "thinking", "answer"])
            cap = rng.choice([None, rng.randrange(0, len(tokens) + 4)])
            policy = draw_policy(rng, opening=rng.choice(["force", "allow"]), max_thinking_tokens=cap, loop_tokens=0)
            if rng.random() < 0.3:
                at = rng.randrange(len(tokens) + 1)
                tokens = tokens[:at] + [rng.choice(specials)] + tokens[at:]
            if rng.random() < 0.2:
                tokens = tokens * 2
            then = Taste(rng.choice(["random", "eos", "near"]))
            script = Script(tokens, rng.randrange(3), where, rng.choice(["skip", "give up"]), then)
            jobs.append(Job(policy, script, limit(rng), rng.randrange(20, 60)))
    rng.shuffle(jobs)
    verify(bench, bench.generate(jobs, rng), "spelled markers")
    print(f"{bench.name}: {bench.num_sampled - before} tokens of {len(jobs)} spelled markers")
    assert bench.num_sampled - before >= TOKENS["spelled"]


def test_no_character_is_cut(bench):
    rng = random.Random(f"characters {bench.name}")
    before = bench.num_sampled
    letters = "😀🧠👩🏽‍🚀漢字思考。ひらがなकखगعربית한글𝕏𠮷é…ẞ🏴"
    jobs = []
    for _ in range(150):
        text = "".join(rng.choice([rng.choice(letters), rng.choice(letters), " ok", "."]) for _ in range(80))
        cap = rng.choice([None, rng.randrange(0, 14)])
        answer = rng.choice([None, rng.randrange(1, 12)])
        policy = ThinkPolicy(
            max_thinking_tokens=cap, max_answer_tokens=answer, opening=rng.choice(["force", "forbid"]),
            close_message=rng.choice(["", " Stop."]), grace_tokens=min(cap or 0, rng.choice([0, 4])),
        )  # fmt: skip
        jobs.append(Job(policy, Writer(text), rng.choice([None, rng.randrange(20, 50)]), 60))
    outputs = bench.generate(jobs, rng)
    verify(bench, outputs, "whole characters")
    for output in outputs:
        text = bench.decode(output.ids)
        known = output.finished or output.job.max_tokens is not None
        assert "\ufffd" not in (text if known else text.rstrip("\ufffd")), (
            f"{bench.name}: a character was cut: {text!r} under {output.job.policy}, max_tokens={output.job.max_tokens}"
        )
    print(f"{bench.name}: {bench.num_sampled - before} tokens of {len(jobs)} texts in wide characters")
    assert bench.num_sampled - before >= TOKENS["characters"]


def test_eos_always_best_ends_soon(bench):
    """An EOS that is moved to the end of the thinking has to arrive there, token by token."""
    rng = random.Random(f"eos {bench.name}")
    openings = ("force", "allow", "forbid")
    if isinstance(bench.reading, Harmony):
        openings = ("forbid",)  # elsewhere other logits choose the channel, and a preamble has no EOS
    jobs = [Job(ThinkPolicy(opening=opening), Taste("eos"), None, 40) for opening in openings]
    if not isinstance(bench.reading, Harmony):
        jobs += [Job(ThinkPolicy(min_thinking_tokens=5, max_think_blocks=2), Taste("eos"), None, 40)]
    jobs += [Job(ThinkPolicy(min_answer_tokens=6), Taste("white"), 60)]
    outputs = bench.generate(jobs, rng)
    verify(bench, outputs, "EOS is always best")
    assert all(output.finished for output in outputs if output.job.taste.name == "eos")


# --- the prompt's side ---

BEFORE, THINKING, HEADING, ANSWERING = 0, 1, 3, 4
TYPED = (
    "<think>", "</think>", "a <think> b </think> c", "</think> <think>", "<think>\n\n</think>\n\n", "ends in <th",
    "<response>", "[THINK]x", "[/THINK]", "<|channel|>final", "<|channel|>analysis<|message|>", "◁think▷",
    "Here is my response:",
)  # fmt: skip


def prompt_ids(bench, user, *, tail="", **options):
    chat = [{"role": "user", "content": user}]
    text = bench.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **options)
    return bench.tokenizer(text + tail, add_special_tokens=False)["input_ids"]


def tails(bench):
    """(text that the assistant's turn begins with, phase that a row has to start in)."""
    reading = bench.reading
    if isinstance(reading, Harmony):
        start, end, final = bench.reading.markers
        return [
            ("", BEFORE), (start, THINKING), (start + "Let me", THINKING), (start + "So" + end, HEADING),
            (f"{start}So{end}<|start|>assistant{final}", ANSWERING), (f"{final}It is", ANSWERING),
        ]  # fmt: skip
    start, end = reading.starts[0], reading.ends[0]
    found = [
        ("", BEFORE), (start, THINKING), (f"{start}\n", THINKING), (f"{start}\n\n", THINKING),
        (f"{start}\nLet me", THINKING), (f"{start}\n{reading.ends[-1][:-2]}", THINKING),
        (f"{start}\n\n{end}\n\n", ANSWERING), (f"{start}a{end}", ANSWERING),
        (f"{start}\nSo.\n{end}\n\nIt is", ANSWERING), ("The answer is", ANSWERING),
    ]  # fmt: skip
    if start not in bench.added:
        found += [(start[:3], BEFORE), (start[:-1], BEFORE)]
    return found


@pytest.fixture
def own_template(bench):
    """The default generation prompt's phase; a tokenizer whose template writes other markers has BEFORE."""
    opened = bench.tokenizer.apply_chat_template(
        [{"role": "user", "content": "q"}], tokenize=False, add_generation_prompt=True
    )
    return opened.rstrip().endswith(tuple(bench.reading.starts))


def test_what_a_user_types_changes_nothing(bench, own_template):
    policy = ThinkPolicy(max_thinking_tokens=7)
    for tail, phase in tails(bench):
        if own_template and tail:
            continue  # the template has opened already
        plain = bench.program.start(prompt_ids(bench, "hello", tail=tail), policy)
        assert plain.phase == (THINKING if own_template else phase), tail
        for typed in TYPED:
            for user in (typed, f"hello\n{typed}\n")[: 1 if tail else 2]:
                row = bench.program.start(prompt_ids(bench, user, tail=tail), policy)
                assert row.as_dict() == plain.as_dict(), f"{user!r} before {tail!r} is read as the assistant's"


def test_earlier_turns_change_nothing(bench):
    start, end = bench.reading.starts[0], bench.reading.ends[0]
    plain = bench.program.start(prompt_ids(bench, "hello"))
    for said in ("fine", f"{start}\nhm\n{end}\n\nfine", f"{start} never closed", f"{end} fine"):
        if isinstance(bench.reading, Harmony):
            said = "fine"
        chat = [
            {"role": "user", "content": start},
            {"role": "assistant", "content": said},
            {"role": "user", "content": end},
        ]
        text = bench.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = bench.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert bench.program.start(ids).as_dict() == plain.as_dict(), said


def test_outputs_behind_prompts(bench, own_template):
    """The assistant's part of the prompt and the output are one text with one structure."""
    rng = random.Random(f"prompts {bench.name}")
    jobs = []
    for tail, phase in tails(bench):
        if own_template and tail:
            continue
        ids = tuple(prompt_ids(bench, rng.choice(TYPED), tail=tail))
        opened = bench.reading.starts[0] if own_template else ""
        for _ in range(12):
            policy = draw_policy(
                rng, opening="allow" if phase == ANSWERING else "force", markers_in_answer="ban", max_answer_tokens=None
            )
            taste, most = Taste(rng.choice(list(Taste.MIXES))), rng.choice([None, rng.randrange(30, 70)])
            jobs.append(Job(policy, taste, most, 50, ids, (opened + tail).encode()))
    before = bench.num_sampled
    verify(bench, bench.generate(jobs, rng), "behind a prompt")
    print(f"{bench.name}: {bench.num_sampled - before} tokens behind prompts")


def test_turn_start_and_raw_completions(bench):
    program, tokenizer = bench.program, bench.tokenizer
    start, end = bench.reading.starts[0], bench.reading.ends[0]

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    user = encode(f"no chat {start} at all {end} ")
    for tail, phase in tails(bench):
        row = program.start(user + encode(tail), turn_start=len(user))
        assert row.phase == phase, tail
    assert program.start(encode(f"Tell me about {start} and more")).phase == BEFORE
    assert program.start(encode(f"Tell me about {start} and {end} and more")).phase == BEFORE
    assert program.start(encode("Once upon a time")).phase == BEFORE
    assert program.start([]).phase == BEFORE
    if not isinstance(bench.reading, Harmony):
        assert program.start(encode(f"What is 1+1? {start}\n")).phase == THINKING
        assert program.start(encode(f"What is 1+1? {start}so{end}\n\n")).phase == ANSWERING


def test_switches_of_the_templates(tokenizer_dirs):
    bench = bench_of("qwen3", tokenizer_dirs["qwen3"])
    for typed in TYPED:
        assert bench.program.start(prompt_ids(bench, typed, enable_thinking=False)).phase == ANSWERING
        assert bench.program.start(prompt_ids(bench, typed, enable_thinking=True)).phase == BEFORE


def test_markers_that_need_byte_tokens_are_refused(tokenizer_dirs):
    """An invalid byte turns a whole run of SentencePiece's byte tokens into U+FFFD, a marker among them too."""
    bench = bench_of("mistral-v1-spm", tokenizer_dirs["mistral-v1-spm"])
    with pytest.raises(FormatError, match="single bytes"):
        ThinkProgram("kimi_vl_dev", bench.tokenizer)


def test_a_limit_that_cannot_hold_the_whole_is_refused(bench):
    """With a limit that is known an output is whole but for its EOS, or it is not begun."""
    rng = random.Random(f"limits {bench.name}")
    jobs = [
        Job(ThinkPolicy(opening=opening, min_answer_tokens=2), Taste(rng.choice(list(Taste.MIXES))), most)
        for opening in ("force", "allow", "forbid")
        for most in range(1, 40)
    ]
    outputs = bench.generate(jobs, rng)
    verify(bench, outputs, "tiny limits")
    assert len(outputs) < len(jobs)


def test_an_answer_never_ends_like_a_tool_call(tokenizer_dirs):
    bench = bench_of("gpt-oss", tokenizer_dirs["gpt-oss"])
    call, final = bench.added["<|call|>"], bench.added["<|return|>"]
    row = bench.program.start((), ThinkPolicy(opening="forbid", max_answer_tokens=1), eos_token_ids=(call, final))
    while row.decide().kind == 1:
        bench.program.advance(row, row.decide().token)
    bench.program.advance(row, bench.ordinary[b"a"][0])
    assert row.decide().token == final
