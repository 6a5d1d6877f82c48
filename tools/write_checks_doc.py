"""Write the tables of docs/doctor.md: trainers, checks, modes. With --check, only say whether they are up to date."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from thinkguard.doctor.catalogue import PARTS, Entry, entries, unseen
from thinkguard.doctor.page.references import link_of
from thinkguard.doctor.records.trainers import TRAINERS, Trainer

DOC = Path(__file__).resolve().parents[1] / "docs" / "doctor.md"

TITLES = {
    "tokenizer": "Tokenizer and weights",
    "template": "Chat template",
    "data": "Training data",
    "mask": "Loss mask",
    "outputs": "Saved outputs",
    "serving": "Live server (`--url`)",
}

LOSS = {
    "last": "the last turn",
    "assistant": "every assistant turn",
    "completion": "the completion",
    "all": "the whole text",
}
CUTS = {"end": "loses its end", "drop": "is left out"}

MODES = {
    "F1": "reasoning in a field or column that the trainer does not read",
    "F2": "markers half present: unclosed, unopened, doubled, nested, reversed",
    "F3": "markers in other spellings: another case, full width, escaped, with invisible characters",
    "F4": "white space around the markers differs from what trainer and template look for",
    "F5": "records without reasoning teach a reasoning model not to think",
    "F6": "content that is null or a list, where text is expected",
    "F7": "reasoning in a turn with tool calls is replaced by the calls",
    "F8": "a marker quoted in a question or an answer is taken for a real one",
    "F9": "text that switches thinking on or off contradicts the record",
    "F10": "a marker is several tokens, and which ones depends on its neighbours",
    "F11": "markers registered as special tokens are deleted from decoded text",
    "F12": "a marker has two ids, or only one of the two is a token",
    "F13": "rows of added tokens in the embeddings are missing, untrained or not saved",
    "F14": "another tokenizer is served than was trained",
    "F15": "the tokenizer is loaded as another class: spaces and newlines vanish",
    "F16": "decoding puts blanks between the pieces of a marker",
    "F17": "the chat template drops the reasoning of the final turn",
    "F18": "the chat template drops the reasoning of earlier turns while the loss covers them",
    "F19": "the chat template does not read the field that the reasoning is in",
    "F20": "the reasoning, or its markers, come out twice",
    "F21": "an empty block is inserted where a record has no reasoning",
    "F22": "the generation prompt is not what the training text begins with",
    "F23": "the start marker is masked as part of the prompt, and never learned",
    "F24": "a turn that was cut off is taken for an answer and gets an empty block",
    "F25": "content as a list of parts loses its reasoning in the template",
    "F26": "the template was rewritten on its way from training to serving",
    "F27": "`chat_template.jinja` and `tokenizer_config.json` hold different templates",
    "F28": "the switch that is set is not the one that the template knows",
    "F29": "a length limit cuts off the end marker and the answer",
    "F30": "a loss mask found by text misses the markers or the answer",
    "F31": "packed records see each other",
    "F32": "reasoning is masked out of the loss, or weighted down",
    "F33": "a format reward expects the start marker that the prompt already holds",
    "F34": "history is rendered again, and differs from what was sampled",
    "F35": "nothing looks at generations during training",
    "F36": "no reasoning parser, or the wrong one",
    "F37": "the server skips special tokens",
    "F38": "a marker split over two chunks of a stream leaks, or takes a word along",
    "F39": "the parser takes markers in the user's text for the model's",
    "F40": "HTML or Markdown swallows the tag",
    "F41": "a tool call inside the reasoning",
    "F42": "structured output starts before, or swallows, the reasoning",
    "F43": "a stop string or an EOS ends the output inside the reasoning",
    "F44": "the token limit is reached inside the reasoning",
    "F45": "a turn that is to be continued loses its start marker",
    "F46": "another runtime brings its own template, or does not print the token",
    "F47": "the client reads another field than the server writes",
    "F48": "the client's library drops the field",
    "F49": "history goes back without its reasoning, or with tags in the content",
    "F50": "the evaluation extracts the answer wrongly",
}


def cell(text: str) -> str:
    """Spell text for a table's cell: nothing in it is markup but `code`."""
    parts = re.split(r"`([^`]+)`", text)
    spelled = [html.escape(part, quote=False).replace("|", "&#124;") for part in parts]
    prose = [re.sub(r"([*_\[\]\\~])", r"\\\1", part) for part in spelled[::2]]
    code = [f"<code>{part}</code>" for part in spelled[1::2]]
    return "".join(piece for pair in zip(prose, [*code, ""], strict=True) for piece in pair)


