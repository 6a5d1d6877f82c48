"""Generated cases: tiny hostile vocabularies, formats, policies and token sequences, drawn from one `random.Random`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from model import Model

from thinkguard import ChannelGrammar, ThinkFormat, ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.core._core import ThinkState
from thinkguard.core.names import ClosedBy, Phase, StateFlag
from thinkguard.errors import FormatError, PolicyError, TokenizerError

CONTINUATION = [bytes([b]) for b in range(0x80, 0xC0)]
TEXT = [bytes([b]) for b in b" \n\t0179.!?,abhiknstxyz<>/|[]:=THE"]
WIDE = [
    "é".encode(),
    "。".encode(),
    "😀".encode(),
    "😀".encode()[:2],
    "。".encode()[:1],
    "é".encode()[:1],
    "😀".encode()[:3],
]

# Openers of tool calls that begin as a start or an end does, that are written around a control token, or with two of them
CALLS = [("</tool>",), ("<th>", "<tool>"), ("<|D|>call",), ("|D|[<tool>",), ("ax<tool>",), ("to=",)]

# Starts whose ends belong to them: one the beginning of another, of different brackets, in letters, around a control token
PAIRS = [
    (("<t>", "<t_f>", "<t_ff>"), ("</t>", "</t_f>", "</t_ff>")),
    (("[T]", "<hmm>", "|n|"), ("[/T]", "</hmm>", "|/n|")),
    (("ab", "xy"), ("ba", "yx")),
    (("<|c>thought", "<|c>tick"), ("<|c>done", "<|c>don't")),
    (("<|c>thought", "<hmm>", "[T]"), ("<c|>", "</hmm>", "<|c>T")),
]


def chunks(rng, text, num):
    """Random substrings of a text, its markers' neighbours included."""
    data = text.encode()
    pairs = (sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1))) for _ in range(num))
    return [data[a:b] for a, b in pairs if b > a]


def vocabulary(rng, markers, controls, *, spm=False):
    """Single bytes, pieces of the markers in every alignment, and tokens that hold one or two of them whole."""
    pieces = [*TEXT, *WIDE, *CONTINUATION, b"\n\n", b" \n", b"a\n", b"1.", b"a.", b"to", b"=", b"assistant", b"final"]
    for marker in markers:
        pieces += chunks(rng, "ab\n" + marker + "\n\nxy", 8)
        pieces += [bytes([b]) for b in marker.encode()]
        if rng.random() < 0.3:
            pieces += [marker.encode(), (marker + "\n").encode(), ("x" + marker + "y").encode()]
    if rng.random() < 0.3:
        first, second = rng.choice(markers), rng.choice(markers)
        pieces += [(first + second).encode(), (first[1:] + second[:-1]).encode(), (first[-2:] + second[:2]).encode()]
    pieces = list(dict.fromkeys(piece for piece in pieces if piece))
    byte_ids = []
    if spm:
        byte_ids = list(range(len(pieces), len(pieces) + 3))
        pieces += [b"<", b"\xff", b"a"]
    pieces += [b""]  # an unused id
    added = {"<eos>": len(pieces), "<bos>": len(pieces) + 1, "<pad>": len(pieces) + 2, "<user>": len(pieces) + 3}
    special = {"<eos>", "<bos>", "<pad>"} | ({"<user>"} if rng.random() < 0.5 else set())
    if rng.random() < 0.3:
        added["<half" + markers[0][:2]] = len(pieces) + len(added)
        special |= set(added) if rng.random() < 0.5 else set()
    if rng.random() < 0.5:  # begins a turn; some begin as a marker does
        begins = rng.choice(["<|im_start|>", "[TOOL_RESULTS]", "<tool_response>"])
        added[begins] = len(pieces) + len(added)
        special |= {begins} if rng.random() < 0.5 else set()
    for name in controls:
        added.setdefault(name, len(pieces) + len(added))
    special |= {name for name in controls if rng.random() < 0.5}
    return Vocabulary.from_parts(
        pieces, added=added, special=[added[name] for name in special], byte_ids=byte_ids,
        eos_ids=[added["<eos>"]], bos_ids=[added["<bos>"]], pad_ids=[added["<pad>"]],
    )  # fmt: skip


