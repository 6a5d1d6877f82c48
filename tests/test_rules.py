"""One readable example, at least, of each rule, on vocabularies small enough to see through.

The numbers are those of docs/semantics.md; what is told in a docstring is what went wrong before the rule was there.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from thinkguard import ThinkFormat, ThinkPolicy, ThinkProgram, Vocabulary
from thinkguard.core.names import Phase
from thinkguard.errors import FormatError, InputError, PolicyError

CONTINUATION = [bytes([byte]) for byte in range(0x80, 0xC0)]
BYTES = [bytes([byte]) for byte in range(0x20, 0x7F)] + [b"\n", b"\t", b"\xe2", b"\xf0", *CONTINUATION]
# `</think>` as Qwen2.5 writes it, whole tokens that hold half of it, and two that straddle its end
PIECES = [*BYTES, b"</", b"think", b">\n\n", b"\n\n", b"<th", b"ink>", b"\n</", b".</", b"Wait", b" ok", b">yes"]
FREE, FORCE, EDIT, ALLOW = range(4)


class Guarded:
    """A program over a small vocabulary, and one row of it; tokens are written as what they spell."""

    def __init__(self, format="think", prompt=(), added=(), special=("<eos>",), pieces=PIECES, byte_ids=(), **policy):
        names = ["<eos>", "<bos>", "<user>", "<assistant>", *added]
        self.added = {name: len(pieces) + i for i, name in enumerate(names)}
        self.pieces = list(pieces)
        self.vocabulary = Vocabulary.from_parts(
            self.pieces,
            added=self.added,
            special=[self.added[name] for name in special],
            byte_ids=byte_ids,
            eos_ids=[self.added["<eos>"]],
            bos_ids=[self.added["<bos>"]],
        )
        self.program = ThinkProgram(format, self.vocabulary)
        start = {name: policy.pop(name) for name in ("max_tokens", "eos_token_ids", "turn_start") if name in policy}
        if "eos_token_ids" in start:
            start["eos_token_ids"] = [self.id(piece) for piece in start["eos_token_ids"]]
        self.policy = ThinkPolicy(**policy)
        self.start = start
        self.row = self.program.start([self.id(piece) for piece in prompt], self.policy, **start)

    def id(self, piece):
        if isinstance(piece, int):
            return piece
        if piece in self.added:
            return self.added[piece]
        return self.pieces.index(piece.encode() if isinstance(piece, str) else piece)

    def say(self, *pieces):
        for piece in pieces:
            self.program.advance(self.row, self.id(piece))
        return self

    def forced(self, most=40):
        """Go on as long as something is forced; the text of it."""
        text = b""
        while self.row.decide().kind == FORCE and most and self.phase != "done":
            token = self.row.decide().token
            text += self.vocabulary.token_bytes(token)
            self.program.advance(self.row, token)
            most -= 1
        return text.decode()

    def allows(self, piece):
        return self.row.decide().allows(self.id(piece))

    def edit(self, **wanted):
        """The row of logits that becomes of -9 everywhere but for the wanted pieces."""
        logits = np.full((1, self.vocabulary.num_tokens), -9, np.float32)
        for piece, value in wanted.items():
            logits[0, self.id(piece)] = value
        return logits

    def best(self, **wanted):
        """What a greedy sampler takes."""
        logits = self.edit(**wanted)
        self.program.apply([self.row], logits)
        return self.vocabulary.token_bytes(int(logits.argmax())).decode()

    def edit_of(self, piece, value):
        """What a row becomes in which one piece alone is wanted: the pieces that are then."""
        logits = self.edit(**{piece: value})
        self.program.apply([self.row], logits)
        names = {token: name for name, token in self.added.items()}
        return {names.get(t) or self.pieces[t].decode() for t in np.flatnonzero(logits[0] == value).tolist()}

    @property
    def phase(self):
        return Phase(self.row.phase).name.lower()

    @property
    def count(self):
        return self.row.as_dict()

    @property
    def violated(self):
        return bool(self.row.flags & 8)


def thinking(*said, **policy):
    """A row whose prompt has opened the thinking, canonical white space included."""
    return Guarded(prompt=["<assistant>", "<th", "ink>", "\n"], **policy).say(*said)


def answering(**policy):
    return thinking("</", "think", ">\n\n", **policy)


# --- the text ---


def test_rule_01_the_last_marker_decides_the_phase_legal_or_not():
    guard = thinking()
    assert guard.phase == "thinking"
    assert guard.say("</", "think", ">yes").phase == "answering"
    assert guard.say("<th", "ink>").phase == "thinking"
    assert guard.violated, "a second block was not allowed, but the text has it"
    assert guard.say("<eos>").phase == "done"


def test_rule_01_an_end_without_a_start_closes_a_thinking_that_the_template_opened():
    guard = Guarded(prompt=["<assistant>"], opening="allow")
    assert guard.say("</", "think", ">\n\n").phase == "answering"


def test_rule_01_the_end_is_read_however_it_is_split():
    text = "</think>"
    for cut in range(1, len(text)):
        pieces = [*BYTES, text[:cut].encode(), text[cut:].encode() + b"\n", b"<think>"]
        guard = Guarded(pieces=list(dict.fromkeys(pieces)), prompt=["<assistant>", "<think>"])
        assert guard.say(text[:cut], text[cut:] + "\n").phase == "answering"


EFFORTS = [*BYTES, b"<ifm|", b"</ifm|", b"think", b"_fast", b"er>", b">\n", b"\n\n", b"Stop.", b"\n"]


def effort(start, *said, **policy):
    """A row whose prompt has opened the thinking with one of K2 Horizon's three starts."""
    format, pieces = "k2_horizon", list(dict.fromkeys(EFFORTS))
    return Guarded(format, pieces=pieces, prompt=["<assistant>", "<ifm|", *start], **policy).say(*said)


def test_rule_01_in_a_paired_format_only_the_end_of_the_last_start_closes():
    guard = effort(["think", "_fast", ">"], "a", "</ifm|", "think")
    assert not guard.allows(">"), "which would complete the end of another start"
    assert guard.say(">", "b").phase == "thinking", "and closes nothing where it stands all the same"
    assert not guard.violated
    guard.say("</ifm|", "think", "_fast")
    assert guard.allows(">")
    assert not guard.allows("er>")
    assert guard.say(">").phase == "answering"
    guard.say("`", "</ifm|", "think")
    assert not guard.allows(">"), "in the answer neither"
    assert not guard.say("_fast").allows(">"), "a stray end"


def test_rule_01_in_a_paired_format_that_end_is_what_is_finished_forced_and_aimed_at():
    """Behind `<ifm|think_fast>` the guard wrote `</ifm|think>`: a parser that waits for the other one saw no answer."""
    fast, faster = ["think", "_fast", ">"], ["think", "_fast", "er>"]
    assert effort(["think", ">"], "a", max_thinking_tokens=1).forced() == "</ifm|think>"
    assert effort(fast, "a", max_thinking_tokens=1).forced() == "</ifm|think_fast>"
    assert effort(faster, "a", max_thinking_tokens=1, close_message="Stop.").forced() == "Stop.</ifm|think_faster>"
    assert effort(faster, "a", "</ifm|", "t", max_thinking_tokens=3).forced() == "hink_faster>"
    guard = effort(fast, "a", "</ifm|", "think")
    assert guard.best(**{"<eos>": 9}) == "_fast"
    guard = effort(["think", ">"], "a", "</ifm|", "think")
    assert guard.best(**{"<eos>": 9}) == ">"


def test_rule_01_in_a_paired_format_a_later_start_brings_its_own_end():
    guard = effort(["think", ">"], "a", max_think_blocks=2).say("</ifm|", "think", ">", "b")
    assert guard.count["pair"] == 0
    guard.say("<ifm|", "think", "_fast", "er>", "c")
    assert (guard.phase, guard.count["pair"]) == ("thinking", 2)
    assert not guard.say("</ifm|", "think").allows(">")
    assert guard.say("_fast", "er>").phase == "answering"


def test_rule_10_in_a_paired_format_force_writes_the_first_start_or_finishes_one():
    def before(*begun):
        return Guarded("k2_horizon", pieces=list(dict.fromkeys(EFFORTS)), prompt=["<assistant>", *begun])

    guard = before()
    assert guard.forced() == "<ifm|think>"
    assert guard.count["pair"] == 0
    guard = before("<ifm|", "think", "_fast", "e")
    assert guard.forced() == "r>"
    assert guard.count["pair"] == 2


def test_rule_08_in_a_paired_format_room_is_left_for_the_longest_end():
    """In an answer behind the shortest end, a block of the longest could be opened that had no room to be closed."""
    opened = ["<assistant>", *"<ifm|think>"]
    guard = Guarded("k2_horizon", opened, pieces=BYTES, max_tokens=90, max_think_blocks=2, reserve_answer_tokens=5)
    guard.say(*"</ifm|think>")
    last = None  # the last place where such a block may be opened
    while guard.say("a").count["length"] < 60:
        here = guard.row.copy()
        if guard.say(*"<ifm|think_faster").allows(">"):
            last = here
        guard.row.rollback_to(here)
    assert last is not None
    guard.row.rollback_to(last)
    assert guard.say(*"<ifm|think_faster>").forced() == "</ifm|think_faster>"
    assert 90 - guard.count["length"] == 5 + 1