def linked(reference: str) -> str:
    """Spell a reference, as a link if it leads somewhere."""
    link = link_of(reference)
    return cell(reference) if link is None else f"[{cell(reference)}]({link})"


def rows(found: Iterable[tuple[str, ...]]) -> str:
    """Spell a table's lines; the first is its head."""
    lines = [f"| {' | '.join(cells)} |\n" for cells in found]
    return lines[0] + "|" + "---|" * (lines[0].count(" | ") + 1) + "\n" + "".join(lines[1:])


def _row(entry: Entry) -> tuple[str, ...]:
    seen = ", ".join(map(linked, entry.references))
    return f"`{entry.name}`", cell(entry.looks_at), cell(entry.why), cell(entry.fix), ", ".join(entry.modes), seen


def _trainer(trainer: Trainer) -> tuple[str, ...]:
    reads = "content, and the message fields that the chat template reads" if trainer.fields else "content"
    turns = "; `tool_calls` replace what stands beside them" if trainer.replaces_tool_turns else ""
    rendered = "the checkpoint's chat template" if trainer.uses_template else "its own"
    limit = f"`{trainer.cutoff_name}`" if trainer.cutoff_name.isidentifier() else trainer.cutoff_name
    tokens = "" if trainer.cutoff is None else f" of {trainer.cutoff:,} tokens"
    return (
        f"`{trainer.name}`",
        reads + turns,
        rendered,
        f"{limit}{tokens}, a longer record {CUTS[trainer.cuts]}",
        LOSS[trainer.loss],
    )


def trainers() -> str:
    """Return the table of trainers."""
    head = ("trainer", "reads of a message", "template", "length by default", "loss by default")
    return rows([head, *map(_trainer, TRAINERS.values())])


def checks() -> str:
    """Return the tables of checks and modes, and what no check can see."""
    pieces = []
    head = ("check", "looks at", "why it matters", "what mends it", "modes", "seen in")
    for part in PARTS:
        chosen = [entry for entry in entries().values() if entry.part == part]
        pieces.append(f"### {TITLES[part]}\n\n{rows([head, *map(_row, chosen)])}\n")
    pieces.append("## The failure modes\n\n")
    lines = [("mode", "what goes wrong", "checks")]
    for mode, title in MODES.items():
        names = [f"`{entry.name}`" for entry in entries().values() if mode in entry.modes]
        lines.append((mode, cell(title), ", ".join(names) or "none, see below"))
    pieces.append(f"{rows(lines)}\n### What no check can see\n\n")
    pieces += [f"- **{mode}**, {cell(MODES[mode])}. {cell(reason)}\n" for mode, reason in unseen().items()]
    return "".join(pieces)


def document(text: str) -> str:
    """Return the page with its tables made anew."""
    for name, made in (("trainers", trainers()), ("checks", checks())):
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, _, rest = text.partition(begin)
        _, mark, after = rest.partition(end)
        if not mark:
            raise SystemExit(f"{DOC}: wanted the lines {begin.strip()} and {end.strip()}, in this order")
        text = f"{before}{begin}\n{made}\n{end}{after}"
    return text


def main() -> int:
    """Write the tables, or compare them."""
    text = DOC.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        fresh = document(text) == text
        print(f"{DOC.name} is up to date" if fresh else f"{DOC.name} is stale: run tools/write_checks_doc.py")
        return 0 if fresh else 1
    DOC.write_text(document(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
