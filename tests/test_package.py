"""What the README says is so: its examples run, its errors are the real ones, its tables are whole."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)


def test_the_readme_runs(monkeypatch, capsys):
    pytest.importorskip("transformers", reason="the README's example needs transformers")
    monkeypatch.chdir(ROOT)
    examples = blocks("python")
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
    assert "closed by" in capsys.readouterr().out


def test_the_readme_shows_the_real_error():
    from thinkguard import PolicyError, ThinkPolicy

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    with pytest.raises(PolicyError) as caught:
        ThinkPolicy(max_thinking_tokens=256, min_thinking_tokens=512)
    assert f"PolicyError: {caught.value}" in text


def test_every_policy_field_is_documented():
    from thinkguard.policy import POLICY_FIELDS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in POLICY_FIELDS if f"`{name}`" not in text] == []