def test_rule_19_in_a_paired_format_a_close_makes_no_start_of_what_stands_before_it():
    """The first token of a close made the other start out of what another processor wrote."""
    format = ThinkFormat(
        name="mine", starts=("<a>", "x<"), ends=("<b>", "]"), paired=True, open_text="<a>", close_text="\n<b>"
    )
    guard = Guarded(format, pieces=BYTES, prompt=["<assistant>", *"<a>"], max_thinking_tokens=1).say("a")
    assert guard.phase == "closing"
    guard.say("x")
    assert guard.forced() == "\n<b>"
    assert (guard.phase, guard.count["pair"]) == ("answering", 0)


def test_rule_02_in_a_paired_format_the_tokens_of_other_ends_are_banned():
    names = ["<think>", "</think>", "<think:opensource>", "</think:opensource>"]
    guard = Guarded("hy3", prompt=["<assistant>", "<think:opensource>"], added=names).say("a")
    assert not guard.allows("</think>")
    assert guard.best(**{"<eos>": 9}) == "</think:opensource>"
    assert guard.say("</think:opensource>", "b", "`").phase == "answering"
    assert not guard.allows("</think>")
    assert not guard.allows("</think:opensource>")
    trace = guard.program.explain(
        [guard.id("<assistant>")], [guard.id(piece) for piece in ("<think:opensource>", "a", "</think>", "b")]
    )
    assert (trace.phase, trace.reasoning) == ("thinking", "a</think>b")
    assert any("'</think>' was banned, but sampled" in violation.what for violation in trace.violations)


def test_rule_02_what_would_complete_a_forbidden_marker_is_banned_and_all_else_is_free():
    guard = answering().say("a", "<th")
    assert not guard.allows("ink>")
    assert guard.allows("think")
    guard.say("i", "n", "k")
    assert not guard.allows(">")
    assert not guard.allows(">yes")
    assert guard.allows("<")


def test_rule_02_no_control_token_inside_a_half_written_marker():
    """`</th` + control + `ink>` reads `</think>` once special tokens are skipped."""
    guard = answering(special=("<eos>", "<user>")).say("a")
    assert guard.allows("<user>")
    guard.say("</", "t", "h")
    assert not guard.allows("<user>")
    assert guard.allows("<eos>"), "ending here is harmless"
    assert not guard.row.decide().allows(guard.vocabulary.num_tokens), "nor a token without text"


def test_rule_02_a_marker_of_one_token_cannot_be_spelled_in_plain_ones():
    guard = Guarded(added=["<think>", "</think>"], prompt=["<assistant>", "<think>"]).say("<", "/", "think")
    assert not guard.allows(">")
    assert not guard.allows(">\n\n")
    assert guard.allows("</think>") is True


def test_rule_02_along_a_marker_of_controls_dead_ends_are_banned_early():
    format = ThinkFormat(
        name="pair", starts=("<|c>in",), ends=("<|c>out",), open_text="<|c>in", close_text="<|c>out", controls=("<|c>",)
    )
    guard = Guarded(format, added=["<|c>"], prompt=["<assistant>", "<|c>", "i", "n"])
    assert guard.allows("<|c>"), "may still become the end"
    guard.say("<|c>")
    assert not guard.allows("i"), "leads to a start only, which is forbidden here"
    guard = guard.say("o", "u", "t", "x")
    assert not guard.allows("<|c>"), "in the answer neither is left"


def test_rule_03_duplicate_byte_tokens_are_banned_and_never_forced():
    """An invalid run of byte tokens turns into U+FFFD backwards and destroys a finished marker."""
    byte_id = len(PIECES)
    guard = Guarded(pieces=[*PIECES, b">"], byte_ids=[byte_id], max_thinking_tokens=1)
    guard.forced()
    assert guard.phase == "thinking"
    assert not guard.row.decide().allows(byte_id)
    guard.say("a")
    while guard.row.decide().kind == FORCE:
        assert guard.row.decide().token != byte_id
        guard.say(guard.row.decide().token)
    assert not guard.row.decide().allows(byte_id)


def test_rule_04_eos_is_a_set_that_the_caller_may_name():
    guard = answering(eos_token_ids=["<eos>", "<user>"])
    assert not guard.allows("<user>")
    assert not guard.allows("<eos>")
    guard.say("a")
    assert guard.allows("<user>")
    assert guard.say("<user>").phase == "done"


def test_rule_04_an_end_marker_that_is_an_eos_is_refused():
    with pytest.raises(FormatError, match=r"</think>.*EOS set"):
        Guarded(added=["<think>", "</think>"], eos_token_ids=["</think>"])


# --- the prompt ---


def test_rule_05_what_the_user_types_changes_nothing():
    guard = Guarded(prompt=["<user>", "<th", "ink>", "a", "<assistant>"])
    assert guard.phase == "before"
    guard = Guarded(prompt=["<user>", "a", "<assistant>", "<th", "ink>"])
    assert guard.phase == "thinking"


def test_rule_05_without_a_chat_only_a_marker_at_the_very_end_counts():
    assert Guarded(prompt=["<bos>", "<th", "ink>", "\n"]).phase == "thinking"
    assert Guarded(prompt=["<bos>", "<th", "ink>", "a"]).phase == "before"
    assert Guarded(prompt=["a", "</", "think", ">\n\n", "b"]).phase == "before"


def test_rule_05_a_bos_that_begins_turns_is_a_boundary():
    """With SmolLM2, whose BOS is `<|im_start|>`, every chat was taken for a text without one."""
    thought = ["<th", "ink>", "a"]
    assert Guarded(prompt=["<bos>", *"user", "\n", "a", "<bos>", *"assistant", "\n", *thought]).phase == "thinking"
    assert Guarded(prompt=["<bos>", *"assistant", "\n", *thought]).phase == "before", "nothing stands before it"
    assert Guarded(prompt=["a", "<bos>", *"assist", "\n", *thought]).phase == "before", "another name follows"


def test_rule_05_turn_start_overrides():
    prompt = ["<user>", "<th", "ink>", "a", "<user>"]
    assert Guarded(prompt=prompt, turn_start=1).phase == "thinking"
    with pytest.raises(InputError, match="turn_start=6"):
        Guarded(prompt=prompt, turn_start=6)


def test_rule_06_a_prefilled_answer_is_left_alone():
    guard = Guarded(prompt=["<assistant>", " ok"])
    assert guard.phase == "answering"
    assert guard.row.decide().kind != FORCE


def test_rule_06_the_header_s_own_text_is_no_answer():
    guard = Guarded(prompt=["<assistant>", *"assistant", "\n"])
    assert guard.phase == "before"
    assert guard.forced().startswith("<think>")


# --- counting ---


def test_rule_07_what_counts_as_a_token_of_thinking():
    guard = Guarded(prompt=["<assistant>"])
    guard.forced()
    assert guard.count["thinking"] == 0, "forced tokens and the canonical white space do not count"
    guard.say("a", "</", "think")
    assert guard.count["thinking"] == 3, "the half-written end does"
    guard.say(">\n\n")
    assert guard.count["thinking"] == 3, "the token that completes it does not"


def test_rule_07_the_prompt_s_part_of_the_turn_counts():
    guard = thinking("b", max_thinking_tokens=3)
    assert Guarded(prompt=["<assistant>", "<th", "ink>", "\n", "a", "b"], max_thinking_tokens=9).count["thinking"] == 2
    assert guard.count["thinking"] == 1
    assert guard.say("\n").count["thinking"] == 2, "white space that is not right behind the start counts"


def test_rule_07_limits_are_per_turn_over_all_blocks():
    guard = thinking("a", "b", "</", "think", ">yes", max_thinking_tokens=5, max_think_blocks=2)
    assert guard.count["thinking"] == 4
    guard.say("<th", "ink>", "a")
    assert guard.phase == "closing"
    assert guard.count["thinking"] == 5


def test_rule_08_max_tokens_leaves_room_for_closing_and_the_answer():
    guard = thinking(max_tokens=20, reserve_answer_tokens=5)
    while guard.phase == "thinking":
        guard.say("a")
    assert guard.forced() == "\n</think>\n\n"
    assert 20 - guard.count["length"] >= 5 + 1


def test_rule_08_a_limit_without_room_is_refused():
    with pytest.raises(InputError, match="max_tokens=3 is too small"):
        Guarded(prompt=["<assistant>"], max_tokens=3)


def test_rule_09_visible_tokens_are_counted_from_the_last_end():
    guard = answering(min_answer_tokens=2)
    assert guard.count["visible"] == 0
    guard.say(" ", "\n\n")
    assert guard.count["visible"] == 0
    guard.say("a")
    assert guard.count["visible"] == 1
    assert not guard.allows("<eos>")
    assert guard.say("b").allows("<eos>")
    assert thinking("</", "think", ">yes").count["visible"] == 1, "of a straddling token what is behind the marker"


# --- BEFORE ---


def test_rule_10_force_writes_the_start_and_its_white_space():
    guard = Guarded(prompt=["<assistant>"])
    assert guard.forced() == "<think>\n"
    assert guard.phase == "thinking"


def test_rule_10_force_finishes_a_start_that_is_half_written():
    assert Guarded(prompt=["<assistant>", "<th"]).forced() == "ink>\n"


