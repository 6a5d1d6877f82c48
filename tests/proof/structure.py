"""What an output has to be: regular expressions over its text, by what a policy asks for."""

from __future__ import annotations

from typing import NamedTuple

from proof.regular import ANYTHING, Language, any_of, one_of, text, without
from proof.worlds import World

from thinkguard import ThinkPolicy

WHITE = b" \t\n\r\f\v"


class Shape(NamedTuple):
    """What of a policy the structure depends on."""

    opening: str
    blocks: int
    markers: str
    loops: bool = False  # whether a loop closes: one of tokens without text does so inside a character, too

    @classmethod
    def of(cls, policy: ThinkPolicy) -> Shape:
        return cls(policy.opening, policy.max_think_blocks, policy.markers_in_answer, policy.loop_tokens > 0)


def structure(world: World, shape: Shape) -> Language:
    """The regular expression of an output without its EOS."""
    if world.channel:
        return _messages(world, shape)
    start, end = text(*world.starts), text(*world.ends)
    quotes = shape.markers == "allow"
    answer = ANYTHING if quotes else without(*world.starts, *world.ends)
    reasoning, calls = without(*world.markers, *world.implicit), text(*world.implicit)  # an opener belongs to the answer
    pairs = zip(map(text, world.starts), map(text, world.ends), strict=True) if world.paired else [(start, end)]
    block = any_of(opened + reasoning + (own | calls) for opened, own in pairs)
    if shape.opening == "forbid":
        off = text(world.off) if world.off else text(world.start) + one_of(WHITE).star() + text(world.end)
        return off + answer
    if shape.opening == "force":
        return (block + answer).times(0, shape.blocks - 1) + block + answer
    return (answer + block).times(0, shape.blocks) + answer


def _messages(world: World, shape: Shape) -> Language:
    """Reasoning and preambles, each with a header, then a final answer or a tool call."""
    channel = world.channel
    tool, body, stop = channel.tool_headers[0], channel.body, channel.message_end
    controls = [name for name in (*world.added, *world.eos) if name in (*world.special, channel.call_end)]
    again = text(world.fields["assistant_headers"][0])
    words = without(*controls)
    unnamed, named = without(*controls, channel.recipient), text(channel.recipient) + words
    reasoning = text(world.start) + words + text(world.end)
    preamble = text(tool) + unnamed + text(body) + words + text(stop)
    final = text(world.openers[0]) + words
    call = text(tool) + unnamed + named + text(body) + words
    if shape.opening == "forbid":
        return final
    preambles = (preamble + again).star()
    block = reasoning + again + preambles
    if shape.opening == "force":
        return block.times(1, shape.blocks) + (final | call)
    return preambles + block.times(0, shape.blocks) + (final | call)
