"""A report as one self-contained HTML page: no scripts, nothing loaded from elsewhere.

Every text reaches the page through `page_text`; a policy in the page's head forbids whatever might still be loaded or run.
"""

from __future__ import annotations

import os
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Final

from thinkguard import __version__
from thinkguard.doctor.catalogue import PARTS
from thinkguard.doctor.check import Check, Report
from thinkguard.doctor.page.plots import svg_of
from thinkguard.doctor.page.references import link_of
from thinkguard.doctor.page.text import evidence_html, fix_html, is_pasted, prose_html, visible
from thinkguard.errors import InputError

_GENERATOR: Final = '<meta name="generator" content="thinkguard'
_HEAD_BYTES: Final = 1024
_MOST_EVIDENCE: Final = 20
_PLACES: Final = {
    "tokenizer": "the tokenizer",
    "template": "the chat template",
    "data": "the data",
    "mask": "the loss mask",
    "outputs": "the saved outputs",
    "serving": "the server",
}
_WORST_FIRST: Final = ("problem", "note", "ok", "could not tell", "skipped", "not applicable")


def write_page(report: Report, path: Path) -> None:
    """Write the report as a page, over an older one if there is one.

    InputError if something else stands at `path`, or nothing can be written there.
    """
    refuse_other_files(path)
    text = page_of(report)
    target = Path(os.path.realpath(path))
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(name, target.stat().st_mode if target.exists() else 0o666 & ~_umask())
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise InputError(f"--html {path}: cannot be written ({error.strerror}); choose another file") from error


def refuse_other_files(path: Path) -> None:
    """Raise InputError if writing a page to `path` would destroy what is no page of ours."""
    if not path.exists():
        if not path.parent.is_dir():
            raise InputError(f"--html {path}: there is no folder {path.parent}; make it, or choose another file")
        return
    if not path.is_file():
        raise InputError(f"--html {path}: is no file; name the file that the page is to be written to")
    with path.open("rb") as file:
        if _GENERATOR.encode() not in file.read(_HEAD_BYTES):
            raise InputError(f"--html {path}: holds something else than a report of thinkguard; choose another file")


def page_of(report: Report) -> str:
    """Return the whole page; ImportError without jinja2, or without matplotlib for a report with plots."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise ImportError(f"pages need jinja2 ({error}): pip install 'thinkguard[doctor]'") from error

    def spelled(value: object) -> object:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=spelled,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name, function in {"prose": prose_html, "fix": fix_html, "evidence": evidence_html}.items():
        environment.filters[name] = lambda text, function=function: Markup(function(text))
    environment.filters["link"] = link_of
    plots = [(plot, Markup(svg_of(plot, f"plot{number}"))) for number, plot in enumerate(report.plots, 1)]
    text: str = environment.get_template("page.html.jinja").render(
        report=report,
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        version=__version__,
        now=datetime.now().astimezone(),
        verdict=_verdict(report),
        places=[(place, *_standing(part, report)) for part, place in _PLACES.items()],
        fired=_by_part(report, ("problem", "note")),
        most_evidence=_MOST_EVIDENCE,
        plots=plots,
        facts=[(name, value, is_pasted(value)) for name, value in report.facts],
        fine=_by_part(report, ("ok",)),
        unjudged=_by_part(report, ("could not tell", "skipped", "not applicable")),
    )
    return text


def _verdict(report: Report) -> str:
    """Sum the report up in one sentence."""
    if report.problems:
        parts = [_PLACES[part] for part in PARTS if any(check.entry.part == part for check in report.problems)]
        where = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
        return f"{_counted(len(report.problems), 'problem')}: reasoning or answers are lost in {where}"
    notes = sum(check.status == "note" for check in report.checks)
    unknown = sum(check.status == "could not tell" for check in report.checks)
    if not notes and not any(check.status == "ok" for check in report.checks):
        return "Nothing could be judged"
    more = [f"{_counted(notes, 'hazard')} noted"] * bool(notes)
    more += [f"{_counted(unknown, 'check')} could not tell"] * bool(unknown)
    return ", ".join(["No problem found", *more])


def _standing(part: str, report: Report) -> tuple[str, str]:
    """Return the worst status of a part of the way from vocabulary to server, and what to write beside it."""
    found = [check.status for check in report.checks if check.entry.part == part]
    if not found:
        return "not examined", "not examined"
    worst = next(status for status in _WORST_FIRST if status in found)
    if worst in ("problem", "note"):
        return worst, _counted(found.count(worst), worst)
    return (worst, f"{found.count('ok')} ok") if worst == "ok" else ("not examined", worst)


def _by_part(report: Report, statuses: tuple[str, ...]) -> list[Check]:
    """Return the checks with one of the statuses: in the statuses' order, and within a status in that of the parts."""
    checks = [check for check in report.checks if check.status in statuses]
    return sorted(checks, key=lambda check: (statuses.index(check.status), PARTS.index(check.entry.part)))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
