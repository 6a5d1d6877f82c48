"""The command line: it parses and prints, the work is done elsewhere. Exits with 0 fine, 1 to fix, 2 could not run."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinkguard import ThinkFormat, ThinkGuardError, ThinkPolicy, __version__
from thinkguard.bench.commands import add_command
from thinkguard.doctor.commands import add_commands
from thinkguard.errors import InputError
from thinkguard.formats import describe

if TYPE_CHECKING:  # each process of an audit imports this file again, and needs no numpy
    from thinkguard.core.program import ThinkProgram
    from thinkguard.core.trace import ThinkTrace

FINE, TO_FIX, COULD_NOT_RUN = 0, 1, 2
_PROMPT_IDS, _PROMPT = ("prompt_ids", "prompt_token_ids"), ("prompt",)
_OUTPUT_IDS = ("output_ids", "token_ids", "completion_ids")
_OUTPUT = ("output", "text", "completion", "response", "generated_text")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    if arguments is None and options.command in ("doctor", "audit"):  # a process of its own, that needs no model
        from thinkguard.doctor.tokenizer.checkpoint import spare_torch

        spare_torch()
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (`| head`) has seen enough; what is still to be flushed goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return COULD_NOT_RUN
    except (ThinkGuardError, OSError, UnicodeError) as error:
        print(f"thinkguard {options.command}: {error}", file=sys.stderr)
        return COULD_NOT_RUN
    except ImportError as error:
        hint = "" if "pip install" in str(error) else "; install it with: pip install 'thinkguard[hf]'"
        print(f"thinkguard {options.command}: {error}{hint}", file=sys.stderr)
        return COULD_NOT_RUN
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="thinkguard", description="Hold a reasoning model to think, then answer.")
    parser.add_argument("--version", action="version", version=f"thinkguard {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="a small model's questions alone and guarded, or a real model's story")
    demo.add_argument(
        "--model", choices=("embedded", "lab"),
        help="the embedded models, or the real one of `make lab` (default: lab if it is there)",
    )  # fmt: skip
    demo.add_argument("--num", type=_positive, metavar="N", help="questions (default: 64 of the embedded, 8 of the lab's)")
    demo.add_argument("--budget", type=_count, metavar="N", help="max_thinking_tokens (default: 160, 48)")
    demo.add_argument("--json", action="store_true", help="print the table as JSON")
    demo.set_defaults(run=_demo)

    explain = commands.add_parser("explain", help="say what happened in outputs saved as JSONL by any engine")
    explain.add_argument("--tokenizer", required=True, metavar="DIR", help="tokenizer or checkpoint folder")
    explain.add_argument(
        "--output", required=True, metavar="FILE", help="JSONL with a text or token ids per line; - is stdin"
    )
    explain.add_argument(
        "--prompt", metavar="TEXT", help="the prompt of lines without one; where it opens the thinking: $'<think>\\n'"
    )
    explain.add_argument("--format", metavar="NAME", help="the family's name (default: detected)")
    explain.add_argument(
        "--policy", metavar="JSON", help="the policy that guarded outputs were made under (default: judge the structure)"
    )
    explain.add_argument(
        "--max-tokens", type=_positive, metavar="N", help="the outputs' limit, if the guard knew it while they were made"
    )
    explain.add_argument("--json", action="store_true", help="print one JSON object per output")
    explain.set_defaults(run=_explain)

    add_commands(commands, _positive, _seconds)
    add_command(commands, _positive)

    formats = commands.add_parser("formats", help="list the model families, or print one")
    formats.add_argument("name", nargs="?", metavar="NAME")
    formats.add_argument("--json", action="store_true", help="print JSON")
    formats.set_defaults(run=_formats)
    return parser


def _positive(text: str) -> int:
    value = _count(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _demo(options: argparse.Namespace) -> int:
    from thinkguard.demo import lab

    there = lab.has_story()
    if options.model == "lab" and not there:
        raise InputError(f"--model lab: no {lab.STORY_MODEL} in {lab.folder()}; run `make lab` in a checkout of thinkguard")
    if options.model == "lab" or (options.model is None and there):
        from thinkguard.demo import story

        given = {"num": options.num, "budget": options.budget}
        print(story.run(**{key: value for key, value in given.items() if value is not None}, as_json=options.json))
        return FINE
    from thinkguard.demo.run import run

    print(run(options.num or 64, 160 if options.budget is None else options.budget, options.json))
    return FINE


def _formats(options: argparse.Namespace) -> int:
    if options.name:
        format = ThinkFormat.from_name(options.name)
        if options.json:
            from dataclasses import asdict

            print(json.dumps(asdict(format), ensure_ascii=False, indent=2))
        else:
            print(describe(format))
        return FINE
    refused = ThinkFormat.refused()
    if options.json:
        print(json.dumps({"formats": ThinkFormat.names(), "refused": refused}, ensure_ascii=False, indent=2))
        return FINE
    for name in ThinkFormat.names():
        format = ThinkFormat.from_name(name)
        print(f"{name:24}{format.starts[0]} ... {format.ends[0]}".replace("\n", "\\n"))
    for name, reason in refused.items():
        print(f"{name:24}refused: {reason}")
    return FINE


def _policy_of(text: str | None) -> ThinkPolicy:
    """Return the policy to judge by; without one, no token was due and only the structure counts."""
    if text is None:
        return ThinkPolicy(opening="allow")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"--policy {text}: not JSON ({error.msg})") from None
    if not isinstance(values, Mapping):
        raise InputError(f"--policy {text}: wanted a JSON object of policy fields")
    return ThinkPolicy.from_mapping(values)


def _explain(options: argparse.Namespace) -> int:
    from thinkguard.core.program import ThinkProgram

    policy = _policy_of(options.policy)
    program = ThinkProgram(options.format, options.tokenizer)
    prompt = [] if options.prompt is None else program.vocabulary.encode(options.prompt)
    num = good = unopened = 0
    for line, record in _records(options.output):
        try:
            trace = _trace_of(program, policy, record, prompt, options.max_tokens)
        except ThinkGuardError as error:
            raise InputError(f"{options.output}, line {line}: {error}") from None
        num += 1
        unopened += not trace.think_blocks and any("end marker out" in v.what for v in trace.violations)
        thought = trace.think_blocks > 0 or trace.closed_by != "none" or options.policy is not None
        good += trace.well_formed and thought
        if options.json:
            values = {"line": line, **trace.as_dict(), "well_formed": trace.well_formed and thought}
            print(json.dumps(values, ensure_ascii=False))
        else:
            print(_summary(line, trace, thought))
    if not num:
        raise InputError(f"{options.output} holds no outputs: wanted one JSON object per line")
    print(f"{good} of {num} outputs are well-formed ({program.format.name}, {options.output})", file=sys.stderr)
    if unopened and options.prompt is None:
        opened = f"${program.format.open_text!r}"
        print(f"{unopened} end a thinking that nothing opened; if the prompt did: --prompt {opened}", file=sys.stderr)
    return FINE if good == num else TO_FIX


def _records(path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (line number, record) of each line of a JSONL file."""
    with nullcontext(sys.stdin) if path == "-" else Path(path).open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            text = text.removeprefix("\ufeff") if number == 1 else text
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}, line {number}: not JSON ({error.msg}); each line has to be one object") from None
            if not isinstance(record, Mapping):
                raise InputError(f"{path}, line {number}: {type(record).__name__} instead of an object with fields")
            yield number, record