def test_rule_10_allow_lets_the_first_visible_byte_decide():
    guard = Guarded(prompt=["<assistant>"], opening="allow")
    assert guard.say("\n", "<th").phase == "before"
    assert guard.say("ink>").phase == "thinking"
    assert Guarded(prompt=["<assistant>"], opening="allow").say("\n", "<th", "a").phase == "answering"


def test_rule_10_forbid_forces_an_empty_block():
    guard = Guarded(prompt=["<assistant>"], opening="forbid")
    assert guard.forced() == "<think>\n\n</think>\n\n"
    assert guard.phase == "answering"
    assert thinking("a", opening="forbid").phase == "closing", "thinking that the prompt began is closed"


def test_rule_10_auto_forces_what_the_prompt_says_and_no_more():
    """A start was forced into Granite's and Gemma's prompts without thinking, which only a system message tells apart."""
    format = ThinkFormat.from_name("think")
    assert Guarded(prompt=["<assistant>"]).forced() == "<think>\n", "it cannot be told not to think"
    for texts, said, forced in (
        (("think it through",), "so think it through.", "<think>\n"),
        (("think it through",), "so be brief.", ""),
        ((), "so think it through.", ""),
    ):
        guard = Guarded(replace(format, on_texts=texts), prompt=[*said, "<assistant>", "\n"])
        assert guard.forced() == forced
    assert guard.say("<th", "ink>").phase == "thinking", "what the model opens by itself is guarded"
    assert Guarded(replace(format, on_texts=()), prompt=["<assistant>"], opening="force").forced() == "<think>\n"


def harmony(**policy):
    names = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"]
    return Guarded("gpt_oss_harmony", added=names, prompt=["<|start|>", *"assistant"], **policy)


def test_rule_10_harmony_may_choose_the_final_channel():
    """`final` was taken for the begin of a header of free text, in which `<|message|>` may not complete the answer."""
    guard = harmony(opening="allow")
    assert guard.forced() == "<|channel|>"
    assert [letter for letter in "abcfg" if guard.allows(letter)] == ["a", "c", "f"]
    assert guard.say("f").forced() == "inal<|message|>"
    assert guard.phase == "answering"


def test_rule_10_harmony_forbid_goes_to_the_final_channel():
    guard = harmony(opening="forbid")
    assert guard.forced() == "<|channel|>final<|message|>"
    assert guard.phase == "answering"


def test_channel_after_the_analysis_comes_a_header_and_a_choice():
    guard = harmony(max_thinking_tokens=1)
    assert guard.forced() == "<|channel|>analysis<|message|>"
    assert guard.say("a").forced() == "<|end|><|start|>assistant<|channel|>"
    assert not guard.allows("a"), "one block of analysis only"
    assert guard.say("c").forced() == "ommentary"
    guard.say(" ", "t", "o", "=", "x", "<|message|>", "{")
    assert guard.phase == "answering"
    assert guard.allows("<|call|>")
    assert not guard.allows("<|return|>"), "a message to a tool ends with the call"


def test_channel_a_commentary_to_nobody_is_a_preamble():
    for markers in ("ban", "allow"):
        guard = harmony(max_thinking_tokens=0, markers_in_answer=markers)
        guard.forced()
        guard.say("c")
        guard.forced()
        guard.say("<|message|>", "h", "i")
        assert not guard.allows("<eos>")
        assert guard.best(**{"<eos>": 9}) == "<|end|>", "a preamble is not the turn's end (rule 11)"
        assert guard.allows("<|end|>")
        assert guard.say("<|end|>").phase == "heading", "quoting is no matter where messages have ends of their own"


# --- THINKING ---

# A vocabulary such as Qwen3's, of whose tokens for turns one is special and one is not
TURN_STARTS = ["<|im_start|>", "<tool_response>"]
CHAT = ["<think>", "</think>", *TURN_STARTS, "<|vision_start|>"]


def chatting(*said, format="think", added=CHAT, **more):
    opened = ["<think>", "\n"] if "<think>" in added else ["<th", "ink>", "\n"]
    special = ("<eos>", "<|im_start|>")
    return Guarded(format, added=added, special=special, prompt=["<assistant>", *opened], **more).say(*said)


def test_thinking_begins_no_turn():
    """Qwen3 could begin the user's next turn, or a tool's result, inside its thinking."""
    for said in ((), ("a",), ("a", "<"), ("a", "</"), ("a", "<", "/", "t")):
        guard = chatting(*said)
        assert guard.phase == "thinking"
        for piece in TURN_STARTS:
            assert not guard.allows(piece), (said, piece)
            assert guard.best(**{piece: 9, "b": 0}) == "b", (said, piece)
    guard = chatting("a", min_thinking_tokens=9)
    assert not any(map(guard.allows, TURN_STARTS))
    assert guard.allows("<|vision_start|>"), "other tokens of the template's are no turn"
    assert chatting("a").edit_of("<|vision_start|>", 9) == {"<|vision_start|>"}


def test_thinking_that_began_a_turn_all_the_same_goes_on():
    """Another processor insisted: a boundary moves nothing but the counters, as before."""
    guard = chatting("a", "<|im_start|>", *"user", "\n")
    assert guard.phase == "thinking"
    assert guard.count["thinking"] == 7
    assert not guard.violated


def test_thinking_begins_no_turn_where_the_markers_are_text():
    for said in (("a",), ("a", "<"), ("a", "</"), ("a", "</", "t"), ("a", "<th")):
        guard = chatting(*said, added=TURN_STARTS)
        for piece in TURN_STARTS:
            assert not guard.allows(piece), (said, piece)
            assert guard.best(**{piece: 9, "b": 0}) == "b", (said, piece)
    guard = chatting("a", "</", "think", ">\n\n", "b", added=TURN_STARTS)
    assert all(map(guard.allows, TURN_STARTS))
    assert guard.say("`").row.decide().kind == FREE, "and an answer that needs nothing is still left alone"


def test_what_begins_a_turn_is_banned_while_thinking_alone():
    for guard in (
        chatting("a", "</think>", "b"),
        chatting("a", "</think>", "b", markers_in_answer="allow"),
        Guarded(added=CHAT, prompt=["<assistant>"], opening="allow", min_answer_tokens=0),
    ):
        assert guard.phase in ("answering", "before")
        for piece in TURN_STARTS:
            assert guard.allows(piece)
            assert guard.edit_of(piece, 9) == {piece}


def test_what_begins_a_turn_and_is_eos_is_eos():
    """GLM's `<|user|>` ends the assistant's turn: a wish for it is a wish to close."""
    added = [*CHAT, "<|user|>"]
    guard = chatting("a", added=added, eos_token_ids=["<eos>", "<|user|>"])
    assert guard.edit_of("<|user|>", 9) == {"</think>"}
    assert guard.say("</think>", "b").allows("<|user|>")
    assert guard.say("<|user|>").phase == "done"
    guard = chatting("a", added=added, eos_token_ids=["<eos>"])
    assert guard.best(**{"<|user|>": 9, "b": 0}) == "b", "not moved: it is no EOS here"


def test_a_close_that_cannot_be_forced_begins_no_turn():
    guard = chatting("a", max_thinking_tokens=1)
    assert guard.phase == "closing"
    logits = np.full((1, guard.vocabulary.num_tokens), -np.inf, np.float32)
    for piece in (*TURN_STARTS, "b"):
        logits[0, guard.id(piece)] = 1
    guard.program.apply([guard.row], logits)
    assert np.flatnonzero(logits[0] > -np.inf).tolist() == [guard.id("b")]


def test_a_format_names_what_begins_its_turns_and_what_does_not():
    format = replace(ThinkFormat.from_name("think"), boundaries=("<|role|>", "<|role|>user"), inner=("<tool_response>",))
    guard = chatting("a", format=format, added=[*CHAT, "<|role|>", "<|other|>"])
    assert not guard.allows("<|role|>")
    assert not guard.allows("<|im_start|>")
    assert guard.allows("<tool_response>"), "this family's assistant writes it itself"
    assert guard.allows("<|other|>")


def test_what_a_marker_is_written_with_begins_no_turn():
    """`<|im_start|>answer` is s1's end marker."""
    guard = Guarded("s1", added=["<|im_start|>"], prompt=["<|im_start|>", *"think", "\n"], turn_start=0).say("a")
    assert guard.phase == "thinking"
    assert guard.allows("<|im_start|>")
    assert not guard.say("<|im_start|>").allows("t")
    assert guard.say(*"answer").phase == "answering"


def test_rule_11_eos_is_moved_to_the_bare_end_not_to_the_close_sequence():
    """The close sequence begins with a newline in Qwen2.5: logits that like EOS best then write newlines for ever."""
    guard = thinking("a")
    text = ""
    for _ in range(4):
        if guard.phase == "answering":
            break
        piece = guard.best(**{"<eos>": 9})
        text += piece
        guard.say(piece)
    assert text.startswith("</think>")
    assert guard.phase == "answering"


def test_rule_11_the_plan_finishes_what_is_half_written():
    assert thinking("a", "</", "t").best(**{"<eos>": 9}) == "h"


