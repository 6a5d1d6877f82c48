"""A hostile model and a witness for vLLM's engines: logits processors that stand before ours and behind it, on both runners.

They share a process with the test, which tells them by class attributes what to do and reads there what was seen.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
from promise import Job, Output, Taste
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor as V1
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2

from thinkguard.policy import POLICY_DEFAULTS

THINK = "thinkguard.vllm:ThinkLogitsProcessor"
FORCE, ALLOW = 1, 3  # kinds of an Action
ANSWERING = 4  # a phase


class Watching(V1, V2):
    """Knows of every row of logits whose it is and how many output tokens stand before it, drafts included."""

    def __init__(self, vllm_config, *host):
        self.requests, self.states = {}, host[0] if len(host) == 1 else None

    def is_argmax_invariant(self):
        return False

    def update_state(self, batch_update):
        process_dict_updates(self.requests, batch_update, lambda params, prompt, output: (params.extra_args, output))

    def add_request(self, slot, params):
        self.requests[slot] = params.extra_args
        return True

    def apply(self, logits, ctx=None):
        for i in range(len(logits)):
            if ctx is None:
                args, output = self.requests[i]
                self.see(logits[i].numpy(), args, len(output), drafted=False)
            else:
                slot, ahead = int(ctx.expanded_idx_mapping[i]), int(ctx.expanded_local_pos[i])
                length = int(self.states.total_len.gpu[slot]) - int(self.states.prompt_len.np[slot])
                self.see(logits[i].numpy(), self.requests[slot], length + ahead, drafted=ahead > 0)
        return logits


class Tempter(Watching):
    """Plays a model that breaks the structure by a request's taste, or one that writes a request's script."""

    bench = rng = None

    def see(self, row, args, position, *, drafted):
        script, masked = args.get("script", ()), np.isneginf(row)
        if position < len(script):
            row[script[position]] = 1000
        elif args.get("taste"):
            taste = Taste(args["taste"], args["often"])
            taste.begin(self.bench, self.rng)
            taste.bend(self.bench, row, None, self.rng)
            row[masked] = -np.inf  # by a grammar


class Witness(Watching):
    """Notes what the sampler is handed: which rows leave it no choice."""

    forced: ClassVar = defaultdict(dict)  # request -> output position -> whether
    num_drafted = 0  # rows that stand behind a draft
    steps: ClassVar = []  # call of a runner -> whether a row of it is guarded

    def apply(self, logits, ctx=None):
        rows = range(len(logits)) if ctx is None else ctx.idx_mapping_np.tolist()
        args = [self.requests[i][0] if ctx is None else self.requests[i] for i in rows]
        self.steps.append(any(one.get("thinkguard") is not False for one in args))
        return super().apply(logits, ctx)

    def see(self, row, args, position, *, drafted):
        Witness.num_drafted += drafted
        if "number" in args:
            self.forced[args["number"]][position] = int(np.count_nonzero(row > -np.inf)) == 1


PROCESSORS = (Tempter, THINK, Witness)


def asking(policy):
    """A policy as a request says it: the fields that are not the default's."""
    return {name: value for name, value in asdict(policy).items() if value != POLICY_DEFAULTS[name]}


def sampling(bench, policy, **options):
    """SamplingParams of a guarded request; the policy None switches the guard off."""
    extra = options.pop("extra", {}) | {"thinkguard": False if policy is None else asking(policy)}
    defaults = {"temperature": 0.0, "stop_token_ids": list(bench.eos), "detokenize": False}
    return SamplingParams(extra_args=extra, **(defaults | options))


def generate(llm, bench, jobs, rng):
    """One output for each job, all asked for at once; a third of them greedily, the others at two temperatures."""
    Tempter.bench, Tempter.rng = bench, rng
    Witness.forced.clear()
    params = []
    for number, job in enumerate(jobs):
        taste = {"taste": job.taste.name, "often": job.taste.often, "number": number}
        options = {"max_tokens": job.max_tokens, "temperature": rng.choice([0.0, 1.0, 2.0])}
        params.append(sampling(bench, job.policy, extra=taste, **options))
    found = llm.generate([{"prompt_token_ids": list(job.prompt)} for job in jobs], params, use_tqdm=False)
    outputs = []
    for number, (job, one) in enumerate(zip(jobs, found, strict=True)):
        ids = list(one.outputs[0].token_ids)
        forced = [Witness.forced[number][position] for position in range(len(ids))]
        outputs.append(Output(job, ids, forced, finished=ids[-1] in bench.eos))
    return outputs


def unexplained(bench, output):
    """What the host's own walk over an output has to say against it, "" if nothing."""
    job, eos = output.job, eos_as_served(bench)
    row = bench.program.start(job.prompt, job.policy, max_tokens=job.max_tokens, eos_token_ids=eos)
    answered = row.phase == ANSWERING  # by the prompt
    for position, token in enumerate(output.ids):
        kind = row.decide().kind
        if kind != ALLOW and (kind == FORCE) != output.forced[position]:
            return f"token {position} was {'not ' * (kind == FORCE)}forced"
        bench.program.advance(row, token)
    trace = bench.program.explain(job.prompt, output.ids, job.policy, max_tokens=job.max_tokens, eos_token_ids=eos)
    if job.policy.markers_in_answer == "allow":
        return ""  # quoted ones are violations
    if trace.violations:
        return f"{trace.violations}"
    if trace.finished != output.finished or trace.phase not in ("answering", "done"):
        return f"finished={trace.finished}, {trace.phase}"
    if job.policy.min_answer_tokens and not answered and not trace.well_formed:
        return f"not well formed: {trace}"
    return ""


def eos_as_served(bench):
    """vLLM's EOS first, then the stop tokens in order."""
    first = bench.tokenizer.eos_token_id
    return tuple(dict.fromkeys((*((first,) if first is not None else ()), *sorted(bench.eos))))


def counted(llm):
    """The engine's counters by name."""
    return SimpleNamespace(**{metric.name.removeprefix("vllm:"): metric.value for metric in llm.get_metrics()
                              if hasattr(metric, "value")})  # fmt: skip


def fits(bench, job):
    """Whether a job's limit can hold what it asks for, so that the promise applies."""
    from thinkguard.errors import InputError, PolicyError

    try:
        bench.program.start(job.prompt, job.policy, max_tokens=job.max_tokens)
    except (InputError, PolicyError):
        return False
    return isinstance(job, Job)


def scripted(llm, bench, prompt, script, *, guarded):
    """What comes of a script under a thinking_token_budget of 20, which is ours, or vLLM's own without the guard."""
    params = sampling(bench, None, extra={"script": script}, max_tokens=len(script) + 12, thinking_token_budget=20)
    if guarded:
        del params.extra_args["thinkguard"]
    return list(llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0].outputs[0].token_ids)


def budget_cases(bench):
    """(prompt, script) of two turns in Qwen2.5's vocabulary: one opened with a token too long, one with a split end."""

    def encode(text):
        return bench.tokenizer(text, add_special_tokens=False)["input_ids"]

    chat = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    endless = encode("Let me add two and two once more. " * 8)
    answer = "The answer is four" + ", which is twice two" * 5 + ".<|im_end|>"
    natural = encode(f"\nTwo and two, that is clear.</think>\n\n{answer}")
    return {"opened": (encode(chat + "<think>\n"), endless), "split end": (encode(chat + "<think>"), natural)}