def _trace_of(
    program: ThinkProgram, policy: ThinkPolicy, record: Mapping[str, Any], default: list[int], max_tokens: int | None
) -> ThinkTrace:
    prompt = _ids(program, record, _PROMPT_IDS, _PROMPT)
    output = _ids(program, record, _OUTPUT_IDS, _OUTPUT)
    if output is None:
        raise InputError(f"has the fields {', '.join(record)}, wanted one of {', '.join(_OUTPUT_IDS + _OUTPUT)}")
    prompt = default if prompt is None else prompt
    trace: ThinkTrace = program.explain(prompt, output, policy, max_tokens=max_tokens)
    return trace


def _ids(program: ThinkProgram, record: Mapping[str, Any], ids: Sequence[str], texts: Sequence[str]) -> list[int] | None:
    for name in ids:
        if record.get(name) is not None:
            if not isinstance(record[name], list):
                raise InputError(f"{name} is of type {type(record[name]).__name__}: wanted a list of token ids")
            return list(record[name])
    for name in texts:
        if isinstance(record.get(name), str):
            text = record[name].encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a pair: U+FFFD
            return program.vocabulary.encode(text)
    for name in texts:
        if record.get(name) is not None:
            raise InputError(f"{name} is of type {type(record[name]).__name__}: wanted text, a rendered chat")
    return None


def _summary(line: int, trace: ThinkTrace, thought: bool) -> str:
    """Say what happened in one output; `thought` says whether its thinking was opened."""
    state = "well-formed" if trace.well_formed and thought else "not well-formed"
    counts = f"{trace.think_blocks} think block(s), {trace.thinking_tokens} thinking tokens, closed by {trace.closed_by}"
    forced = f"{len(trace.forced)} forced tokens" + (f", {len(trace.skipped)} skipped" if trace.skipped else "")
    lines = [f"{line}: {state}; {counts}; {forced}; answer {trace.answer[:60]!r}"]
    lines += [] if thought else ["    the thinking was never opened"]
    lines += [] if trace.answer else ["    no answer"]
    lines += [f"    token {violation.position}: {violation.what}" for violation in trace.violations]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