def test_rule_11_a_plan_that_is_itself_forbidden_is_no_target():
    """Behind `a` the end's first `b` would complete the start `ab`."""
    format = ThinkFormat(name="t", starts=("ab",), ends=("ba",), open_text="ab", close_text="\nba")
    guard = Guarded(format, prompt=["<assistant>", "a", "b"]).say("a")
    assert guard.row.decide().token == guard.id("b")
    assert not guard.allows("b")
    logits = np.full((1, guard.vocabulary.num_tokens), -np.inf, np.float32)
    logits[0, guard.id("b")] = 1
    before = logits.copy()
    assert guard.program.apply([guard.row], logits) == 1
    assert np.array_equal(logits, before), "nothing else can be sampled, so the row stays as it was"


def test_rule_02_a_special_marker_does_not_hide_what_is_spelled_around_it():
    """`[TH` + the token `[/THINK]` + `INK]` reads `[THINK]` once specials are skipped."""
    format = ThinkFormat(
        name="t", starts=("[THINK]",), ends=("[/THINK]",), open_text="[THINK]", close_text="[/THINK]", header_text=""
    )
    markers = ["[THINK]", "[/THINK]"]
    pieces = [*PIECES, b"[TH", b"INK]"]
    for special, allowed in ((("<eos>", *markers), False), (("<eos>",), True)):
        prompt = ["<assistant>", "[THINK]", "a", "[TH", "[/THINK]"]
        guard = Guarded(format, prompt=prompt, added=markers, special=special, pieces=pieces)
        assert guard.phase == "answering"
        assert guard.allows("INK]") == allowed


def test_rule_02_an_answer_may_write_what_begins_as_a_forbidden_marker_does():
    """Kimi-K3's `<|close|>` had been banned in answers, and with it every tool call, for it begins the end as well."""
    format = ThinkFormat(
        name="parts", starts=("<|open|>think",), ends=("<|close|>think",), open_text="<|open|>think",
        close_text="<|close|>think", answer_parts=("<|close|>call",), controls=("<|open|>", "<|close|>"),
    )  # fmt: skip
    pieces, markers = [*PIECES, b"call"], ["<|open|>", "<|close|>"]
    prompt = ["<assistant>", "<|open|>", "think"]
    guard = Guarded(format, prompt=prompt, added=markers, special=("<eos>", *markers), pieces=pieces).say("a", "<|close|>")
    assert guard.allows("think")
    assert not guard.allows("call"), "it stands in answers alone"
    guard.say("think", "b")
    assert not guard.allows("<|open|>")
    guard.say("<|close|>")
    assert not guard.allows("think")
    assert guard.say("call", "c").phase == "answering"
    assert not guard.violated


def test_rule_04_an_eos_that_is_needed_to_write_a_marker_is_refused():
    """The sequence would end in the middle of closing."""
    with pytest.raises(FormatError, match="is in the EOS set and also needed to write a marker"):
        Guarded(eos_token_ids=["<eos>", "\n"])


def test_rule_11_eos_may_be_banned_instead():
    guard = thinking("a", on_eos="ban")
    assert guard.best(**{"<eos>": 9, "b": 0}) == "b"


def test_rule_11_a_tool_call_ends_the_thinking_by_way_of_the_end():
    format = ThinkFormat(
        name="tools",
        starts=("<think>",),
        ends=("</think>",),
        open_text="<think>",
        close_text="</think>",
        implicit_ends=("<tool>",),
    )
    guard = Guarded(format, added=["<tool>"], prompt=["<assistant>", "<th", "ink>"]).say("a")
    assert not guard.allows("<tool>")
    assert guard.best(**{"<tool>": 9}) == "</"
    guard.say("<tool>")  # another processor insisted
    assert guard.phase == "answering"


TOOLS = ThinkFormat(
    name="tools",
    starts=("<think>",),
    ends=("</think>",),
    open_text="<think>",
    close_text="</think>",
    implicit_ends=("<|tool|>", "</tool>"),
)
CALLS = [*PIECES, b"<|", b"to", b"ol", b"|>", b"|>x", b"<|tool|>", b".<|"]


def calling(*said, format=TOOLS, pieces=CALLS, **policy):
    return Guarded(format, pieces=pieces, prompt=["<assistant>", "<th", "ink>"], **policy).say(*said)


def traced(guard, *said):
    """The trace of an output that begins with the pieces and goes on as long as something is forced."""
    prompt, output = [guard.id(piece) for piece in ("<assistant>", "<th", "ink>")], [guard.id(piece) for piece in said]
    row = guard.program.start(prompt, guard.policy)
    for token in output:
        guard.program.advance(row, token)
    while row.decide().kind == FORCE:
        output.append(row.decide().token)
        guard.program.advance(row, output[-1])
    return guard.program.explain(prompt, output, guard.policy)


def test_rule_11_a_tool_call_of_several_tokens_is_the_end_itself():
    """`<|DSML|function_calls</think>>`: the last token of the opener had been turned into the end."""
    guard = calling("a", "<|", "to", "ol")
    assert guard.best(**{"|>": 9, "b": 0}) == "|>"
    assert guard.allows("|>x"), "and what comes behind it"
    assert guard.say("|>").phase == "answering"
    trace = traced(guard, "a", "<|", "to", "ol", "|>", "x")
    assert (trace.closed_by, trace.reasoning, trace.answer) == ("implicit", "a", "<|tool|>x")


def test_rule_11_begun_by_one_character_it_is_an_opener_of_several_tokens():
    guard = calling("a", "<")
    assert guard.best(**{"<|tool|>": 9}) == "</", "one token that holds all of it is still moved, to the end"
    assert guard.say("|", "t", "o", "ol").allows("|>")
    assert guard.say("|>").phase == "answering"


def test_rule_11_the_plain_spelling_of_an_opener_that_is_a_token_is_one_of_several_tokens():
    plain = [piece for piece in CALLS if piece != b"<|tool|>"]
    guard = calling("a", "<|", "to", "ol", pieces=plain, added=["<|tool|>"])
    assert guard.best(**{"<|tool|>": 9}) == "</"
    assert guard.say("|>").phase == "answering"


def test_rule_20_a_tool_call_quotes_no_marker():
    guard = calling("a", "</", "think", ">\n\n", markers_in_answer="allow")
    for piece in ("<|", "to", "ol", "|>", "x"):
        assert not guard.say(piece).violated


def test_rule_17_no_bias_inside_a_tool_call():
    policy = {"soft_thinking_tokens": 1, "max_thinking_tokens": 20, "close_bias": 500.0}
    assert calling("a", "b", "<", **policy).best(**{"c": 9, "</": 0}) == "</"
    assert calling("a", "b", "<|", "to", **policy).best(**{"ol": 9, "</": 0}) == "ol"


@pytest.mark.parametrize(
    ("said", "closed", "by", "answer"),
    [
        (["a", "<"], "stop.</think>", "budget", ""),  # one character is ordinary text
        (["a", "<|"], "tool|>", "implicit", "<|tool|>"),
        (["a", ".<|"], "tool|>", "implicit", "<|tool|>"),
        (["a", "<|", "to", "ol"], "|>", "implicit", "<|tool|>"),
        (["a", "</"], "think>", "budget", ""),  # an end too, which comes first
        (["a", "</", "to"], "ol>", "implicit", "</tool>"),
    ],
)
def test_rule_12_a_half_written_tool_call_is_finished(said, closed, by, answer):
    guard = calling(*said, max_thinking_tokens=len(said), close_message="stop.")
    assert guard.forced() == closed
    assert guard.phase == "answering"
    trace = traced(guard, *said)
    assert (trace.closed_by, trace.answer) == (by, answer)
    assert trace.forced[0] == len(said)


def test_rule_08_the_room_for_closing_counts_what_finishes_a_tool_call():
    """`<|tool|>` takes seven more tokens behind `<`, more than the three of `</think>`."""
    letters = [*PIECES, b"<|"]
    short = calling(pieces=letters).row.policy.close_room
    call = ThinkFormat(**{field: getattr(TOOLS, field) for field in ("name", "starts", "ends", "open_text", "close_text")})
    assert calling(pieces=letters, format=call).row.policy.close_room < short
    guard = calling("a", "<|", pieces=letters, max_tokens=short + 2)
    assert guard.forced() == "tool|>"
    assert guard.count["length"] + guard.policy.min_answer_tokens + 1 <= short + 2


def test_rule_13_below_the_minimum_a_tool_call_cannot_even_grow():
    guard = calling("a", min_thinking_tokens=9)
    assert not guard.allows("<|tool|>")
    guard.say("<|")
    assert not guard.allows("to")
    assert guard.allows("x")
    guard = calling("a", "<|", "to", "ol", min_thinking_tokens=9)  # another processor insisted
    assert not guard.allows("|>")


def test_rule_18_a_tool_call_below_the_minimum_extends():
    guard = calling("a", min_thinking_tokens=9, extend_message="Wait", max_extensions=1)
    assert guard.best(**{"<|tool|>": 9, "Wait": 0, "b": 1}) == "Wait"
    assert guard.say("<|").best(to=9, Wait=0, b=1) == "Wait"


