"""The promise on vLLM's V1 runner: real engines, random weights, real vocabularies, and a model that is out to break it."""

from __future__ import annotations

import json
import random

import engines
import pytest
from hostile import PROCESSORS, Tempter, budget_cases, counted, fits, generate, sampling, scripted, unexplained
from promise import Job, Taste, draw_policy
from test_promise import ANSWERING, CASES, TYPED, bench_of, prompt_ids, tails, verify
from vllm.sampling_params import StructuredOutputsParams

from thinkguard import ThinkPolicy

pytestmark = pytest.mark.filterwarnings("ignore:max_rollback_tokens is deprecated")  # by xgrammar, to vLLM
NAMES = ("qwen3", "qwen2.5-instruct", "mistral-v1-spm", "gpt-oss")
NUM_TOKENS = 1_500  # generated for each vocabulary, at least
LENGTH = 256
# 12 blocks hold fewer tokens than six requests want, a step takes 64: preemption, chunked prefill and caching at once.
TIGHT = {
    "max_model_len": LENGTH, "max_num_seqs": 6, "max_num_batched_tokens": 64, "block_size": 32,
    "num_gpu_blocks_override": 12, "enable_prefix_caching": True, "disable_log_stats": False,
}  # fmt: skip


GRAMMAR = {"backend": "xgrammar", "disable_any_whitespace": True}
# What only some engines have: a parser, whose grammars we leave room for, and vLLM's own budget, for comparison.
OPTIONS = {
    "qwen3": {"reasoning_parser": "qwen3", "structured_outputs_config": GRAMMAR},
    "qwen2.5-instruct": {"reasoning_config": {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}},
    "mistral-v1-spm": {"structured_outputs_config": GRAMMAR},
}


@pytest.fixture(scope="module", params=NAMES)
def served(request, tokenizer_dirs, tmp_path_factory):
    """(engine, bench) of one vocabulary."""
    name = request.param
    bench = bench_of(name, tokenizer_dirs[name])
    folder = engines.checkpoint(tmp_path_factory.mktemp(name), tokenizer_dirs[name], bench.width, scale=4)
    fields = {} if CASES[name].format is None else {"format": CASES[name].format}
    with engines.engine(folder, v2=False, thinkguard=fields, processors=PROCESSORS, **TIGHT, **OPTIONS.get(name, {})) as llm:
        yield llm, bench


def hostile_job(bench, rng):
    """A request with any policy, behind a prompt that opens, closes, answers, or only mentions the markers."""
    tail, phase = rng.choice([("", 0)] * 3 + tails(bench))
    typed, more = rng.choice(TYPED), "\nTell me more, please." * rng.randrange(1, 20)
    user = rng.choice([typed, typed + more, more + typed])  # the last kind shares its beginning: the prefix cache is hit
    given = {"opening": "allow" if phase == ANSWERING else "force", "markers_in_answer": "ban", "max_answer_tokens": None}
    policy = draw_policy(rng, **(given if tail else {}))
    prompt = tuple(prompt_ids(bench, user, tail=tail))
    limit = min(rng.choice([20, 40, 60, 100]), LENGTH - len(prompt))
    return Job(policy, Taste(rng.choice(list(Taste.MIXES)), rng.choice([1, 0.7])), limit, 0, prompt, tail.encode())


def test_the_promise(served):
    """Requests with different policies arrive, are preempted, resume and leave; each output reads as it was asked for."""
    llm, bench = served
    rng = random.Random(f"v1 {bench.name}")
    outputs = []
    while sum(len(output.ids) for output in outputs) < NUM_TOKENS:
        jobs = [job for job in (hostile_job(bench, rng) for _ in range(40)) if fits(bench, job)]
        outputs += generate(llm, bench, jobs, rng)
        verify(bench, outputs, "in vLLM's V1 engine")
    for output in outputs:
        wrong = unexplained(bench, output)
        assert not wrong, f"{wrong}\n{output.job}\n{bench.decode(output.ids)!r} {output.ids}"
    counts = counted(llm)
    assert counts.num_preemptions > 0
    assert counts.prefix_cache_hits > 0
    assert any(len(output.job.prompt) > TIGHT["max_num_batched_tokens"] for output in outputs)
    print(f"{bench.name}: {sum(len(o.ids) for o in outputs)} tokens, {counts.num_preemptions} preemptions")


SCHEMA = {
    "type": "object", "properties": {"sure": {"type": "boolean"}, "digit": {"enum": [1, 2, 3]}},
    "required": ["sure", "digit"], "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize("served", ["qwen2.5-instruct"], indirect=True)
def test_what_the_own_budget_of_vllm_gets_wrong(served):
    llm, bench = served
    ends = {}
    for case, (prompt, script) in budget_cases(bench).items():
        for guarded in (True, False):
            output = scripted(llm, bench, prompt, script, guarded=guarded)
            ends[case, guarded] = bench.decode(output).count("</think>")
            if case == "opened" and guarded:
                trace = bench.program.explain(prompt, output, ThinkPolicy(max_thinking_tokens=20))
                assert (trace.thinking_tokens, trace.closed_by) == (20, "budget")
            if case == "split end" and guarded:
                assert output == script
    assert ends == {("opened", True): 1, ("opened", False): 0, ("split end", True): 1, ("split end", False): 2}


@pytest.mark.parametrize("served", ["qwen3"], indirect=True)
def test_structured_outputs_behind_a_parser(served):
    """Thinking is free and capped, and the grammar has the answer to itself."""
    llm, bench = served
    Tempter.bench, Tempter.rng = bench, random.Random(1)
    prompt = prompt_ids(bench, "hello")
    params = [
        sampling(bench, ThinkPolicy(max_thinking_tokens=budget), structured_outputs=StructuredOutputsParams(json=SCHEMA),
                 max_tokens=80, temperature=1.0, extra={"taste": taste, "often": 0.5})
        for budget in (0, 3, 12) for taste in ("random", "markers", "eos")
    ]  # fmt: skip
    found = llm.generate([{"prompt_token_ids": prompt}] * len(params), params, use_tqdm=False)
    for one, asked in zip(found, params, strict=True):
        budget = asked.extra_args["thinkguard"]["max_thinking_tokens"]
        ids = list(one.outputs[0].token_ids)
        trace = bench.program.explain(prompt, ids, ThinkPolicy(max_thinking_tokens=budget))
        assert trace.finished, bench.decode(ids)
        assert trace.thinking_tokens <= budget
        assert set(json.loads(bench.decode(ids, skip=True).split("</think>")[1])) == {"sure", "digit"}


@pytest.mark.parametrize("served", ["mistral-v1-spm"], indirect=True)
def test_structured_outputs_without_a_parser_are_left_alone(served, vllm_log):
    llm, bench = served
    asked = StructuredOutputsParams(json=SCHEMA)
    params = [sampling(bench, ThinkPolicy(), structured_outputs=asked, max_tokens=60, temperature=1.0) for _ in range(3)]
    found = llm.generate([{"prompt_token_ids": prompt_ids(bench, "hello")}] * 3, params, use_tqdm=False)
    for one in found:
        assert set(json.loads(bench.decode(list(one.outputs[0].token_ids), skip=True))) == {"sure", "digit"}
    assert sum("requests with structured outputs are left alone" in record.getMessage() for record in vllm_log) == 1
