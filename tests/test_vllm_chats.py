"""vLLM's way of a request through both runners' adapters, in tokenizers whose BOS or padding also begins turns."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM's own parameters and tokenizers are used, and it is not installed")

import torch
from bos_turns import CONVERSATIONS, KINDS, TEXTS, folder_of
from test_vllm_requests import config_of, running
from transformers import PreTrainedTokenizerFast
from vllm.v1.sample.logits_processor import BatchUpdate

from thinkguard.vllm.engine_requests import Requests
from thinkguard.vllm.v1 import V1Batch
from thinkguard.vllm.v2 import V2Slots

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=KINDS)
def served(request, tmp_path_factory):
    """(folder, tokenizer) of a model that is served."""
    path = folder_of(request.param, tmp_path_factory.mktemp("served"))
    return path, PreTrainedTokenizerFast.from_pretrained(path)


def by_v1(requests, prompts, params):
    """The tokens that are left to each request's first step."""
    batch = V1Batch(requests, CPU)
    added = [(i, one, prompt, []) for i, (prompt, one) in enumerate(zip(prompts, params, strict=True))]
    batch.update_state(BatchUpdate(len(prompts), [], added, []))
    return [possible(row) for row in batch.apply(torch.zeros(len(prompts), requests.program.vocabulary.num_tokens))]


def by_v2(requests, prompts, params):
    num, longest = len(prompts), max(map(len, prompts))
    ints = dict(dtype=torch.int32)
    lengths = torch.tensor([len(prompt) for prompt in prompts], **ints)
    tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], **ints)
    slots = V2Slots(requests, SimpleNamespace(
        device=CPU, max_num_reqs=num, all_token_ids=SimpleNamespace(gpu=tokens), total_len=SimpleNamespace(gpu=lengths),
        prompt_len=SimpleNamespace(gpu=lengths, np=lengths.numpy()),
    ))  # fmt: skip
    for slot, one in enumerate(params):
        slots.add_request(slot, one)
    slots.apply_staged_writes()
    step = SimpleNamespace(
        idx_mapping_np=np.arange(num), expanded_idx_mapping=torch.arange(num, **ints),
        expanded_local_pos=torch.zeros(num, **ints), input_ids=torch.zeros(num, **ints),
    )  # fmt: skip
    for _ in range(2):  # what the device notes in a step is read in the next one
        logits = slots.apply(torch.zeros(num, requests.program.vocabulary.num_tokens), step)
    return [possible(row) for row in logits]


def possible(row):
    return torch.isfinite(row).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("runner", [by_v1, by_v2])
def test_the_servers_default_guards_chats_and_says_of_others_once(served, runner, vllm_log):
    path, tokenizer = served
    requests = Requests(config_of(path, {"format": "think", "max_thinking_tokens": 16}))
    render = {"add_generation_prompt": True, "tokenize": False}
    rendered = [tokenizer.apply_chat_template(chat, **render) for chat in CONVERSATIONS.values()]
    chats = [tokenizer(text, add_special_tokens=False).input_ids for text in rendered]
    left = runner(requests, chats, [running() for _ in chats])
    assert left == [[ord("<")]] * len(chats)

    def said():
        return [record.getMessage() for record in vllm_log if record.levelno >= logging.WARNING]

    before = said()
    assert not [text for text in before if "no chat" in text]
    texts = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    texts.append([tokenizer.bos_token_id, *texts[0]])
    left = runner(requests, texts, [running() for _ in texts])
    assert {len(row) for row in left} == {requests.program.vocabulary.num_tokens}
    runner(requests, texts, [running() for _ in texts])
    (more,) = said()[len(before) :]
    assert "shows no chat turn as format 'think' knows them" in more
    assert '"raw_completions": true' in more
    assert runner(requests, [texts[0]], [running(True)]) == [[ord("<")]], "it asks"