def test_rule_09_a_special_opener_is_not_visible():
    """`<tool><tool><tool>` had counted as three tokens of answer."""
    format = ThinkFormat(
        name="tools", starts=("<think>",), ends=("</think>",), open_text="<think>", close_text="</think>",
        implicit_ends=("<tool>",),
    )  # fmt: skip
    for special, visible in ((("<eos>", "<tool>"), 0), (("<eos>",), 3)):
        guard = Guarded(format, added=["<tool>"], special=special, prompt=["<assistant>", "<th", "ink>"])
        guard.say("a", "</", "think", ">\n\n", "<tool>", "<tool>", "<tool>")
        assert guard.count["visible"] == visible
        assert guard.allows("<eos>") == bool(visible)


@pytest.mark.parametrize(
    ("said", "closed"),
    [
        (["a", " ", "<"], "\n</think>\n\n"),  # one character is ordinary text: `a <` -> `a <\n</think>`
        (["a", ".</"], "think>\n\n"),  # `.</` -> `.</think>`
        (["a", "</", "think"], ">\n\n"),
        (["a"], "\n</think>\n\n"),
    ],
)
def test_rule_12_a_half_written_end_is_finished(said, closed):
    guard = thinking(*said, max_thinking_tokens=len(said))
    assert guard.forced() == closed
    assert guard.phase == "answering"


def test_rule_12_no_message_before_the_rest_of_an_end():
    assert thinking("a", "</", max_thinking_tokens=2, close_message="stop.").forced() == "think>\n\n"
    assert thinking("a", "b", max_thinking_tokens=2, close_message="stop.").forced() == "stop.\n</think>\n\n"


def test_rule_12_a_single_token_end_is_always_written_as_the_token():
    guard = Guarded(added=["<think>", "</think>"], prompt=["<assistant>", "<think>"], max_thinking_tokens=1).say("</")
    assert guard.forced() == "\n</think>\n\n"
    guard.say("a")
    assert guard.phase == "answering"


def test_rule_13_below_the_minimum_the_end_cannot_even_grow():
    """`x=4.\\n</thinkWait`: the end was let half-written when the extension's message came."""
    guard = thinking("x", "<", "b", min_thinking_tokens=9)
    assert guard.allows("</"), "two characters are ordinary text where tags are written"
    guard.say("\n</")
    assert not guard.allows("think")
    assert not guard.allows("t")
    assert guard.allows("x")
    assert not guard.allows("<eos>"), "banned, not moved"
    assert guard.best(**{"<eos>": 9, "x": 0}) == "x"


def test_rule_13_below_the_minimum_no_end_is_begun_while_there_is_no_markup():
    """45 of 48 outputs of a real model held `</ think>`, `</Think>` or the like below the minimum."""
    guard = thinking("x", min_thinking_tokens=9)
    assert not guard.allows("</")
    assert not guard.allows("\n</")
    assert guard.allows("<")
    assert not guard.say("<").allows("/")
    assert thinking("x", '"', min_thinking_tokens=9).allows("</"), "quoted"
    assert thinking("x", '"', "<", min_thinking_tokens=9).allows("/"), "quoted before the first character"
    assert thinking("x", "`", "a", min_thinking_tokens=9).allows("</"), "code"


def test_a_block_does_not_begin_with_half_a_start():
    guard = thinking()
    assert not guard.allows("<th")
    assert guard.allows("<")
    assert not guard.say("<").allows("think")
    assert thinking("a").allows("<th")


def test_rule_13_boundary_and_loop_wait_for_the_minimum():
    waits = {"max_thinking_tokens": 9, "min_thinking_tokens": 6}
    assert thinking("a", "\n", grace_tokens=9, **waits).phase == "thinking"
    assert thinking(*"aaaaa", loop_tokens=4, **waits).phase == "thinking"
    assert thinking(*"aaaaaa", loop_tokens=4, **waits).phase == "closing"


def test_rule_14_a_line_is_a_boundary_within_the_grace_window():
    guard = thinking("a", "\n", "b", max_thinking_tokens=6, grace_tokens=2)
    assert guard.say("c").phase == "thinking"
    assert guard.say("\n").phase == "closing"
    assert guard.count["closed_by"] == 3


@pytest.mark.parametrize(
    ("said", "closes"),
    [("a.", True), ("1.", False), ("a!", True), ("a\n", True), ("ab", False), ("a\u3002", True), ("3\u3002", False)],
)
def test_rule_14_a_sentence_ends_but_not_after_a_digit(said, closes):
    pieces = list(said[:-1]) + ([said[-1]] if said[-1].isascii() else [bytes([b]) for b in said[-1].encode()])
    guard = thinking(max_thinking_tokens=20, grace_tokens=20, close_at="sentence", pieces=[*PIECES, b"\xe3"]).say(
        *pieces
    )
    assert (guard.phase == "closing") == closes


def test_rule_14_no_boundary_inside_a_character_or_before_the_first_token():
    assert thinking(max_thinking_tokens=2, grace_tokens=2).phase == "thinking", "the start's own newline"
    assert thinking("\n", max_thinking_tokens=3, grace_tokens=3).phase == "closing"


def test_rule_15_a_cap_never_cuts_a_character():
    guard = thinking("a", max_thinking_tokens=3)
    assert guard.allows(b"\xe2") is False, "two tokens left, two bytes would be missing"
    guard = thinking(max_thinking_tokens=3)
    assert guard.allows(b"\xe2")
    assert not guard.allows(b"\xf0")
    guard.say(b"\xe2")
    assert guard.allows(b"\x82")
    guard.say(b"\x82")
    assert guard.allows(b"\xac")
    assert not guard.allows(b"\xe2")
    assert guard.say(b"\xac").phase == "closing"


def test_rule_15_a_vocabulary_that_cannot_finish_a_character_is_refused():
    with pytest.raises(FormatError, match="continuation byte 0x80"):
        Guarded(pieces=[piece for piece in PIECES if piece != b"\x80"])


def test_rule_16_a_loop_is_closed():
    guard = thinking(*"xabababa", loop_tokens=8)
    assert guard.phase == "thinking", "seven of eight"
    assert guard.say("b").phase == "closing"
    assert guard.count["closed_by"] == 4
    assert thinking(*"abcabcabc", loop_tokens=8).phase == "thinking", "a period of three is too long for eight"


def test_rule_16_a_loop_of_halved_characters_is_closed_behind_one():
    looping = [*3 * [b"\xe2", b"\x82", b"\xac"], b"\xe2"]  # ten tokens, of which the last twelve are wanted
    guard = thinking(*looping, b"\x82", loop_tokens=12)
    assert guard.phase == "thinking", "one too few"
    assert guard.say(b"\xac").phase == "closing"
    guard = thinking(b"\x82", b"\xac", *looping, loop_tokens=12)
    assert guard.phase == "thinking", "inside a character"
    assert guard.say(b"\x82").phase == "thinking"
    assert guard.say(b"\xac").phase == "closing"
    assert thinking(*7 * [b"\xf0"], loop_tokens=4).phase == "closing", "no character comes of it"


def test_rule_17_the_bias_grows_on_the_plan_alone():
    guard = thinking(max_thinking_tokens=6, soft_thinking_tokens=2, close_bias=8.0)
    seen = []
    for _ in range(5):
        before = guard.edit()
        after = before.copy()
        guard.program.apply([guard.row], after)
        finite = np.isfinite(after)
        changed = np.flatnonzero((after != before) & finite)
        seen.append(float(after[0, guard.id("</")] - before[0, guard.id("</")]))
        assert set(changed.tolist()) <= {guard.id("</")}
        guard.say("a")
    assert seen == [0, 0, 0, 2, 4]


def test_rule_18_an_early_end_becomes_the_message():
    guard = thinking("a", min_thinking_tokens=20, extend_message="Wait", max_extensions=1)
    guard.say("<", "/", "x", "</")
    assert guard.best(think=9) == "Wait"
    assert thinking(min_thinking_tokens=20, extend_message="Wait", max_extensions=1).best(**{"</": 9, "b": 0}) == "b", (
        "nothing has been thought that could be gone on with"
    )
    assert guard.say("Wait").count["extensions"] == 1
    guard.say("</")
    assert guard.best(think=9, b=0) == "b", "the extensions are spent, the end is only banned"


def test_rule_18_the_rest_of_the_message_is_forced_whoever_began_it():
    guard = thinking("a", min_thinking_tokens=20, extend_message="hm!", max_extensions=1)
    assert guard.say("h").forced() == "m!"
    assert guard.count["thinking"] == 2, "what was forced does not count"
    assert guard.say("h").row.decide().kind == EDIT, "only one extension"


def test_rule_18_line_breaks_lead_to_the_message_and_do_not_begin_it():
    """Every ordinary line break began `\\nWait`: 80 of 80 messages came where the model did not want to end."""
    extend = {"min_thinking_tokens": 20, "extend_message": "\n\nhm", "max_extensions": 1}
    guard = thinking("a", **extend)
    assert guard.best(**{"</": 9}) == "\n\n"
    assert guard.say("\n").row.decide().kind == EDIT, "a line break is text"
    assert guard.best(**{"</": 9}) == "\n"
    guard.say("\n")
    assert guard.best(**{"</": 9}) == "h"
    assert guard.say("h").forced() == "m"
    assert thinking("a", **extend).say("h").row.decide().kind == EDIT, "no message without its line breaks"
    with pytest.raises(PolicyError, match="leave at most 4"):
        thinking("a", **extend | {"extend_message": "\n\n\n\n\nhm"})


