"""Foreign templates: whatever they do, the limits hold, the next one renders, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from thinkguard.doctor.template import sandbox
from thinkguard.doctor.template.readings import read_template
from thinkguard.doctor.template.sandbox import Job, Rendered, Renderer
from thinkguard.doctor.template.template_checks import template_checks
from thinkguard.formats.renders import render

pytest.importorskip("jinja2", reason="templates are rendered with jinja2")

USER = {"role": "user", "content": "hi"}
HELLO = [Job([USER], True)]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
POWER = "{{ (messages | length + 6) ** (10 ** 9) }}"  # one operation, which nothing in Python interrupts
LATE = "took more than 0.5 s of CPU time"
RAISING = {
    "{{ raise_exception('no tools') }}": "TemplateError: no tools",
    "{{ missing.field }}": "UndefinedError: 'missing' is undefined",
    "{% for %}": "TemplateSyntaxError",
    "{% for i in range(10**9) %}{% endfor %}": "OverflowError: Range too big",
    "{{ 'a' * 10**10 }}": "MemoryError",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "SecurityError",
    "{{ cycler.__init__.__globals__.os.system('true') }}": "SecurityError",
    "{{ messages.append(1) }}": "SecurityError",
    "{% include '/etc/passwd' %}": "no loader",
    "{{ messages[0].content * (8 * 1024 * 1024) }}": "more than 4194304 characters",
    "{% for i in range(99999) %}{{ messages[0].content * 5000 }}{% endfor %}": "more than 4194304 characters",
}


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer(limit_s=1.0) as made:
        yield made


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def test_renders_what_the_process_itself_would(renderer: Renderer) -> None:
    source = (
        "{{ bos_token }}{{ messages[0].content }}{{ {'a': '<é>'} | tojson }}{% if add_generation_prompt %}<think>{% endif %}"
    )
    jobs = [Job([USER], prompt, {"bos_token": "<s>"}) for prompt in (True, False)]
    assert renderer.render(source, jobs) == [Rendered('<s>hi{"a": "<é>"}<think>'), Rendered('<s>hi{"a": "<é>"}')]
    assert renderer.renders(source, "<s>", "</s>") == render(source, bos_token="<s>", eos_token="</s>")
    assert renderer.render(source, []) == []


def test_agrees_with_transformers_on_what_is_generated(renderer: Renderer) -> None:
    tokenizers = pytest.importorskip("transformers.utils.chat_template_utils", reason="compared with transformers")
    source = (
        "{% for m in messages %}[{{ m.role }}]{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}"
        "{% set late %}x{% generation %}y{% endgeneration %}{% endset %}{{ late }}{{ strftime_now('%Y') | length }}"
    )
    messages = [USER, {"role": "assistant", "content": "yes"}]
    texts, spans = tokenizers.render_jinja_template([messages], chat_template=source, return_assistant_tokens_mask=True)
    (made,) = renderer.render(source, [Job(messages, False)])
    assert (made.text, list(made.generation)) == (texts[0], spans[0])
    assert [made.text[start:end] for start, end in made.generation[:2]] == ["hi", "yes"]


@pytest.mark.parametrize("source", RAISING)
def test_what_fails_says_why_and_the_next_one_renders(renderer: Renderer, source: str) -> None:
    made, again = renderer.render(source, HELLO * 2)
    assert made.text is None
    assert again.text is None
    assert RAISING[source] in made.error
    assert len(made.error) <= 400
    assert renderer.render("{{ messages[0].content }}", HELLO) == [Rendered("hi")]


def test_a_template_without_end_is_ended() -> None:
    before = children()
    with Renderer(limit_s=0.5) as renderer:
        used = psutil.Process().cpu_times()
        jobs = [Job([USER], False), Job([USER], True), Job([USER], False)]
        made = renderer.render("{% if add_generation_prompt %}" + LOOP + "{% endif %}done", jobs)
        assert psutil.Process().cpu_times().children_user - used.children_user < 5
        assert made == [Rendered("done"), Rendered(None, LATE), Rendered(None, LATE)]
        assert renderer.renders(LOOP).errors == (LATE,)
        assert renderer.render(POWER, HELLO) == [Rendered(None, LATE)]
        assert renderer.render("{{ messages[0].content }}", HELLO) == [Rendered("hi")]
        assert len(children() - before) == 1
    assert children() == before


def test_a_whole_report_on_a_template_without_end() -> None:
    with Renderer(limit_s=0.5) as renderer:
        checks = template_checks(read_template(renderer, LOOP, None), None, None)
    assert [(check.name, check.status) for check in checks if check.status != "skipped"] == [("template-renders", "problem")]
    assert LATE in checks[0].found
    assert checks[0].evidence == (LATE,)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The child processes that were started."""
    pids: list[int] = []

    class Counted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            pids.append(self.pid)

    monkeypatch.setattr(sandbox.subprocess, "Popen", Counted)
    return pids


