"""The process in which foreign templates run: it reads requests as JSON lines, renders, and answers.

Once it is set up it can open no file, start no process and use no more memory than `MAX_BYTES`. A request that exceeds
its CPU time ends the process, whatever code runs and even if the parent is gone.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from typing import Any, Final

from thinkguard.formats.renders import compile_template, failure, generate, render

MAX_BYTES: Final = 1 << 30
MAX_CHARS: Final = 4 << 20
_NUM_COMPILED: Final = 4
_SPARE_S: Final = 2  # by which RLIMIT_CPU exceeds a request's CPU seconds: it counts whole ones, and the timer is finer


def main() -> None:
    """Answer every line of stdin with one line per job on stdout."""
    render("{{ messages }}{{ strftime_now('%Y') }}{{ missing.field }}")  # what is imported late is imported now
    _confine()
    _answer({})  # ready: time counts from here
    compiled: dict[str, Any] = {}
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit_cpu(request["limit_s"])
        for answer in _answers(request, compiled):
            _answer(answer)
        _set_timer(0)


def _answers(request: dict[str, Any], compiled: dict[str, Any]) -> Iterator[dict[str, Any]]:
    source = request["source"]
    if request["kind"] == "renders":
        yield _renders(source, **request["tokens"])
        return
    try:
        if source not in compiled:
            if len(compiled) >= _NUM_COMPILED:
                del compiled[next(iter(compiled))]
            compiled[source] = compile_template(source)
        error = ""
    except Exception as raised:
        error = failure(raised)
    for job in request["jobs"]:
        yield {"error": error} if error else _rendered(compiled[source], job)


def _rendered(template: Any, context: dict[str, Any]) -> dict[str, Any]:
    try:
        text, generation = generate(template, context, MAX_CHARS)
    except Exception as error:  # a template may raise anything that Python can
        return {"error": failure(error)}
    return {"text": text, "generation": generation}


def _renders(source: str, **tokens: str) -> dict[str, Any]:
    renders = render(source, **tokens)
    texts = {"prompts": dict(renders.prompts), "turn": renders.turn, "earlier": renders.earlier, "call": renders.call}
    whole = [text for prompts in renders.chats.values() for text in prompts.values()]
    size = sum(map(len, [*renders.prompts.values(), renders.turn, renders.earlier, renders.call, *whole]))
    if size > MAX_CHARS:
        return {"errors": [f"ValueError: the template wrote more than {MAX_CHARS} characters"]}
    return {**texts, "errors": renders.errors, "chats": renders.chats}


def _answer(value: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
    sys.stdout.buffer.flush()


def _confine() -> None:
    try:
        import resource
    except ImportError:  # no such limits on Windows; the parent's clock holds all the same
        return
    limits = {resource.RLIMIT_AS: MAX_BYTES, resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 0}
    if hasattr(resource, "RLIMIT_NPROC"):
        limits[resource.RLIMIT_NPROC] = 0
    for kind, limit in limits.items():
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):  # a system that does not know this limit, or has a lower one
            continue


def _limit_cpu(limit_s: float) -> None:
    _set_timer(limit_s)
    try:
        import resource
    except ImportError:
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime + limit_s) + _SPARE_S
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _set_timer(limit_s: float) -> None:
    """Have SIGPROF end this process after so many seconds of CPU time, whatever it is at; 0 for never."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a parent that ignores it hands that down
        signal.setitimer(signal.ITIMER_PROF, limit_s)


if __name__ == "__main__":
    main()