def test_rule_18_no_extension_where_closing_would_not_fit_behind_it():
    """Its message is forced, so nothing counted it: `max_tokens` cut the end marker off."""
    extend = {"min_thinking_tokens": 50, "extend_message": "h" * 12, "max_extensions": 1}
    guard = thinking("a", max_tokens=17, **extend)
    assert guard.say("h").row.decide().kind == EDIT
    guard = thinking("a", max_tokens=40, **extend)
    assert guard.say("h").forced() == "h" * 11


# --- CLOSING ---


def test_rule_19_message_end_and_white_space_in_this_order():
    guard = thinking("a", max_thinking_tokens=1, close_message="Wait")
    assert guard.phase == "closing"
    assert guard.forced() == "Wait\n</think>\n\n"


def test_rule_19_no_empty_line_in_front_of_the_end():
    guard = thinking("a", "\n", max_thinking_tokens=2)
    assert guard.forced() == "</think>\n\n"
    assert thinking("a", "\n", max_thinking_tokens=2, close_message="stop.").forced() == "stop.\n</think>\n\n"
    assert thinking(max_thinking_tokens=0).forced() == "\n</think>\n\n", "an empty block as its family writes it"


def test_rule_19_nothing_is_forced_behind_an_end_that_the_model_wrote():
    guard = thinking("a", "</", "think", ">yes")
    assert guard.phase == "answering"
    assert guard.row.decide().kind == EDIT
    assert guard.say("<").row.decide().kind == EDIT
    assert guard.say("a").row.decide().kind == FREE, "with markup in it, nothing is taken for the beginning of an end"


def test_rule_19_another_token_than_the_forced_one_decides_again_from_the_text():
    guard = thinking("a", max_thinking_tokens=1)
    assert guard.say("b").forced() == "</think>\n\n", "closed anew, without what is optional"
    guard = thinking("a", max_thinking_tokens=1).say("</")
    assert guard.forced() == "think>\n\n", "what arrived is half an end"


def without(guard, *banned, **wanted):
    """What a greedy sampler takes where another processor has banned some pieces; the guard goes on behind it."""
    logits = guard.edit(**wanted)
    logits[0, [guard.id(piece) for piece in banned]] = -np.inf
    carried_out = guard.program.apply([guard.row], logits) == 0
    token = int(logits.argmax())
    guard.program.advance(guard.row, token)
    return (guard.vocabulary.token_bytes(token).decode(), carried_out)


def test_rule_19_what_is_optional_is_skipped_where_it_cannot_be():
    """A banned line break or letter of the message meant that the thinking never closed: `\\ns\\ns\\n` until the limit."""
    guard = thinking("a", max_thinking_tokens=1)
    assert without(guard, "\n</") == ("</", False)
    assert guard.forced() == "think>\n\n"
    assert guard.count["closed_by"] == 2, "the budget closed"
    guard = Guarded(
        added=["<think>", "</think>"], prompt=["<assistant>", "<think>", "a"], max_thinking_tokens=1, close_message="hm."
    )
    guard.say("h")
    assert without(guard, "m") == ("</think>", False), "the message is left where it cannot go on"
    assert (guard.phase, guard.count["closed_by"]) == ("answering", 2)
    guard = thinking("a", max_thinking_tokens=1, close_message="hm.")
    assert without(guard, "h", "</") == (" ", False)
    assert guard.forced() == "</think>\n\n", "tried again without the message"
    guard = thinking("a", max_thinking_tokens=1).say("\n</", "think")
    assert without(guard, ">\n\n") == (">", False)
    assert guard.row.decide().kind == EDIT, "white space behind the end is optional too"


def test_rule_19_without_a_budget_the_white_space_behind_the_start_is_optional_too():
    """A word was thought where none was allowed: `<think>b</think>`."""
    names = ["<think>", "</think>"]
    for policy in ({"max_thinking_tokens": 0}, {"max_thinking_tokens": 0, "close_message": "hm."}, {"opening": "forbid"}):
        guard = Guarded(added=names, prompt=["<assistant>"], **policy)
        assert guard.forced(1) == "<think>"
        assert without(guard, "\n", "\n\n", b=9) == ("</think>", False), policy
        assert (guard.phase, guard.count["closed_by"]) == ("answering", 2), "not closed by the model"
    guard = Guarded(prompt=["<assistant>", "<th", "ink>"], max_thinking_tokens=0)
    assert without(guard, "\n") == ("</", False), "the first token of several"
    assert guard.forced() == "think>\n\n"
    guard = Guarded(added=names, prompt=["<assistant>", "<think>"], max_thinking_tokens=1)
    assert without(guard, "\n", b=9) == ("b", False), "with a budget the thinking begins"


def test_rule_19_what_stands_in_place_of_the_close_does_not_become_a_start():
    """Where `\\n` could not be, `ba` came behind `a`: the text read `ab`, a start."""
    format = ThinkFormat(name="t", starts=("ab",), ends=("ba",), open_text="ab", close_text="\nba")
    guard = Guarded(format, prompt=["<assistant>", "a", "b"], max_thinking_tokens=1).say("a")
    assert without(guard, "\n", x=9) == ("x", False), "not `b`, which is where the end begins"
    assert guard.forced() == "ba"
    guard = Guarded(format, prompt=["<assistant>", "a", "b"], max_thinking_tokens=1).say("x", "a")
    assert guard.forced() == "\nba", "what is optional, where it is needed"
    assert not guard.violated


def test_rule_19_where_the_end_cannot_be_the_phase_is_still_guarded():
    """`bad_words=["</think>"]` left the row unguarded: EOS in the thinking, or a second start."""
    names = ["<think>", "</think>"]
    guard = Guarded(added=names, prompt=["<assistant>", "<think>", "a"], max_thinking_tokens=1)
    wanted = {"<eos>": 9, "<think>": 8, "b": 0}
    for _ in range(3):
        assert without(guard, "\n", "</think>", **wanted) == ("b", False)
    assert without(guard, **wanted) == ("</think>", True), "closed as soon as it can be"
    assert guard.forced() == "\n\n"
    assert guard.phase == "answering"


def test_rule_10_where_the_start_cannot_be_nothing_illegal_is_sampled():
    guard = Guarded(added=["<think>", "</think>"], prompt=["<assistant>"])
    assert without(guard, "<think>", **{"<eos>": 9, "</think>": 8, "b": 0}) == ("b", False)
    assert guard.phase == "answering"


def test_rule_08_an_opening_that_was_held_up_is_left_out_where_it_no_longer_fits():
    """The start was forced as soon as it could be, and the limit came before the end."""
    names = ["<think>", "</think>"]
    for policy, room in (({"opening": "force"}, 7), ({"opening": "forbid", "min_answer_tokens": 2}, 6)):
        for held, kind in ((0, FORCE), (2, FORCE), (3, EDIT)):
            guard = Guarded(added=names, prompt=["<assistant>"], max_tokens=room + 2, **policy).say(*["\n"] * held)
            assert guard.row.decide().kind == kind, (policy, held)
        assert guard.say("b").phase == "answering"


def test_rule_20_an_answer_has_its_minimum_even_if_preambles_used_up_the_maximum():
    """EOS was forced as the first token of the answer, where another processor had held up a preamble's end."""
    guard = harmony(opening="allow", max_answer_tokens=2)
    guard.say("<|channel|>", *"commentary", "<|message|>", "a", "b", "c", "<|end|>")
    assert guard.forced() == "<|start|>assistant<|channel|>"
    assert guard.say("f").forced() == "inal<|message|>"
    assert guard.row.decide().kind == EDIT
    assert not guard.allows("<|return|>")
    assert not guard.allows("\n"), "but for what can be seen there is no room"
    assert guard.say("a").row.decide().kind == FORCE, "now EOS"


def test_rule_15_where_eos_cannot_be_the_limit_cuts_no_character_either():
    guard = answering(max_answer_tokens=1, max_tokens=12).say("a", *"bcd")
    assert guard.row.decide().kind == FORCE
    left = 12 - guard.count["length"]
    assert guard.row.decide().allows_in_place(guard.id(b"\xf0")) is (left > 3)
    guard.say(*"x" * (left - 1))
    assert not guard.row.decide().allows_in_place(guard.id(b"\xe2")), "one token is left"


def test_rule_15_the_end_of_a_thinking_that_is_forbidden_cuts_no_character():
    guard = Guarded(added=["<think>", "</think>"], prompt=["<assistant>"], opening="forbid")
    guard.forced(1)
    logits = guard.edit(b=0)
    logits[0, [guard.id("\n\n"), guard.id("\n"), guard.id("</think>")]] = -np.inf
    logits[0, guard.id(b"\xe2")] = 9
    guard.program.apply([guard.row], logits)
    assert int(logits.argmax()) == guard.id("b")


def test_rule_20_where_eos_cannot_be_the_answer_is_still_guarded():
    guard = answering(max_answer_tokens=1).say("a")
    assert without(guard, "<eos>", **{"</": 9, "b": 0}) == ("\n", False), "a wish to close again is answered as ever"


