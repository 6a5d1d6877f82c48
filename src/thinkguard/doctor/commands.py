"""The commands `doctor` and `audit`: this file parses and prints, the work is done elsewhere."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinkguard.doctor.check import Report
from thinkguard.doctor.records.trainers import TRAINERS
from thinkguard.errors import InputError

if TYPE_CHECKING:
    from thinkguard.doctor.audit.plan import AuditOptions
    from thinkguard.doctor.audit.summary import Summary
    from thinkguard.doctor.template.sandbox import Renderer

FINE, TO_FIX = 0, 1


def add_commands(commands: Any, positive: Callable[[str], int], seconds: Callable[[str], float]) -> None:
    """Add both parsers to the subparsers of the command line."""
    doctor = commands.add_parser(
        "doctor", help="find where thinking gets lost: tokenizer, chat template, data, loss mask, server"
    )
    doctor.add_argument("path", nargs="?", type=Path, metavar="PATH", help="a checkpoint or tokenizer folder")
    doctor.add_argument(
        "--data", nargs="+", type=Path, default=[], metavar="FILE_OR_DIR", help="the training data, or saved outputs"
    )
    doctor.add_argument("--against", type=Path, metavar="PATH", help="the tokenizer or checkpoint that is served")
    doctor.add_argument("--template", type=Path, metavar="FILE", help="the chat template, instead of the folder's own")
    _add_shared(doctor, positive)
    doctor.add_argument(
        "--fix-template", type=Path, metavar="OUT.jinja", help="write a template that keeps reasoning in training texts"
    )
    doctor.add_argument(
        "--fix-tokenizer", type=Path, metavar="OUT_DIR", help="write a tokenizer with the markers added, not special"
    )
    doctor.add_argument("--url", metavar="URL", help="an OpenAI-compatible server to ask: http://HOST:PORT/v1")
    doctor.add_argument("--model", metavar="NAME", help="which of its models (default: the first)")
    doctor.add_argument("--api-key", metavar="KEY", help="the server's key (default: OPENAI_API_KEY, if set)")
    doctor.add_argument(
        "--timeout", type=seconds, default=60.0, metavar="S", help="seconds that one answer may take (default: 60)"
    )
    doctor.set_defaults(run=_doctor)

    audit = commands.add_parser("audit", help="the doctor's look at training data or saved outputs alone")
    audit.add_argument("paths", nargs="*", type=Path, metavar="FILES", help="JSON, JSONL, Parquet, Arrow, or folders")
    audit.add_argument("--tokenizer", type=Path, metavar="PATH", help="count tokens with this tokenizer or checkpoint")
    _add_shared(audit, positive)
    audit.add_argument(
        "--prompt-opens",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether the prompt opens the thinking, so that texts begin inside it (default: as the template does)",
    )
    audit.add_argument("--engine", choices=("local", "ray"), default="local", help="what runs it (default: local)")
    audit.add_argument(
        "--merge", nargs="+", type=Path, default=[], metavar="JSON", help="add what `audit --json` said about other shards"
    )
    audit.add_argument(
        "--fix", type=Path, metavar="OUT.jsonl", help="write the records made regular; the rest to OUT.rejected.jsonl"
    )
    audit.set_defaults(run=_audit)


def _add_shared(parser: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    parser.add_argument("--trainer", choices=tuple(TRAINERS), help="what reads the data (default: all of it is read)")
    parser.add_argument("--format", metavar="NAME", help="the family's name (default: detected)")
    parser.add_argument("--cutoff-len", type=positive, metavar="N", help="tokens of a record (default: the trainer's)")
    parser.add_argument("--processes", type=positive, metavar="N", help="for the data (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as one self-contained page")


def _doctor(options: argparse.Namespace) -> int:
    _check_page(options)
    if options.path is None and options.url is None:
        raise InputError(
            "nothing to examine: give PATH, a checkpoint or tokenizer folder, or --url http://HOST:PORT/v1, a live server"
        )
    if options.path is None:
        names = [name for name in ("data", "against", "template", "fix_template", "fix_tokenizer") if getattr(options, name)]
        if names:
            raise InputError(f"--{names[0].replace('_', '-')} needs PATH, the checkpoint or tokenizer folder it belongs to")
    from thinkguard.doctor.template.sandbox import Renderer

    with Renderer() as renderer:  # one for all steps: it remembers which template never ends
        return _examine(options, renderer)


def _examine(options: argparse.Namespace, renderer: Renderer) -> int:
    reports = []
    if options.path is not None:
        from thinkguard.doctor.examine import examine

        reports.append(
            examine(
                options.path,
                data=options.data,
                against=options.against,
                template=options.template,
                trainer=options.trainer,
                cutoff_len=options.cutoff_len,
                format=options.format,
                num_processes=options.processes,
                progress=sys.stderr.isatty(),
                renderer=renderer,
            )
        )
    if options.url is not None:
        from thinkguard.doctor.serving.server import examine_server

        key = options.api_key or os.environ.get("OPENAI_API_KEY")
        reports.append(examine_server(options.url, options.model, key, options.timeout))
    report = reports[0]
    if len(reports) == 2:
        subject = "; ".join(part.subject for part in reports)
        report = replace(report, subject=subject, checks=report.checks + reports[1].checks)
    status = _print_report(report, options)
    if options.fix_template is not None or options.fix_tokenizer is not None:
        sys.stdout.flush()
        _mend(options, renderer)
    return status


def _mend(options: argparse.Namespace, renderer: Renderer) -> None:
    """Write the mended files. The report is printed before, so that it is seen even if mending fails."""
    from thinkguard.doctor.examine import mend_template, mend_tokenizer

    lines = []
    if options.fix_template is not None:
        lines += mend_template(
            options.path, options.fix_template, template=options.template, format=options.format, renderer=renderer
        )
    if options.fix_tokenizer is not None:
        lines += mend_tokenizer(options.path, options.fix_tokenizer, format=options.format, renderer=renderer)
    for line in lines:
        print(line, file=sys.stderr)


def _check_page(options: argparse.Namespace) -> None:
    """Refuse an unusable place for the page now, before the examination and not after it."""
    if options.html is not None:
        from thinkguard.doctor.page.write import refuse_other_files

        refuse_other_files(options.html)


def _print_report(report: Report, options: argparse.Namespace, summary: Summary | None = None) -> int:
    """Print a report, and write its page if one is wanted; returns the exit status."""
    if options.html is not None:
        from thinkguard.doctor.page.write import write_page

        write_page(report, options.html)
        print(f"{options.html}: the report as a page", file=sys.stderr)
    if options.json:
        values = report.as_dict() | ({} if summary is None else {"summary": summary.as_dict()})
        print(json.dumps(values, ensure_ascii=False, indent=2))
    else:
        print(report.as_text())
    print(report.summary(), file=sys.stderr)
    return TO_FIX if report.problems else FINE


def _audit(options: argparse.Namespace) -> int:
    from thinkguard.doctor.audit.data_checks import data_checks, data_facts, data_plots
    from thinkguard.doctor.audit.mend import mend, refuse
    from thinkguard.doctor.audit.run import audit
    from thinkguard.doctor.audit.summary import Summary

    _check_page(options)
    if not options.paths and not options.merge:
        raise InputError("nothing to audit: give JSON, JSONL, Parquet or Arrow files, or folders of them, or --merge JSON")
    if options.fix is not None and not options.paths:
        raise InputError(f"--fix {options.fix} needs the records themselves: give their files")
    if options.fix is not None:
        refuse(options.paths, options.fix, options.trainer)
    audit_options = _options(options)
    summary = audit(options.paths, audit_options) if options.paths else Summary()
    for path in options.merge:
        _merge(summary, path)
    if options.fix is not None:
        print(mend(options.paths, options.fix, audit_options).as_text(), file=sys.stderr)
    subject = ", ".join(map(str, [*options.paths, *options.merge]))
    checks, facts = data_checks(summary, audit_options), data_facts(summary, audit_options)
    return _print_report(Report(subject, checks, facts, data_plots(summary, audit_options)), options, summary)


def _options(options: argparse.Namespace) -> AuditOptions:
    from thinkguard.doctor.audit.plan import AuditOptions
    from thinkguard.formats import ThinkFormat

    format = None if options.format is None else ThinkFormat.from_name(options.format)
    opens = options.prompt_opens
    if options.tokenizer is not None and (format is None or opens is None):
        from thinkguard.doctor.examine import read
        from thinkguard.doctor.template.sandbox import Renderer
        from thinkguard.doctor.tokenizer.checkpoint import load_checkpoint

        with Renderer() as renderer:
            checkpoint, _ = load_checkpoint(options.tokenizer, format=options.format, renderer=renderer)
            format = checkpoint.format if format is None else format
            opens = read(renderer, checkpoint).prompt_state == "open" if opens is None else opens
    return AuditOptions(
        trainer=options.trainer,
        format=format,
        tokenizer_path=options.tokenizer,
        cutoff_len=options.cutoff_len,
        num_processes=options.processes,
        engine=options.engine,
        progress=sys.stderr.isatty(),
        prompt_opens=opens,
    )


def _merge(summary: Summary, path: Path) -> None:
    try:
        summary.merge(_saved(path))
    except InputError as error:
        raise InputError(f"--merge {path}: {error}") from None


def _saved(path: Path) -> Summary:
    from thinkguard.doctor.audit.summary import Summary

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"not JSON ({error}); give what `thinkguard audit --json` printed") from None
    if not isinstance(values, dict) or "summary" not in values:
        raise InputError("holds no summary; give what `thinkguard audit --json` printed")
    return Summary.from_dict(values["summary"])
