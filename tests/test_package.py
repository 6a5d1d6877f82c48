"""The house: imports run one way, nothing heavy is imported, and what the README says runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "thinkguard"
ORDER = [
    "errors", "formats", "policy", "_readers", "_files", "vocab", "template", "fit", "detect", "_core", "compile",
    "trace", "program", "_slots", "_device_layout", "_device_machine", "_device_decide", "_device_edit",
    "_device_kernel", "device", "hf_scores", "hf_continuous", "hf", "vllm_admission", "vllm_grammar", "vllm_requests",
    "vllm_v1", "vllm_v2", "vllm", "doctor.check", "doctor.marks", "doctor.records.record", "doctor.records.turns",
    "doctor.records.conversations", "doctor.records.column_shapes", "doctor.records.dataset_info",
    "doctor.records.llamafactory", "doctor.records.logs", "doctor.records.rendered", "doctor.records.switches",
    "doctor.records.trainers", "doctor.records.shapes", "doctor.files.folders", "doctor.files.json_lines",
    "doctor.files.json_text", "doctor.files.json_window", "doctor.files.json_stream", "doctor.files.kinds",
    "doctor.files.tables", "doctor.files.sources", "doctor.template.sandbox", "doctor.template.probes",
    "doctor.template.readings", "doctor.template.evidence", "doctor.template.differs",
    "doctor.template.situation", "doctor.template.unread", "doctor.template.turns", "doctor.template.checks",
    "doctor.template.mended", "doctor.template.fix",
    "doctor.template.sandbox_child", "doctor.judges.marker_forms", "doctor.judges.packing", "doctor.judges.structure",
    "doctor.judges.tags", "doctor.judges.mask", "doctor.judges.output_fields", "doctor.judges.outputs",
    "doctor.tokenizer.files", "doctor.tokenizer.checkpoint", "doctor.tokenizer.markers", "doctor.tokenizer.tensor_rows",
    "doctor.tokenizer.adapter", "doctor.tokenizer.splits", "doctor.tokenizer.template_copies",
    "doctor.tokenizer.white_space", "doctor.tokenizer.checks", "doctor.tokenizer.compared", "doctor.tokenizer.fix",
    "doctor.tokenizer.weights", "doctor.audit.lengths", "doctor.audit.plan", "doctor.audit.summary",
    "doctor.audit.auditor", "doctor.audit.checks", "doctor.audit.mend_record", "doctor.audit.mend",
    "doctor.audit.processes", "doctor.audit.ray_engine", "doctor.audit.run", "doctor.mask.labels", "doctor.mask.checks",
    "doctor.serving.client", "doctor.serving.reply", "doctor.serving.asked", "doctor.serving.limits",
    "doctor.serving.unusual", "doctor.serving.verdict", "doctor.serving.server", "doctor.page.plots",
    "doctor.page.references", "doctor.page.text", "doctor.page.write", "doctor.examine", "training.places",
    "training.labels", "training.model", "training.samples", "training.findings", "training.records", "training.monitor",
    "training.callback", "demo.arithmetic", "demo.run", "bench.machine", "bench.timing", "bench.setting",
    "bench.alternatives.alternative", "bench.alternatives.interpreted", "bench.alternatives.nothing",
    "bench.alternatives.plain_torch", "bench.alternatives.guard", "bench.alternatives.vllm_common",
    "bench.alternatives.vllm_v1", "bench.alternatives.vllm_v2", "bench.alternatives.sglang_source",
    "bench.alternatives.sglang_processor", "bench.alternatives.sglang_strict", "bench.alternatives.xgrammar_tag",
    "bench.alternatives.llguidance_lark", "bench.cases", "bench.reading", "bench.correctness", "bench.step",
    "bench.start", "bench.memory", "bench.instructions", "bench.generating", "bench.serving", "bench.quality", "bench.table",
    "bench.plots", "bench.run", "bench.commands", "doctor.commands", "cli", "__main__",
]  # fmt: skip
# Named by a method of an earlier module, imported when it is called.
LATE = {
    *(("formats", "detect"), ("formats", "fit"), ("formats", "vocab"), ("hf_continuous", "hf")),
}


def imported(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    left_out = {inner for node in for_types for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("thinkguard"):
            if node.module == "thinkguard":
                yield from (alias.name for alias in node.names)
            else:
                home = node.module.removeprefix("thinkguard.")
                yield home
                yield from (f"{home}.{alias.name}" for alias in node.names)


def test_imports_run_one_way():
    modules = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    modules = {name: path for name, path in modules.items() if not name.endswith("__init__")}
    assert set(modules) == set(ORDER) - {"_core", "_slots"}, "a module without a place in the order"
    for name, path in modules.items():
        for other in imported(path):
            if other in ORDER and (name, other) not in LATE:
                backward = f"{name} imports {other}, which stands behind it in the order"
                assert ORDER.index(other) < ORDER.index(name), backward


def test_import_is_light():
    hosts = {"torch", "transformers", "triton", "vllm", "jinja2", "tokenizers"}
    code = f"import sys; from thinkguard import *; print(sorted({hosts} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_declared_for_types_and_loads():
    import thinkguard

    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    declared = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    declared -= {"annotations", "import_module", "TYPE_CHECKING", "Any"}
    assert declared == set(thinkguard.__all__) - {"__version__"}
    assert all(getattr(thinkguard, name) is not None for name in thinkguard.__all__)
    with pytest.raises(AttributeError, match="no attribute 'ThinkGuard'"):
        thinkguard.ThinkGuard  # noqa: B018


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