def test_headers_that_cannot_be_allow_nothing_illegal():
    guard = Guarded(added=["<think>", "</think>"], prompt=["<assistant>", "<think>", "a"], max_thinking_tokens=1)
    left = np.full((1, guard.vocabulary.num_tokens), -np.inf, np.float32)
    left[0, [guard.id("<eos>"), guard.id("<think>")]] = 0
    before = left.copy()
    assert guard.program.apply([guard.row], left) == 1
    assert (left == before).all(), "nothing legal is finite: the row stays as it was"


def test_rule_07_a_budget_per_block_begins_anew():
    for per, left in (("turn", 2), ("block", 6)):
        guard = thinking("a", "b", max_thinking_tokens=6, max_think_blocks=2, budget_per=per)
        guard.say("</", "think", ">\n\n", "c", "<th", "ink>", "\n")
        for _ in range(left):
            assert guard.phase == "thinking"
            guard.say("x")
        assert guard.phase == "closing", per
    spent = thinking("a", max_thinking_tokens=1, max_think_blocks=2, budget_per="block")
    assert spent.forced() == "\n</think>\n\n"
    assert spent.say("c", "<th").allows("ink>"), "another block has a budget of its own"


def test_rule_10_thinking_that_is_off_was_not_closed_by_the_model():
    guard = Guarded(prompt=["<assistant>"], opening="forbid")
    assert "</think>" in guard.forced()
    assert guard.count["closed_by"] == 2
    output = guard.vocabulary.encode("<think>\n\n</think>\n\nHi.")
    trace = guard.program.explain([guard.id("<assistant>")], output, guard.policy)
    assert trace.closed_by == "budget"
    assert trace.forced


def test_rule_10_an_end_that_says_that_thinking_is_off_is_no_violation():
    format = ThinkFormat(
        name="t", starts=("<think>",), ends=("</think>",), open_text="<think>", close_text="</think>", off_text="</think>"
    )
    guard = Guarded(format, prompt=["<assistant>"], opening="forbid")
    output = guard.vocabulary.encode("</think>Hi.")
    trace = guard.program.explain([guard.id("<assistant>")], output, guard.policy)
    assert (trace.phase, trace.closed_by, trace.violations) == ("answering", "budget", ())
    assert guard.forced() == "</think>"
    assert not guard.violated


def test_rule_03_what_ends_a_sequence_is_asked_of_the_policy():
    """A special token that begins a marker was never banned if the tokenizer calls it EOS, bound or not."""
    for eos, allowed in ((["<eos>"], False), (["<eos>", "x</th"], True)):
        guard = Guarded(
            added=["x</th"], special=["<eos>", "x</th"], prompt=["<assistant>", "<th", "ink>", "a", "</", "think", ">\n\n"],
            eos_token_ids=eos,
        )  # fmt: skip
        assert guard.say("b").allows("x</th") is allowed


def test_markers_that_overlap_are_refused():
    with pytest.raises(FormatError, match=r"ends as the token .* begins"):
        Guarded(
            ThinkFormat(name="bars", starts=("|think|",), ends=("|/think|",), open_text="|think|", close_text="|/think|"),
            added=["|think|", "|/think|"],
        )


def test_rule_19_text_before_the_close_cannot_turn_it_into_a_start():
    """Thinking that ended in `a` was closed with `ba`: the text read `ab`, a start, again and again."""
    with pytest.raises(FormatError, match="does not read as the marker"):
        Guarded(ThinkFormat(name="t", starts=("ab",), ends=("ba",), open_text="ab", close_text="ba"))
    Guarded(ThinkFormat(name="t", starts=("ab",), ends=("ba",), open_text="ab", close_text="\nba"))


# --- ANSWER ---


def as_gpt2_would(text):
    """Ids of PIECES, white space split as GPT-2's pattern does: the last of it stays with the word behind it."""
    ids, at = [], 0
    while at < len(text):
        space = len(text[at:]) - len(text[at:].lstrip("\n"))
        run = text[at : at + space - (at + space < len(text))] if space > 1 else ""
        whole = [piece.encode() for piece in ("\n\n", "</", "think", ">") if (run or text[at:]).startswith(piece)]
        piece = b"\n" if space and run != "\n\n" else whole[0] if whole else text[at].encode()
        ids.append(PIECES.index(piece))
        at += len(piece)
    return ids


def test_rule_19_a_close_is_spelled_as_in_front_of_an_answer():
    """SmolLM2 saw `>` `\n\n`, which its tokenizer never writes before a word, and went on thinking."""
    vocabulary = Vocabulary.from_parts(
        PIECES, added={"<eos>": len(PIECES), "<user>": len(PIECES) + 1}, eos_ids=[len(PIECES)], encode=as_gpt2_would
    )
    assert [PIECES[t] for t in vocabulary.encode("a>\n\n")] == [b"a", b">", b"\n\n"]
    program = ThinkProgram("think", vocabulary)
    for message in ("", "stop."):
        state = program.start([len(PIECES) + 1], ThinkPolicy(max_thinking_tokens=0, close_message=message))
        written = []
        while state.decide().kind == FORCE:
            written.append(PIECES[state.decide().token])
            program.advance(state, state.decide().token)
        assert b"".join(written).decode() == f"<think>\n{message}\n</think>\n\n"
        assert written[-5:] == [b"</", b"think", b">", b"\n", b"\n"]


def test_rule_20_an_answer_of_white_space_alone_cannot_go_on():
    guard = answering()
    for _ in range(8):
        assert guard.allows("\n")
        guard.say("\n")
    assert not guard.allows("\n")
    assert not guard.allows("\t")
    assert guard.allows("a")
    assert guard.say("a").allows("\n")


def test_rule_20_when_the_tokens_left_only_just_suffice_each_must_be_visible():
    guard = answering(min_answer_tokens=2, max_answer_tokens=3)
    assert guard.allows(" ")
    assert not guard.say(" ").allows(" ")


def test_rule_20_eos_is_forced_at_the_maximum():
    guard = answering(max_answer_tokens=2).say("a", "b")
    assert guard.row.decide().kind == FORCE
    assert guard.row.decide().token == guard.id("<eos>")


def test_rule_20_an_answer_is_not_begun_anew_where_the_least_one_no_longer_fits():
    """Visible tokens are counted anew behind an opener or a block: the answer then ended below its minimum."""
    blocks = {"min_answer_tokens": 3, "max_answer_tokens": 5, "max_think_blocks": 2}
    guard = answering(**blocks).say("a", "<th")
    assert guard.allows("ink>")
    guard.say("x", "<th")
    assert not guard.allows("ink>")
    tags = {"starts": ("<think>",), "ends": ("</think>",), "answer_starts": ("<ans>",)}
    format = ThinkFormat(name="t", open_text="<think>", close_text="</think>", **tags)
    prompt = ["<assistant>", "<th", "ink>", "</", "think", ">"]
    guard = Guarded(format, added=["<ans>"], prompt=prompt, min_answer_tokens=3, max_answer_tokens=4)
    assert guard.allows("<ans>")
    assert guard.say("a").allows("<ans>")
    assert not guard.say("b").allows("<ans>")


def test_rule_20_the_prompt_s_white_space_is_not_sampled_answer():
    """A template that prefills `</think>\\n\\n` took one token of max_answer_tokens."""
    guard = Guarded(prompt=["<assistant>", "<th", "ink>", "</", "think", ">", "\n\n"], max_answer_tokens=1)
    assert guard.phase == "answering"
    assert guard.row.decide().kind == EDIT


def test_rule_2_a_forbidden_marker_is_not_spelled_up_to_its_last_character():
    """Refused at `>` alone, models wrote `<think >` and `</think/>`."""
    code = answering().say("`", "</")
    assert not code.allows("think")
    assert code.allows("t")
    assert not code.say("t", "h", "i", "n").allows("k")
    thinking = Guarded(prompt=["<assistant>", "<th", "ink>"]).say("a", " ", "<")
    assert not thinking.allows("think"), "a start inside a block"
    assert thinking.say("/").allows("think"), "the end is legal here"
    tokens = Guarded(added=["<think>", "</think>"], prompt=["<assistant>", "<think>"]).say("a", "</")
    assert not tokens.allows("think"), "the spelling of a token is no end"
    short = ThinkFormat(name="s", starts=("[a]",), ends=("[/a]",), open_text="[a]", close_text="[/a]")
    said = Guarded(short, prompt=["<assistant>", *"[a]b[/a]c"]).say("`", "[", "/")
    assert said.allows("a"), "too short to be taken for it"
    starts, ends = ("<deep>", "<deeply>"), ("</deep>", "</deeply>")
    pair = ThinkFormat(name="p", starts=starts, ends=ends, open_text="<deep>", close_text="</deep>", paired=True)
    deeply = Guarded(pair, prompt=["<assistant>", *"<deeply>a"]).say("<", "/", "d", "e", "e")
    assert deeply.allows("p"), "another end goes on from there"
    assert not deeply.say("p").allows(">")


def test_rule_20_an_output_does_not_end_in_half_a_marker():
    guard = answering(max_answer_tokens=3).say("a", "b")
    assert not guard.allows("</")
    assert not guard.allows("<th")
    assert guard.allows("<")
    guard = answering(max_tokens=7).say("<", "b", "</")
    assert not guard.allows("think")
    assert guard.allows("b")