def format_and_controls(rng):
    """A format and the texts that its vocabulary has as added tokens."""
    kind = rng.choice(["text", "text", "token", "mixed", "mixed", "words", "pairs", "pairs", "harmony", "solar"])
    space = rng.choice(["", "\n", "\n", " \n", "\n\n"])
    after = rng.choice(["", "\n", "\n\n"])
    before = rng.choice(["", "\n"])
    extra = {
        "answer_starts": rng.choice([(), (), ("<ans>",)]),
        "implicit_ends": rng.choice([(), (), ("<tool>",), *CALLS]),
        "off_text": None,
        "header_text": rng.choice(["", "assistant"]),
    }
    inner = [name for name in ("<ans>", "<tool>", "|D|") if rng.random() < 0.5]
    if kind in ("text", "token"):
        start, end = rng.choice(
            [("<think>", "</think>"), ("[T", "[/T"), ("ab", "ba"), ("<t>", "</t>"), ("◁t▷", "◁/t▷")]
        )
        controls = [start, end] if kind == "token" else rng.choice([[], [], [start], [end]])
        close = before + end + after
        fmt = dict(starts=(start,), ends=(end,), open_text=start + space, close_text=close, **extra)
        if rng.random() < 0.2 and kind == "text":
            fmt |= {"starts": (start, "<hmm>"), "ends": (end, "</hmm>"), "paired": rng.random() < 0.5}
        return ThinkFormat(name="generated", **fmt), controls + inner
    if kind == "mixed":
        end = rng.choice(["<c|>", "<|c>done"])
        extra |= {"answer_parts": rng.choice([(), ("<|c>more",), ("<c|>x", "<|c>d|")])}
        fmt = ThinkFormat(
            name="generated", starts=("<|c>thought",), ends=(end,), open_text="<|c>thought" + space,
            close_text=before + end + after, controls=("<|c>",), **extra,
        )  # fmt: skip
        return fmt, ["<|c>", "<c|>", *inner]
    if kind == "pairs":
        known = rng.choice(PAIRS)
        some = rng.sample(range(len(known[0])), rng.choice([2, len(known[0])]))
        starts, ends = (tuple(texts[i] for i in some) for texts in known)
        names = [name for name in (*starts, *ends) if "c" not in name and rng.random() < rng.choice([0, 0.5, 1])]
        controls = [name for name in ("<|c>", "<c|>") if any(name in text for text in (*starts, *ends))]
        fmt = ThinkFormat(
            name="generated", starts=starts, ends=ends, paired=True, open_text=starts[0] + space,
            close_text=before + ends[0] + after, controls=tuple(controls[:1]),
            **extra | {"answer_parts": rng.choice([(), ("<|c>more",)])},
        )  # fmt: skip
        return fmt, [*names, *controls, *inner]
    if kind == "words":
        fmt = ThinkFormat(
            name="generated", starts=("Here I think:", "Here's think:"), ends=("Here I say:", "Here's say:"),
            open_text="Here I think:" + space, close_text=before + "Here I say:" + after, **extra,
        )  # fmt: skip
        return fmt, inner
    names = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"]
    if kind == "solar":
        fmt = ThinkFormat(
            name="solar", starts=("<|think|>",), ends=("<|end|>",), open_text="<|think|>", close_text="<|end|>",
            answer_starts=("<|content|>",), turn_ends=("<|flush|>", "<|calls|>"), boundaries=("<|begin|>",),
            assistant_headers=("<|begin|>assistant",), header_text="",
            channel=ChannelGrammar(
                header="<|begin|>assistant", tool_headers=("<|tools|>",), body="<|args|>", message_end="<|end|>",
                call_end="<|calls|>", recipient="<|name|>",
            ),
        )  # fmt: skip
        return fmt, [
            "<|begin|>",
            "<|think|>",
            "<|content|>",
            "<|end|>",
            "<|flush|>",
            "<|calls|>",
            "<|tools|>",
            "<|args|>",
        ]
    return ThinkFormat.from_name("gpt_oss_harmony"), names


def policy(rng):
    """Random fields; contradictory draws are drawn again."""
    while True:
        most = rng.choice([None, 0, 1, 3, 6, 12])
        least = rng.choice([0, 0, 0, 1, 3])
        extend = rng.choice([(None, 0), (None, 0), ("Wait", 1), ("\na", 2)])
        soft = rng.choice([(None, 0.0), (None, 0.0), (1, 3.0)])
        prefix = rng.choice(["", "", "", " is", "\nthat it:", "a"])
        try:
            return ThinkPolicy(
                max_thinking_tokens=most,
                min_thinking_tokens=least,
                grace_tokens=rng.choice([0, 0, 2, 5]),
                budget_per=rng.choice(["turn", "turn", "block"]),
                close_at=rng.choice(["line", "sentence"]),
                close_message=rng.choice(["", "", "stop.", " is it"]),
                soft_thinking_tokens=soft[0],
                close_bias=soft[1],
                extend_message=extend[0],
                max_extensions=extend[1],
                on_eos=rng.choice(["close", "close", "ban"]),
                opening=rng.choice(["force", "force", "auto", "auto", "allow", "allow", "forbid"]),
                max_think_blocks=rng.choice([1, 1, 1, 2, 3]),
                min_answer_tokens=rng.choice([0, 1, 1, 2, 4]),
                max_answer_tokens=rng.choice([None, None, 4, 8]),
                reserve_answer_tokens=rng.choice([0, 0, 3]),
                loop_tokens=rng.choice([0, 0, 4, 8]),
                markers_in_answer=rng.choice(["ban", "ban", "ban", "allow"]),
                answer_prefix=prefix,
                answer_prefix_on=rng.choice(["any", "forced"]) if prefix else "any",
            )
        except PolicyError:
            continue


