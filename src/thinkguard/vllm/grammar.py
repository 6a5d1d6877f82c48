"""Where vLLM's grammars start: whether requests with structured outputs (a JSON schema, a tool call) can be guarded.

vLLM lets a sequence think freely until its reasoning parser sees the end marker, and masks every token by the grammar from
the next one on. A guard that closes the thinking fits in if that is exactly the token on which its close sequence ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thinkguard.core.names import Seq
from thinkguard.core.program import ThinkProgram
from thinkguard.errors import FormatError
from thinkguard.policy import ThinkPolicy
from thinkguard.vllm import interface


def why_no_grammar(program: ThinkProgram, tokenizer: Any, config: Any) -> str | None:
    """Why requests with structured outputs have to be left alone; None if they can be guarded.

    config: vLLM's StructuredOutputsConfig. The parser is asked, on a short turn that our own sequences open and close.
    """
    name = config.reasoning_parser
    if not name:
        return "without --reasoning-parser their grammar starts with the first token, where the thinking does"
    if getattr(config, "enable_in_reasoning", False):  # 0.11.0 has no such switch
        return "enable_in_reasoning puts the thinking under their grammar too"
    try:
        bound = program.bind(ThinkPolicy(), bare_close=True)
    except FormatError as error:
        return str(error)
    opening, text, closing = bound.sequence(Seq.OPEN), program.vocabulary.encode("x"), bound.sequence(Seq.CLOSE)
    try:
        parser = _parser_of(config, tokenizer)
        by_model = num_free_tokens(parser, [], [*opening, *text, *closing])
        by_prompt = num_free_tokens(parser, opening, [*text, *closing])
    except Exception as error:  # parsers are plugins; vLLM will report it to the requests concerned
        return f"reasoning parser {name!r} does not work with this tokenizer: {error}"
    if by_model == len([*opening, *text, *closing]) or by_prompt == len([*text, *closing]):
        return None
    return f"reasoning parser {name!r} does not let their grammar start right behind {program.format.ends[0]!r}"


def num_free_tokens(parser: Any, prompt: Sequence[int], output: Sequence[int]) -> int:
    """How many tokens of an output come before the grammar starts; -1: it does not."""
    if parser.is_reasoning_end(prompt):
        return 0
    for i, token_id in enumerate(output):
        if interface.ends_reasoning(parser, [*prompt, *output[: i + 1]], [token_id]):
            return i + 1
    return -1


def _parser_of(config: Any, tokenizer: Any) -> Any:
    """The parser as it is for a request that thinks."""
    from vllm.reasoning import ReasoningParserManager

    if plugin := getattr(config, "reasoning_parser_plugin", ""):  # 0.11.0 keeps it from its engine
        ReasoningParserManager.import_reasoning_parser(plugin)
    parser = ReasoningParserManager.get_reasoning_parser(config.reasoning_parser)
    return parser(tokenizer, **interface.parser_kwargs())
