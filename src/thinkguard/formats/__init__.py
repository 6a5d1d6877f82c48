"""How model families write reasoning, and which of them a tokenizer and its chat template show."""

from thinkguard.formats.format import (
    DEFAULT_INNER,
    TURN_STARTS,
    ChannelGrammar,
    FamilyFacts,
    ThinkFormat,
    describe,
    facts_of,
    prompt_of,
)

__all__ = [
    "DEFAULT_INNER",
    "TURN_STARTS",
    "ChannelGrammar",
    "FamilyFacts",
    "ThinkFormat",
    "describe",
    "facts_of",
    "prompt_of",
]