def case(rng):
    """(program, bound policy, model) of one generated format, vocabulary and policy."""
    while True:
        fmt, controls = format_and_controls(rng)
        fmt = replace(fmt, on_texts=rng.choice([None, None, (), ("<is>",), ("thank a\nbit", "<is>!")]))
        controls += ["<is>"] if rng.random() < 0.5 else []
        markers = [*fmt.starts, *fmt.ends, *fmt.answer_starts, *fmt.implicit_ends]
        try:
            vocab = vocabulary(rng, markers, controls, spm=rng.random() < 0.2)
            program = ThinkProgram(fmt, vocab)
            wanted = policy(rng)
            bound = program.bind(wanted)
        except (FormatError, PolicyError, TokenizerError):
            continue
        limit = rng.choice([None, None, None, 40, 60]) if not wanted.max_answer_tokens else None
        return program, bound, Model(fmt, vocab, wanted, bound.eos_token_ids, limit)


def before_turn(rng, program):
    """What stands in a prompt before the assistant's turn: something, and sometimes a text of the format's."""
    said = [random_token(rng, program) for _ in range(rng.randrange(6))]
    if program.format.on_texts and rng.random() < 0.6:
        text = rng.choice(program.format.on_texts)
        said += program.vocabulary.encode(text[: rng.choice([len(text), len(text), 3])])
    return [*said, *(random_token(rng, program) for _ in range(rng.randrange(3)))]


def started(bound, limit, turn_ids, raw, prompt_ids):
    """A state behind a prompt, whose end is the assistant's turn."""
    state = ThinkState(bound)
    state.start(np.array(turn_ids, np.int32), raw, -1 if limit is None else limit)
    if state.is_open():
        state.open(np.array(prompt_ids, np.int32))
    return state


def turn(rng, program, model):
    """The assistant's own part of a prompt: mostly nothing or an opening, sometimes anything."""
    draw = rng.random()
    if draw < 0.5:
        return []
    if draw < 0.7:
        return list(model.open)
    if draw < 0.8:
        opened = model.open if rng.random() < 0.5 else model.spell(model.symbols(rng.choice(model.format.starts)))
        return opened + [random_token(rng, program) for _ in range(rng.choice([0, 3]))]
    if draw < 0.9:
        return model.open + model.close
    return [random_token(rng, program) for _ in range(rng.randrange(8))]


def random_token(rng, program):
    return rng.randrange(program.vocabulary.num_tokens + (2 if rng.random() < 0.02 else 0))


def logits(rng, width):
    """A row of logits: ordinary, with ties, with -inf, NaN and inf in it."""
    style = rng.random()
    row = [round(rng.gauss(0, 3), 1) for _ in range(width)]
    if style < 0.3:
        row = [value if rng.random() < 0.2 else float("-inf") for value in row]
    elif style < 0.4:
        row = [float("nan") if rng.random() < 0.1 else value for value in row]
    elif style < 0.45:
        row[rng.randrange(width)] = float("inf")
    elif style < 0.5:
        row = [float("-inf")] * width
    return row


def snapshot(row):
    """The C core's row in the words of `Model.snapshot`."""
    state = row.as_dict()
    action = row.decide()
    return {
        "phase": Phase(state["phase"]).name.lower(), "thinking": state["thinking"],
        "block": state["block"], "blocks": state["blocks"],
        "visible": state["visible"], "answer": state["answer"], "blank": state["blank"], "extensions": state["extensions"],
        "closed_by": ClosedBy(state["closed_by"]).name.lower(), "length": state["length"],
        "forced": bool(state["flags"] & StateFlag.FORCED),
        "violation": bool(state["flags"] & StateFlag.VIOLATION), "next": action.token if state["seq"] else None,
        "inert": bool(state["flags"] & StateFlag.INERT),
        "markup": bool(state["flags"] & StateFlag.MARKUP), "paragraph": bool(state["flags"] & StateFlag.PARAGRAPH),
        "spoken": bool(state["flags"] & StateFlag.SPOKEN), "bare": bool(state["flags"] & StateFlag.BARE),
        "pair": state["pair"],
    }  # fmt: skip
