"""vLLM's V2 runner, its own kernels interpreted: the promise, drafts, launches, and the same tokens as V1 and HF.

Ours is there in both of its ways: slots walked in place, and by the host, as on a device on which the kernels do not run.
"""

from __future__ import annotations

import random

import engines
import pytest
import torch
from hostile import (
    PROCESSORS,
    Witness,
    budget_cases,
    counted,
    eos_as_served,
    fits,
    generate,
    sampling,
    scripted,
    unexplained,
)
from promise import Bench, Job, Reading, Taste, draw_policy
from test_promise import ANSWERING, bench_of, prompt_ids, tails, verify

from thinkguard import ThinkPolicy
from thinkguard.device.launch import HostKernels
from thinkguard.hf import ThinkLogitsProcessor
from thinkguard.vllm import v2

TEXT = "the cat and dog said that this will not be there when they were here with some other work for all people <think>\n\
so let us see, wait. </think>\n\nThe answer is one. first then second number from what have about which would make like\n"
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LENGTH = 256
CLEAR = 0.01  # between the two best logits, whose deviation is 10; kernels differ by 1e-5
TIGHT = {
    "max_model_len": LENGTH, "max_num_seqs": 4, "max_num_batched_tokens": 48, "block_size": 32,
    "num_gpu_blocks_override": 9, "enable_prefix_caching": True, "disable_log_stats": False,
}  # fmt: skip
DRAFTS = {
    "plain": lambda folder: {},
    "draft": lambda folder: {
        "speculative_config": {"method": "draft_model", "model": str(folder), "num_speculative_tokens": 3}
    },
    "ngram": lambda folder: {
        "speculative_config": {
            "method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1,
        }
    },
}  # fmt: skip
SPELLINGS = {"text": (), "added": ("<think>", "</think>")}


