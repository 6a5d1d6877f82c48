"""Checks of what a server makes of thinking: opened, closed, separated, streamed. One cause is one problem."""

from __future__ import annotations

from typing import Final

from thinkguard.doctor.check import Check
from thinkguard.doctor.serving.asked import FLAG, Asked, quoted, skipped
from thinkguard.doctor.serving.client import ServerError
from thinkguard.doctor.serving.reply import Reply, skeleton, squeezed, thought_of
from thinkguard.formats import ThinkFormat, facts_of, prompt_of
from thinkguard.formats.marks import Marks, found_in, telling

_UNKNOWN: Final = "NAME, the one that the model's card names"


def thinking_checks(asked: Asked) -> tuple[Check, ...]:
    """Judge the plain answer, and the streamed one by it."""
    separated = _separated(asked)
    content = _content(asked, separated)
    return _opened(asked), _closed(asked), _answer(asked), separated, content, _stream(asked, content)


def _opened(asked: Asked) -> Check:
    name, plain, thought = "opened", asked.plain, asked.thought
    wanted = "thinking in the answer to a plain question"
    fix = f"open it by force: {FLAG}"
    if asked.reads_policy:
        fix = "thinkguard is loaded: look at its opening= and format= in --additional-config, and at the server's log"
    if plain.reasoning and not thought.opened:
        found = f"none: the reasoning parser takes the answer for thinking ({quoted(plain.reasoning)})"
        return Check(name, "problem", found, wanted, fix)
    if asked.switched:
        found = "thinking is off unless chat_template_kwargs asks for it; asked for from here on"
        return Check(name, "not applicable", found)
    if thought.opened:
        how = "by the chat template" if thought.by_prompt else "by the model"
        return Check(name, "ok", f"{how}, {thought.num_tokens} tokens" + (" or so" if thought.slack else ""))
    found = "none: no reasoning, and no marker of any known family in the content"
    if asked.marks and any(plain.prompt.rstrip().endswith(end) for end in asked.marks.ends):
        found = f"none: the chat template closes it at once ({quoted(plain.prompt[-40:])})"
    return Check(name, "problem", found, wanted, fix, (f"content {quoted(plain.content)}",))


def _closed(asked: Asked) -> Check:
    name, plain, thought = "closed", asked.plain, asked.thought
    if not thought.opened:
        return skipped(name, "there was no thinking: see opened")
    if thought.closed:
        return Check(name, "ok", "before the answer")
    if plain.finish == "length":
        found = f"still thinking after {plain.num_tokens} of {asked.limit} tokens"
    else:
        found = f"finish_reason {plain.finish!r} inside the thinking"
    return Check(name, "problem", found, "an end marker, then an answer", FLAG, (f"ends {quoted(thought.text[-40:])}",))


def _answer(asked: Asked) -> Check:
    name, plain, thought = "answer", asked.plain, asked.thought
    if thought.opened and not thought.closed:
        return skipped(name, "the thinking was not closed: see closed")
    if not thought.opened and plain.reasoning:
        return skipped(name, "it is shown as thinking: see opened")
    wanted = "something visible, and finish_reason 'stop'"
    if not thought.answer:
        return Check(name, "problem", "nothing visible behind the thinking", wanted, f"{FLAG} (min_answer_tokens is 1)")
    if plain.finish != "stop":
        found = f"finish_reason {plain.finish!r} after {plain.num_tokens} tokens"
        fix = "look at the model's EOS in generation_config.json, or cap the answer with max_answer_tokens"
        return Check(name, "problem", found, wanted, fix, (f"answer {quoted(thought.answer)}",))
    return Check(name, "ok", f"{quoted(thought.answer)}, finish_reason 'stop'")


def _parser(asked: Asked) -> str:
    """The remedy for thinking that the server does not separate."""
    return f"vllm serve MODEL --reasoning-parser {parser_for(asked.marks, asked.plain)}"


def parser_for(marks: Marks | None, reply: Reply) -> str:
    """Name vLLM's reasoning parser for a model that writes these markers, and say what there is to say about it.

    It is the one of the families with these markers that begin a turn as the prompt does, if each of those has one; else
    the one of the table's first family with these markers.
    """
    if marks is None:
        return _UNKNOWN
    alike = [name for name in ThinkFormat.names() if {*marks.starts} <= {*ThinkFormat.from_name(name).starts}]
    if reply.tokens and not any(mark in reply.tokens for mark in marks.starts + marks.ends):
        for facts in map(facts_of, alike):
            if facts.vllm_reads_text:
                return f"{facts.vllm_parsers[0]}, which reads markers spelled in several tokens"
    parsers = [facts_of(name).vllm_parsers for name in alike if _begins(name, reply.prompt, marks)]
    if not parsers or not all(parsers):
        parsers = [facts_of(name).vllm_parsers for name in alike[:1]]
    first, *others = dict.fromkeys(parser for listed in parsers for parser in listed) or [_UNKNOWN]
    return f"{first}, or {', '.join(others)}: the model's card says which" if others else first