def test_what_never_ends_is_not_tried_again(started: list[int]) -> None:
    with Renderer(limit_s=0.5) as renderer:  # as the doctor does: the family first, then the probes, then the records
        assert renderer.renders(LOOP).errors == (LATE,)
        assert set(read_template(renderer, LOOP, None).errors) == {LATE}
        assert renderer.render(LOOP, HELLO * 2) == [Rendered(None, LATE)] * 2
        assert len(started) == 1
        assert renderer.render("{{ messages[0].content }}", HELLO) == [Rendered("hi")]


def test_what_ends_for_some_conversations_soon_has_less_time(started: list[int]) -> None:
    source = "{% if messages | length > 1 %}" + LOOP + "{% endif %}{{ messages[0].content }}"
    jobs = [*HELLO, Job([USER, {"role": "assistant", "content": "yes"}], False), *HELLO]
    with Renderer(limit_s=1.0) as renderer:
        late = "took more than 1 s of CPU time"
        assert renderer.renders(source).errors == (late,)
        used = []
        for _ in range(3):
            before = psutil.Process().cpu_times().children_user
            assert renderer.render(source, jobs) == [Rendered("hi"), Rendered(None, late), Rendered(None, late)]
            used.append(psutil.Process().cpu_times().children_user - before)
        assert max(used[1:]) < used[0] - 0.4
        assert len(started) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_busy_machine_makes_no_template_endless() -> None:
    with Renderer(limit_s=0.5) as renderer:
        renderer.render("", HELLO)
        assert renderer._child is not None
        pid = renderer._child.pid
        os.kill(pid, signal.SIGSTOP)  # others have the processor
        threading.Timer(1.5, os.kill, (pid, signal.SIGCONT)).start()
        assert renderer.render("{{ messages[0].content }}", HELLO) == [Rendered("hi")]
        assert renderer._child.pid == pid


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_child_that_stands_still_is_ended() -> None:
    with Renderer(limit_s=0.1) as renderer:
        renderer.render("", HELLO)
        assert renderer._child is not None
        os.kill(renderer._child.pid, signal.SIGSTOP)
        assert renderer.render("{{ 1 }}", HELLO) == [Rendered(None, "took more than 2 s")]
        assert renderer.render("{{ messages[0].content }}", HELLO) == [Rendered("hi")]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_ignored_signal_is_not_handed_down() -> None:
    before = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    try:
        with Renderer(limit_s=0.5) as renderer:
            assert renderer.render(LOOP, HELLO) == [Rendered(None, LATE)]
    finally:
        signal.signal(signal.SIGPROF, before)


@pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")
def test_a_dead_child_is_replaced_and_its_job_named() -> None:
    with Renderer() as renderer:
        renderer.render("", HELLO)
        assert renderer._child is not None
        os.kill(renderer._child.pid, 9)
        renderer._child.wait()
        assert renderer.render("{{ 1 }}", HELLO) == [Rendered("1")]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits as Linux keeps them")
def test_the_child_can_open_no_file_and_use_no_more_memory() -> None:
    with Renderer() as renderer:
        renderer.render("", HELLO)
        assert renderer._child is not None
        limits = Path(f"/proc/{renderer._child.pid}/limits").read_text(encoding="ascii")
    rows = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
    assert rows["Max open files"] == ["0", "0"]
    assert rows["Max address space"] == [str(1 << 30)] * 2
    assert rows["Max processes"] == ["0", "0"]
    assert rows["Max cpu time"][0] != "unlimited"


def test_nothing_is_imported_from_the_folder_that_is_examined(tmp_path: Path) -> None:
    for name in ("json", "jinja2", "thinkguard", "encodings"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the folder')", encoding="utf-8")
    code = (
        "import sys; sys.path[:] = [path for path in sys.path if path]\n"
        "from thinkguard.doctor.template.sandbox import Job, Renderer\n"
        "with Renderer() as renderer: print(renderer.render('{{ 6 * 7 }}', [Job([], True)])[0].text)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("42", "")


def test_a_child_ends_with_its_parent() -> None:
    code = (
        "import os\nfrom thinkguard.doctor.template.sandbox import Job, Renderer\n"
        "renderer = Renderer(); renderer.render('', [Job([], True)]); print(renderer._child.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pid = int(done.stdout)
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"  # one whom nobody here can wait for


def test_without_jinja2_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with Renderer() as renderer, pytest.raises(ImportError, match=r"thinkguard\[doctor\]"):
        renderer.render("", HELLO)