def test_rule_20a_a_wish_to_close_again_is_answered():
    """Refused at its last character the wish became `</think-step-1>`; refused at once the model ran on for ever."""
    guard = answering()
    assert guard.best(**{"</": 9, "a": 0}) == "a", "the answer has to be written first"
    guard.say("a")
    assert guard.best(**{"</": 9, "a": 0}) == "\n"
    guard.say("\n")
    assert guard.best(**{".</": 9, "a": 0}) == "\n"
    guard.say("\n")
    assert guard.best(**{"</": 9, "a": 0}) == "a", "an empty line is there: what was to follow it?"
    guard.say("a")
    assert guard.best(**{"</": 9, "a": 0}) == "<eos>", "a second paragraph is there"


def test_rule_20a_a_single_token_is_answered_too():
    guard = Guarded(added=["<think>", "</think>"], prompt=["<assistant>", "<think>", "</think>"])
    assert guard.say("a", "`").best(**{"</think>": 9, "a": 0}) == "\n", "a token can mean nothing else, code or not"
    assert guard.say("\n", "\n", "b").edit_of("</think>", 9) == {"<eos>"}


def test_rule_20a_what_may_be_honest_text_is_let_be():
    assert answering().say("a", "<").best(**{"/": 9, "b": 0}) == "b", "one character of an end: banned, not answered"
    assert answering().say("a", '"').best(**{"</": 9}) == "</", "quoted"
    assert answering().say("a", "(", "<").allows("/")
    assert answering().say("`", "a").best(**{"</": 9}) == "</", "code"
    assert answering().say("<", "b", ">").best(**{"</": 9}) == "</", "markup"
    assert answering(markers_in_answer="allow").say("a").best(**{"</": 9}) == "</"
    words = ThinkFormat(name="w", starts=("Think:",), ends=("Here:",), open_text="Think:\n", close_text="\nHere:\n")
    said = Guarded(words, prompt=["<assistant>", *"Think:\na\nHere:\n"]).say("a")
    assert said.say("H").allows("e"), "an end that begins with a letter begins like any word"


def test_rule_20a_no_line_break_no_answer_to_the_wish():
    guard = Guarded(pieces=[piece for piece in PIECES if piece != b"\n"], format=ThinkFormat(
        name="bare", starts=("<think>",), ends=("</think>",), open_text="<think>", close_text="</think>"
    ), prompt=["<assistant>", "<th", "ink>", "</", "think", ">yes"])  # fmt: skip
    assert guard.best(**{"</": 9, "a": 0}) == "a"


def test_rule_20_markers_may_be_quoted_where_that_is_wanted():
    guard = answering(markers_in_answer="allow").say("a", "</", "think")
    assert guard.allows(">")
    assert guard.say(">").phase == "answering"
    assert guard.violated, "the trace will say who is misled"


# --- what is refused when a policy meets a format ---


@pytest.mark.parametrize("field", ["close_message", "extend_message"])
@pytest.mark.parametrize("text", ["so </think>", "hm <think> hm", "ink>"])
def test_messages_that_could_complete_a_marker_are_refused(field, text):
    more = {"min_thinking_tokens": 3, "max_extensions": 1} if field == "extend_message" else {}
    with pytest.raises(PolicyError, match=field):
        Guarded(**{field: text}, **more)


def test_a_message_that_reads_as_a_marker_together_with_the_close_is_refused():
    format = ThinkFormat(name="t", starts=("xyxy",), ends=("xyq",), open_text="xyxy", close_text="xyq")
    with pytest.raises(PolicyError, match="together with the close sequence"):
        Guarded(format, close_message="oh xy")
    assert Guarded(format, close_message="oh x").policy.close_message == "oh x"


def test_a_message_of_special_tokens_is_refused():
    with pytest.raises(PolicyError, match="special token"):
        Guarded(close_message="<eos>")


def test_a_policy_that_forces_eos_needs_one():
    with pytest.raises(PolicyError, match="no EOS is known"):
        Guarded(max_answer_tokens=3, eos_token_ids=[])


# --- 19: the answer's prefix ---


def test_an_answer_begins_with_its_prefix_behind_the_canonical_white_space():
    row = thinking("x", max_thinking_tokens=1, answer_prefix="It is:")
    assert row.forced() == "\n</think>\n\nIt is:"
    assert (row.phase, row.count["visible"], row.count["answer"]) == ("answering", 0, 0)
    assert not row.allows("<eos>")  # the prefix is no answer yet
    assert row.say("7").allows("<eos>")


@pytest.mark.parametrize(
    ("prefix", "written"), [("\n\nIt:", "\n\nIt:"), ("\nIt:", "\n\nIt:"), ("\n\n\nIt:", "\n\n\nIt:"), (" It:", "\n\n It:")]
)
def test_white_space_that_the_prefix_shares_with_the_format_is_written_once(prefix, written):
    assert thinking("x", max_thinking_tokens=1, answer_prefix=prefix).forced() == f"\n</think>{written}"


def test_a_prefix_stands_behind_an_end_that_the_model_wrote():
    assert thinking("x", "</", "think", ">", answer_prefix="It is:").forced() == "\n\nIt is:"
    said = thinking("x", "</", "think", ">\n\n", answer_prefix="It is:")  # its white space is there
    assert said.forced() == "It is:"
    said = thinking("x", "</", "think", ">yes", answer_prefix="It is:")  # the answer has begun by itself
    assert said.forced() == ""
    assert said.count["visible"] == 1


def test_a_prefix_for_forced_closes_alone():
    fields = {"answer_prefix": "It is:", "answer_prefix_on": "forced", "max_thinking_tokens": 4}
    assert thinking("</", "think", ">", **fields).forced() == ""
    assert thinking(*"xxxx", **fields).forced() == "\n</think>\n\nIt is:"


def test_a_prefix_behind_a_close_that_finishes_a_half_written_end():
    assert thinking("x", "\n</", max_thinking_tokens=2, answer_prefix="It is:").forced() == "think>\n\nIt is:"


def test_thinking_that_is_off_has_a_prefix_too_and_an_answer_of_the_prompt_has_none():
    row = Guarded(prompt=["<assistant>"], opening="forbid", answer_prefix="It is:")
    assert row.forced().endswith("</think>\n\nIt is:")
    begun = ["<assistant>", "<th", "ink>", "\n", "</", "think", ">"]
    assert Guarded(prompt=begun, answer_prefix="It is:").forced() == ""
    assert Guarded(prompt=[*begun, "\n\n"], answer_prefix="It is:").forced() == ""


def test_a_tool_call_in_the_thinking_has_no_prefix():
    format = replace(ThinkFormat.from_name("think"), implicit_ends=("<call>",))
    row = thinking("x", format=format, added=["<call>"], answer_prefix="It is:").say("<call>")
    assert (row.phase, row.forced()) == ("answering", "")


def test_a_prefix_that_is_not_said_is_left_out_for_good():
    row = thinking("</", "think", ">", answer_prefix="It is:")
    assert row.row.decide().kind == FORCE
    assert row.say("\n\n", "N").forced() == ""
    assert row.count["visible"] == 1


def test_a_prefix_has_room_in_max_tokens():
    row = thinking(max_tokens=40, answer_prefix="It is:")
    while row.row.decide().kind != FORCE:
        row.say("x")
    assert row.forced().endswith("</think>\n\nIt is:")
    assert row.count["length"] <= 38  # an answer and EOS fit behind it
    with pytest.raises(InputError, match="answer_prefix"):
        Guarded(prompt=["<assistant>"], opening="forbid", answer_prefix="It is:", max_tokens=10)


def test_a_prefix_does_not_count_for_the_most_that_an_answer_may_have():
    row = thinking("</", "think", ">", answer_prefix="It is:", max_answer_tokens=2)
    assert row.forced() == "\n\nIt is:"
    assert row.say("4", "2").best() == "<eos>"


def test_a_prefix_is_behind_each_end_of_several_blocks():
    row = thinking("</", "think", ">", answer_prefix="It:", max_think_blocks=2)
    assert row.forced() == "\n\nIt:"
    row.say("a", "<th", "ink>", "b", "</", "think", ">")
    assert row.forced() == "\n\nIt:"


def test_a_prefix_that_could_write_a_marker_is_refused():
    for prefix in ("</think>", "a<think>b", "<eos>"):
        with pytest.raises(PolicyError, match="answer_prefix="):
            thinking(answer_prefix=prefix)
    with pytest.raises(PolicyError, match="must be a string; leave it out for none"):
        ThinkPolicy(answer_prefix=None)


def test_a_prefix_and_a_grammar_exclude_each_other():
    format = ThinkFormat(name="tokens", starts=("<think>",), ends=("</think>",), open_text="<think>", close_text="</think>")
    program = Guarded(format, added=["<think>", "</think>"]).program
    assert program.bind(ThinkPolicy(), bare_close=True)
    with pytest.raises(PolicyError, match="the grammar decides how the answer begins"):
        program.bind(ThinkPolicy(answer_prefix="It is:"), bare_close=True)


def test_channel_the_final_message_begins_with_the_prefix():
    guard = harmony(max_thinking_tokens=1, answer_prefix="It is:").say("<|channel|>", *"analysis", "<|message|>", "a")
    assert guard.forced() == "<|end|><|start|>assistant<|channel|>"
    guard.say(*"final", "<|message|>")
    assert guard.forced() == "It is:"
    assert (guard.phase, guard.count["visible"]) == ("answering", 0)
