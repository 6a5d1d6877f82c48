"""Templates are foreign code: they render in a process of their own, with a limit on time, memory and output.

Time is CPU time of that process: what a busy machine makes slow is not taken for endless.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from thinkguard.formats.renders import USER, Renders

_RUN: Final = "import sys; sys.path[:] = sys.argv[1:]; from thinkguard.doctor.template.sandbox_child import main; main()"
_MAX_DEATHS: Final = 3
_START_S: Final = 60
_PATIENCE: Final = 20 if hasattr(signal, "setitimer") else 1
"""A call may last so many times its CPU time by the wall clock; once where no timer of CPU time exists."""
_OUT_OF_TIME: Final = {-getattr(signal, name) for name in ("SIGPROF", "SIGXCPU") if hasattr(signal, name)}
"""The exit statuses of a child that has used up its CPU time."""
_TRIES: Final = 2  # calls in which a template may use up its time
_SHARE: Final = 8  # in each further call it gets one part in so many of its time


@dataclass(frozen=True, slots=True)
class Job:
    """One conversation to render; `bos_token`, `eos_token`, `tools` and the switches go into `kwargs`."""

    messages: Sequence[Mapping[str, Any]]
    add_generation_prompt: bool
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def context(self) -> dict[str, Any]:
        """Return the variables that transformers hands to a template."""
        variables = {"messages": list(self.messages), "tools": None, "documents": None}
        return {**variables, "add_generation_prompt": self.add_generation_prompt, **self.kwargs}


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a template wrote for a job: a text, or the reason why there is none."""

    text: str | None
    error: str = ""
    generation: tuple[tuple[int, int], ...] = ()  # character spans of {% generation %} blocks


class Renderer:
    """Renders templates in one child process, started when first needed and replaced when it is stuck or dead.

    A context manager; not for several threads at once. `limit_s` is the CPU time of one call of `render` or `renders`. A
    template that has used it up in two calls gets an eighth of it in each later call; one that used it up on the single
    question of `renders` is not rendered again.
    """

    def __init__(self, limit_s: float = 5.0) -> None:
        self.limit_s = limit_s
        self._child: subprocess.Popen[bytes] | None = None
        self._ended: Counter[str] = Counter()  # template -> calls in which it used up its time
        self._endless: dict[str, str] = {}  # template that does not get through one question -> its error

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):  # the interpreter may be half gone
            self.close()

    def close(self) -> None:
        """End the child process; a later call starts another one."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        child.wait()

    def render(self, source: str, jobs: Sequence[Job]) -> list[Rendered]:
        """Render every job, in order. A job that was not rendered has an error that says why."""
        if source in self._endless:
            return [Rendered(None, self._endless[source])] * len(jobs)
        results: list[Rendered] = []
        for _ in range(_MAX_DEATHS):
            contexts = [job.context() for job in jobs[len(results) :]]
            if not contexts:
                return results
            error = ""
            for answer in self._ask({"kind": "render", "source": source, "jobs": contexts}, len(contexts)):
                if isinstance(answer, str):
                    error = answer
                    break
                results.append(_rendered(answer))
            if error.startswith("took"):
                break  # the rest would only take as long again
            if error:
                results.append(Rendered(None, error))
        return results + [Rendered(None, error or "not rendered")] * (len(jobs) - len(results))

    def renders(self, source: str, bos: str = "", eos: str = "") -> Renders:
        """Return what `thinkguard.formats.renders.render` returns, computed in the child."""
        tokens = {"bos_token": bos, "eos_token": eos}
        (prompt,) = self.render(source, [Job([{"role": "user", "content": USER}], True, tokens)])
        if prompt.error.startswith("took"):
            self._endless[source] = prompt.error
            return Renders(source, errors=(prompt.error,))
        (answer,) = self._ask({"kind": "renders", "source": source, "tokens": tokens}, 1)
        if isinstance(answer, str):
            return Renders(source, errors=(answer,))
        return Renders(source, **{**answer, "errors": tuple(answer["errors"])})

    def _ask(self, request: Mapping[str, Any], num: int) -> Iterator[dict[str, Any] | str]:
        """Yield `num` answers; if the child ends before, the last item is a string that says why."""
        child = self._started()
        if isinstance(child, str):
            yield child
            return
        source = request["source"]
        limit_s = self.limit_s / (1 if self._ended[source] < _TRIES else _SHARE)
        with _Clock(child, limit_s * _PATIENCE) as clock:
            assert child.stdin is not None
            with suppress(BrokenPipeError):  # it died: the answer that is missing says so
                child.stdin.write(json.dumps({**request, "limit_s": limit_s}, default=str).encode() + b"\n")
                child.stdin.flush()
            for _ in range(num):
                line = _line(child)
                if not line:
                    status = child.wait()
                    self.close()
                    late = clock.late or status in _OUT_OF_TIME
                    self._ended[source] += late
                    limit = f"{self.limit_s * _PATIENCE:g} s" if clock.late else f"{self.limit_s:g} s of CPU time"
                    yield f"took more than {limit}" if late else _death(status)
                    return
                yield json.loads(line)

    def _started(self) -> subprocess.Popen[bytes] | str:
        """Return the child, once it is ready, or why there is none."""
        if self._child is not None and self._child.poll() is None:
            return self._child
        self.close()
        if importlib.util.find_spec("jinja2") is None:
            raise ImportError("jinja2 is not installed, and chat templates are rendered: pip install 'thinkguard[doctor]'")
        # Isolated, and with the paths of this process: nothing is imported from the folder that is examined.
        paths = [str(Path(__file__).parents[2]), *(path for path in sys.path if path)]
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", _RUN, *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._child = child
        with _Clock(child, _START_S) as clock:
            if _line(child):
                return child
        status = child.wait()
        self.close()
        return f"could not be rendered: its process took more than {_START_S} s to start" if clock.late else _death(status)


class _Clock:
    """Kills a child process that is not done in time, by the wall clock."""

    def __init__(self, child: subprocess.Popen[bytes], limit_s: float) -> None:
        self.late = False
        self._child = child
        self._timer = threading.Timer(limit_s, self._end)
        self._timer.daemon = True

    def _end(self) -> None:
        self.late = True
        self._child.kill()

    def __enter__(self) -> _Clock:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._timer.cancel()


def _line(child: subprocess.Popen[bytes]) -> bytes:
    """Read one whole line, b"" if the child ends before."""
    assert child.stdout is not None
    line = child.stdout.readline()
    return line if line.endswith(b"\n") else b""


def _rendered(answer: Mapping[str, Any]) -> Rendered:
    if "error" in answer:
        return Rendered(None, answer["error"])
    return Rendered(answer["text"], "", tuple((start, end) for start, end in answer["generation"]))


def _death(status: int) -> str:
    return f"ended the process that renders it ({f'signal {-status}' if status < 0 else f'status {status}'})"