def _begins(name: str, prompt: str, marks: Marks) -> bool:
    """Whether a family begins an assistant's turn as the prompt ends."""
    header, _ = prompt_of(name)
    prompt = prompt.rstrip()
    for start in marks.starts:
        prompt = prompt.removesuffix(start).rstrip()
    return header is not None and prompt.endswith(header.rstrip())


def _separated(asked: Asked) -> Check:
    name, plain, thought = "separated", asked.plain, asked.thought
    wanted, fix = "the thinking in `reasoning`, the answer in `content`", _parser(asked)
    if not thought.opened:
        return skipped(name, "there was no thinking: see opened")
    inside = found_in(plain.reasoning, asked.marks)
    if inside:
        found = f"`{plain.field}` holds {', '.join(map(repr, inside))}"
        return Check(name, "problem", found, wanted, fix, (quoted(plain.reasoning),))
    if plain.reasoning:
        if plain.raw and thought.closed and skeleton(thought.text) != skeleton(plain.reasoning):
            found = f"`{plain.field}` is not what stands between the markers"
            seen = (f"between the markers {quoted(thought.text)}", f"`{plain.field}` {quoted(plain.reasoning)}")
            return Check(name, "problem", found, wanted, fix, seen)
        return Check(name, "ok", f"in `{plain.field}`")
    marks = found_in(plain.content, asked.marks)
    if marks:
        found = f"no `reasoning`: {', '.join(map(repr, marks))} in the content"
        if asked.marks and not any(start in plain.content for start in asked.marks.starts):
            found += ", the start in the prompt" if thought.by_prompt else ", the start dropped (skip_special_tokens)"
    elif skeleton(thought.text) and skeleton(thought.text) in skeleton(plain.content):
        found = "no `reasoning`: the thinking is in the content, without its markers (skip_special_tokens dropped them)"
    else:
        return Check(name, "could not tell", "the server shows neither the thinking nor its markers")
    return Check(name, "problem", found, wanted, fix, (f"content {quoted(plain.content)}",))


def _leaks(reply: Reply, marks: Marks | None) -> tuple[str, ...]:
    """Markers in the content, or across the seam of reasoning and content."""
    seam = reply.reasoning[-40:] + reply.content[:40]
    halves = {mark for mark in telling() if mark in seam and mark not in reply.reasoning and mark not in reply.content}
    return found_in(reply.content, marks) + tuple(sorted(halves))


def _content(asked: Asked, separated: Check) -> Check:
    name = "content"
    if not asked.plain.reasoning and separated.status == "problem":
        return skipped(name, "the thinking is not separated: see separated")
    replies = {"the plain answer": asked.plain}
    for what, outcome in (("a small budget", asked.capped), ("no budget", asked.zero), ("little room", asked.roomy)):
        if isinstance(outcome, tuple):
            replies[f"the answer with {what}"] = outcome[0]
    leaks = {where: _leaks(reply, asked.marks) for where, reply in replies.items()}
    seen = tuple(
        f"{', '.join(map(repr, marks))} in {where}: {quoted(replies[where].content)}"
        for where, marks in leaks.items()
        if marks
    )
    if not seen:
        return Check(name, "ok", f"no marker of any family in {len(replies)} answers")
    marks = dict.fromkeys(mark for found in leaks.values() for mark in found)
    found = f"{', '.join(map(repr, marks))} in the content of {len(seen)} of {len(replies)} answers"
    fix = f"{FLAG} (an answer then holds no marker); if only the parser misses them: {_parser(asked)}"
    return Check(name, "problem", found, "no marker in an answer", fix, seen)


def _stream(asked: Asked, content: Check) -> Check:
    name, plain, stream = "stream", asked.plain, asked.stream
    wanted = "deltas that add up to the same `reasoning` and `content`"
    fix = f"another or newer reasoning parser ({_parser(asked)}), or clients that do not stream"
    if isinstance(stream, ServerError):
        return Check(name, "problem", str(stream), wanted, "look at the server's log for this request")
    if content.status == "ok":
        leaks = _leaks(stream, asked.marks)
        if leaks:
            found = f"{', '.join(map(repr, leaks))} in the streamed content, not in the whole one"
            return Check(name, "problem", found, wanted, fix, (f"content {quoted(stream.content)}",))
    if _fields(plain) == _fields(stream):
        return Check(name, "ok", "deltas add up to the same reasoning and content")
    seen = [
        f"{what} {field} {quoted(text)}"
        for field in ("reasoning", "content")
        for what, text in (("whole", getattr(plain, field)), ("streamed", getattr(stream, field)))
        if squeezed(getattr(plain, field)) != squeezed(getattr(stream, field))
    ]
    if (plain.tokens and plain.tokens == stream.tokens) or "".join(_fields(plain)) == "".join(_fields(stream)):
        return Check(name, "problem", "the same tokens, but other fields", wanted, fix, tuple(seen))
    if stream.raw and skeleton(thought_of(stream, asked.marks).text) == skeleton(stream.reasoning):
        return Check(name, "ok", "other tokens than in the whole answer (greedy runs may differ), rightly separated")
    found = "another text than in the whole answer (greedy runs may differ)"
    return Check(name, "could not tell", found, evidence=tuple(seen))


def _fields(reply: Reply) -> tuple[str, str]:
    return squeezed(reply.reasoning), squeezed(reply.content)