def tiny_tokenizer(folder, added):
    """A byte-level tokenizer of some 400 tokens in which the markers are text, or one token each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in added])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=TEMPLATE)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """spelling -> (checkpoint, bench)"""
    found = {}
    for spelling, added in SPELLINGS.items():
        directory = tiny_tokenizer(tmp_path_factory.mktemp(f"tokenizer-{spelling}"), added)
        bench = Bench(f"tiny-{spelling}", directory, "think", Reading())
        folder = tmp_path_factory.mktemp(f"tiny-{spelling}")
        found[spelling] = engines.checkpoint(folder, directory, bench.width, scale=20), bench
    return found


def plain_jobs(bench, model, number):
    """(requests for the model as it is, with any policies, greedily; what Hugging Face's generate makes of them).

    Those are left out where the two best logits were once so close that another kernel's rounding may choose differently.
    """
    rng = random.Random(bench.name)
    jobs, outputs = [], []
    while len(jobs) < number:
        tail = rng.choice(["", "", "<think>\n", "<think>\nso </th"])
        prompt = tuple(prompt_ids(bench, rng.choice(["the cat", "a <think> b </think> c", "the dog said " * 6]), tail=tail))
        policy = draw_policy(rng, opening=rng.choice(["force", "allow", "forbid"]))
        job = Job(policy, None, rng.choice([24, 50]), 0, prompt)
        if not fits(bench, job):
            continue
        ids = torch.tensor([prompt])
        with ThinkLogitsProcessor(bench.program, policy=policy).attach(model):
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=job.max_tokens,
                eos_token_id=list(eos_as_served(bench)), pad_token_id=0, return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
        best = torch.cat(made.scores).topk(2).values
        if (best[:, 0] - best[:, 1]).min() > CLEAR:
            jobs.append(job)
            outputs.append(made.sequences[0, len(prompt) :].tolist())
    return jobs, outputs


def greedily(llm, bench, jobs):
    params = [sampling(bench, job.policy, max_tokens=job.max_tokens) for job in jobs]
    found = llm.generate([{"prompt_token_ids": list(job.prompt)} for job in jobs], params, use_tqdm=False)
    return [list(one.outputs[0].token_ids) for one in found]


@pytest.fixture(scope="module")
def references(tiny):
    """spelling -> (jobs, outputs of V1, outputs of Hugging Face's generate)"""
    from transformers import AutoModelForCausalLM

    found = {}
    for spelling, (folder, bench) in tiny.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        jobs, by_hf = plain_jobs(bench, model, 6)
        with engines.engine(folder, v2=False, thinkguard={"format": "think"}, processors=PROCESSORS, **TIGHT) as llm:
            found[spelling] = jobs, greedily(llm, bench, jobs), by_hf
    return found


IN_PLACE, BY_HOST = "in place", "by the host"
HOSTILE = [
    ("added", "plain", IN_PLACE), ("text", "draft", IN_PLACE), ("text", "plain", BY_HOST), ("added", "draft", BY_HOST),
]  # fmt: skip
ENGINES = [*HOSTILE, ("text", "ngram", IN_PLACE)]  # last: engines are shared by their place in the list
LAUNCHES = []
"""The kernels that were launched since this was cleared."""


@pytest.fixture(scope="module", params=ENGINES, ids="-".join)
def served(request, tiny, references):
    """(engine, bench, references, way) of a tiny model, with drafts or without."""
    spelling, drafts, way = request.param
    folder, bench = tiny[spelling]
    options = TIGHT | DRAFTS[drafts](folder)
    with pytest.MonkeyPatch.context() as patch:
        bind = HostKernels.bind

        def counting(kernels, name, step):
            launch = bind(kernels, name, step)
            return lambda num_blocks, stream: LAUNCHES.append(name) or launch(num_blocks, stream)

        patch.setattr(HostKernels, "bind", counting)
        if way == BY_HOST:
            patch.setattr(v2, "kernels_of", lambda device: None)
        with engines.engine(folder, v2=True, thinkguard={"format": "think"}, processors=PROCESSORS, **options) as llm:
            yield llm, bench, references[spelling], way


def test_the_same_tokens_as_v1_and_hugging_face(served):
    llm, bench, (jobs, by_v1, by_hf), _ = served
    by_v2 = greedily(llm, bench, jobs)
    assert by_v1 == by_hf
    assert by_v2 == by_hf
    assert len({tuple(ids) for ids in by_v2}) > len(jobs) // 2
    speculative = llm.llm_engine.vllm_config.speculative_config
    if speculative is not None:
        counts = counted(llm)
        assert 0 < counts.spec_decode_num_accepted_tokens < counts.spec_decode_num_draft_tokens


def hostile_job(bench, rng, names=tuple(Taste.MIXES), limits=(20, 40, 60)):
    tail, phase = rng.choice([("", 0)] * 2 + tails(bench))
    user = rng.choice(["the cat", "a <think> b </think> c", "the dog said " * 6, "ends in <th"])
    given = {"opening": "allow" if phase == ANSWERING else "force", "markers_in_answer": "ban", "max_answer_tokens": None}
    policy = draw_policy(rng, **(given if tail else {}))
    prompt = tuple(prompt_ids(bench, user, tail=tail))
    return Job(policy, Taste(rng.choice(names), rng.choice([1, 0.5])), rng.choice(limits), 0, prompt, tail.encode())


def check(bench, outputs, what):
    verify(bench, outputs, what)
    for output in outputs:
        wrong = unexplained(bench, output)
        assert not wrong, f"{wrong}\n{output.job}\n{bench.decode(output.ids)!r} {output.ids}"


@pytest.mark.parametrize("served", HOSTILE, ids="-".join, indirect=True)  # n-grams' drafts reach us in the same buffer
def test_the_promise(served):
    llm, bench, _, _ = served
    rng = random.Random(f"v2 {bench.name}")
    before = counted(llm).num_preemptions
    Witness.num_drafted = 0
    drafts = llm.llm_engine.vllm_config.speculative_config is not None
    long = tuple(prompt_ids(bench, "the dog said " * 20))
    jobs = [Job(ThinkPolicy(max_thinking_tokens=cap), Taste("near"), 40, 0, long) for cap in (8, 16, 24)]
    hostile = (hostile_job(bench, rng) for _ in range(4 if drafts else 8))  # a step with drafts takes the interpreter long
    jobs += [job for job in hostile if fits(bench, job)]
    outputs = generate(llm, bench, jobs, rng)
    check(bench, outputs, "in vLLM's V2 engine")
    assert counted(llm).num_preemptions > before
    assert any(len(job.prompt) > TIGHT["max_num_batched_tokens"] for job in jobs)
    assert (Witness.num_drafted > 0) == drafts


def test_one_launch_a_step_and_none_without_a_guarded_request(served):
    """By the host too a step is decided at once; what is edited then is edited at once."""
    llm, bench, _, way = served
    prompt = {"prompt_token_ids": prompt_ids(bench, "the cat")}
    policies = (ThinkPolicy(max_thinking_tokens=3), None)
    for mixed, guarded in ((policies, True), ((None, None), False)):
        LAUNCHES.clear()
        Witness.steps.clear()
        llm.generate([prompt, prompt], [sampling(bench, policy, max_tokens=12) for policy in mixed], use_tqdm=False)
        assert any(Witness.steps) == guarded
        assert LAUNCHES.count("guard_slots") == sum(Witness.steps)
        assert (LAUNCHES.count("guard_edits") > 0) == (guarded and way == BY_HOST)
        assert LAUNCHES.count("guard_edits") <= sum(Witness.steps)


def test_a_real_vocabulary(tokenizer_dirs, tmp_path):
    """One, and few tokens: a whole vocabulary takes the interpreter long. The others: V1, and the kernels against C."""
    name = "qwen2.5-instruct"
    bench = bench_of(name, tokenizer_dirs[name])
    folder = engines.checkpoint(tmp_path, tokenizer_dirs[name], bench.width, scale=4)
    rng = random.Random(f"v2 real {name}")
    options = {"max_num_seqs": 3, "max_model_len": LENGTH}
    with engines.engine(folder, v2=True, thinkguard={"format": "think"}, processors=PROCESSORS, **options) as llm:
        jobs = []
        while len(jobs) < 2:
            job = hostile_job(bench, rng, ("near", "both", "markers"), (18, 24))
            jobs += [job] if fits(bench, job) and len(job.prompt) < 128 else []
        check(bench, generate(llm, bench, jobs, rng), "in vLLM's V2 engine")
        prompt, script = budget_cases(bench)["opened"]
        output = scripted(llm, bench, prompt, script[:25], guarded=True)
        trace = bench.program.explain(prompt, output, ThinkPolicy(max_thinking_tokens=20))
        assert (trace.thinking_tokens, trace.closed_by) == (20, "budget")
        prompt, script = budget_cases(bench)["split end"]
        assert scripted(llm, bench, prompt, script, guarded=True) == script
