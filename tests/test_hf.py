"""The Hugging Face processor in every mode of `generate`, each step held against a whole-history recomputation."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from model import Model

torch = pytest.importorskip("torch", reason="the Hugging Face adapter needs torch")
transformers = pytest.importorskip("transformers", reason="the Hugging Face adapter needs transformers")

from thinkguard import (  # noqa: E402
    InputError,
    PolicyError,
    ThinkFormat,
    ThinkPolicy,
    ThinkProgram,
    UnsupportedError,
    Vocabulary,
)
from thinkguard.device import kernels as device_kernels  # noqa: E402
from thinkguard.hf import ThinkLogitsProcessor  # noqa: E402
from thinkguard.hf import scores as hf_scores  # noqa: E402
from thinkguard.hf.attached import AttachedProcessor  # noqa: E402
from thinkguard.hf.history import History  # noqa: E402

PIECES = [bytes([b]) for b in range(32, 127)] + [
    b"\n",
    b"\n\n",
    b"</",
    b"<th",
    b"ink",
    b"think",
    b">\n",
    b">\n\n",
    b" a",
    b"b.",
]
ADDED = ["<|start|>", "<|end|>", "<|pad|>", "<|user|>"]


def make_vocabulary(markers=()):
    added = {name: len(PIECES) + i for i, name in enumerate([*ADDED, *markers])}
    special = [added[name] for name in ADDED]
    return Vocabulary.from_parts(
        PIECES, added=added, special=special, eos_ids=[added["<|end|>"]], pad_ids=[added["<|pad|>"]]
    )


TEXT = make_vocabulary()
TOKENS = make_vocabulary(["<think>", "</think>"])
FORMAT = ThinkFormat.from_name("think")


def make_model(vocabulary, width=None, seed=0, **config):
    torch.manual_seed(seed)
    eos, pad = vocabulary.eos_ids[0], vocabulary.pad_ids[0]
    config = transformers.Qwen2Config(
        vocab_size=width or vocabulary.num_tokens, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256, eos_token_id=eos, pad_token_id=pad,
        bos_token_id=None, initializer_range=1.0, **config,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config).eval()


def prompt(vocabulary, text="hi", opened=False):
    ids = vocabulary.encode(f"<|user|>{text}<|start|>assistant\n" + ("<think>\n" if opened else ""))
    return torch.tensor([ids])


def left_padded(vocabulary, texts):
    rows = [prompt(vocabulary, text)[0] for text in texts]
    width = max(map(len, rows))
    pad = vocabulary.pad_ids[0]
    ids = torch.stack([torch.cat([torch.full((width - len(row),), pad), row]) for row in rows])
    return ids, (ids != pad).long()


class Checked:
    """Wraps `__call__` of the processors: each edited row must be what the model makes of the row's whole history."""

    def __init__(self, monkeypatch, guard, prompts, limit=None):
        self.steps = 0
        self.guard, self.limit = guard, limit
        self.prompts = [row.tolist() for row in prompts]
        for cls in (ThinkLogitsProcessor, AttachedProcessor):
            monkeypatch.setattr(cls, "__call__", self.around(cls.__call__))

    def around(self, call):
        def checked(processor, input_ids, scores):
            before = scores.tolist()
            after = call(processor, input_ids, scores)
            self.compare(input_ids, before, after.tolist())
            return after

        return checked

    def compare(self, input_ids, before, after):
        assert len(after) == len(input_ids)
        for ids, row, edited in zip(input_ids.tolist(), before, after, strict=True):
            known = next(p for p in self.prompts if ids[: len(p)] == p)
            program = self.guard.program
            model = Model(
                program.format, program.vocabulary, self.guard.policy, self.guard.program.eos_token_ids, self.limit
            )
            model.start(known[program.turn(np.array(known, np.int32))[0] :], prompt_ids=known)
            for token in ids[len(known) :]:
                model.advance(token)
            wanted = np.array(model.apply(row), np.float32)
            assert np.array_equal(np.array(edited, np.float32), wanted), (ids, model.phase)
            self.steps += 1


def assert_structured(vocabulary, output, prompt_length, opened=False, eos=True):
    text = b"".join(vocabulary.token_bytes(t) for t in output[prompt_length:] if t != vocabulary.pad_ids[0]).decode(
        "utf-8", "replace"
    )
    whole = ("<think>\n" if opened else "") + text
    assert whole.startswith("<think>\n"), text
    assert whole.count("<think>") == whole.count("</think>") == 1, text
    answer = whole.split("</think>")[1].replace("<|end|>", "")
    assert answer.strip(), text


@pytest.fixture(params=["host", "kernels"])
def place(request, monkeypatch):
    """Where the rows are kept: on the host, or where scores and ids are, by the kernels, as on a GPU."""
    if request.param == "kernels":
        monkeypatch.setattr(hf_scores, "_ON_CPU", True)
    return request.param


MODES = {
    "greedy": dict(do_sample=False),
    "sampling": dict(do_sample=True, temperature=1.5),
    "beams": dict(num_beams=4, do_sample=False),
    "beam sampling": dict(num_beams=3, do_sample=True),
    "return sequences": dict(do_sample=True, num_return_sequences=3),
    "prompt lookup": dict(prompt_lookup_num_tokens=3, do_sample=False),
    "static cache": dict(cache_implementation="static", do_sample=False, disable_compile=True),
}


@pytest.mark.parametrize("attached", [False, True], ids=["alone", "attached"])
@pytest.mark.parametrize(
    ("place", "vocabulary"),
    [("host", TEXT), ("host", TOKENS), ("kernels", TEXT), ("kernels", TOKENS)],
    ids=["text", "tokens", "text by kernels", "tokens by kernels"],
    indirect=["place"],
)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_a_recomputation(mode, vocabulary, attached, place, monkeypatch):
    model, ids = make_model(vocabulary), prompt(vocabulary)
    guard = ThinkLogitsProcessor(vocabulary, format=FORMAT, max_thinking_tokens=9, grace_tokens=3, max_answer_tokens=8)
    checked = Checked(monkeypatch, guard, ids, limit=40 if attached else None)
    torch.manual_seed(1)
    if attached:
        with guard.attach(model):
            out = model.generate(ids, max_new_tokens=40, **MODES[mode])
    else:
        out = model.generate(ids, max_new_tokens=40, logits_processor=[guard], **MODES[mode])
    assert checked.steps >= 10
    assert bool(guard.binding.device_tables) == (place == "kernels")
    for row in out.tolist():
        assert_structured(vocabulary, row, ids.shape[1])
        trace = guard.explain(ids[0].tolist(), row[ids.shape[1] :], max_tokens=40 if attached else None)
        assert trace.well_formed, trace
        assert trace.thinking_tokens <= 9


@pytest.mark.parametrize("attached", [False, True], ids=["alone", "attached"])
@pytest.mark.parametrize("narrower", [0, 3])
def test_assisted_decoding_with_a_draft_model(narrower, attached, place, monkeypatch):
    """One instance serves draft and target, on prefixes that are later dropped; the draft's vocabulary may be narrower."""
    model, ids = make_model(TEXT, TEXT.num_tokens + 3), prompt(TEXT)
    draft = make_model(TEXT, TEXT.num_tokens + 3, seed=3)
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT, max_thinking_tokens=12, max_answer_tokens=8)
    checked = Checked(monkeypatch, guard, ids, limit=40 if attached else None)
    plain = model.generate(ids, max_new_tokens=40, logits_processor=[guard], do_sample=False)
    if narrower:
        call = draft.forward
        monkeypatch.setattr(draft, "forward", lambda *a, **k: _narrow(call(*a, **k), narrower))
    if attached:
        with guard.attach(model):
            out = model.generate(ids, max_new_tokens=40, assistant_model=draft, do_sample=False)
    else:
        out = model.generate(ids, max_new_tokens=40, logits_processor=[guard], assistant_model=draft, do_sample=False)
    assert checked.steps >= 20
    assert_structured(TEXT, out[0].tolist(), ids.shape[1])
    if not attached:
        assert out.tolist() == plain.tolist()


def _narrow(output, by):
    output.logits = output.logits[..., :-by]
    return output


@pytest.mark.parametrize("attached", [False, True], ids=["alone", "attached"])
def test_left_padding_and_rows_that_finish_early(attached, place, monkeypatch):
    model = make_model(TOKENS)
    ids, mask = left_padded(TOKENS, ["hi", "a longer question", "<think> quoted </think>"])
    guard = ThinkLogitsProcessor(TOKENS, format=FORMAT, max_thinking_tokens=5, max_answer_tokens=4)
    checked = Checked(monkeypatch, guard, ids, limit=30 if attached else None)
    arguments = dict(attention_mask=mask, max_new_tokens=30, do_sample=True)
    torch.manual_seed(2)
    if attached:
        with guard.attach(model):
            out = model.generate(ids, **arguments)
    else:
        out = model.generate(ids, logits_processor=[guard], **arguments)
    assert checked.steps > 20
    for row in out.tolist():
        assert_structured(TOKENS, row, ids.shape[1])


def test_resumed_cache_goes_on_where_it_stopped(place, monkeypatch):
    """A second call with the first one's tokens and cache continues inside the block."""
    model, ids = make_model(TEXT), prompt(TEXT)
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT, max_thinking_tokens=12, max_answer_tokens=6)
    Checked(monkeypatch, guard, ids)
    whole = model.generate(ids, max_new_tokens=40, do_sample=False, logits_processor=[guard])
    first = model.generate(
        ids, max_new_tokens=7, do_sample=False, logits_processor=[guard], return_dict_in_generate=True, use_cache=True
    )
    resumed = model.generate(
        first.sequences,
        max_new_tokens=33,
        do_sample=False,
        logits_processor=[guard],
        past_key_values=first.past_key_values,
    )
    assert resumed.tolist() == whole.tolist()


def test_one_processor_over_many_calls(place):
    """A new turn that extends the last call's sequence is a new prompt; so is the same prompt again, and a shorter one."""
    model = make_model(TEXT)
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT, max_thinking_tokens=6, max_answer_tokens=5)
    fresh = lambda: ThinkLogitsProcessor(guard.program, policy=guard.policy)  # noqa: E731
    ids = prompt(TEXT)
    arguments = dict(max_new_tokens=40, do_sample=False)
    for _ in range(3):
        out = model.generate(ids, logits_processor=[guard], **arguments)
        assert out.tolist() == model.generate(ids, logits_processor=[fresh()], **arguments).tolist()
        assert_structured(TEXT, out[0].tolist(), ids.shape[1])
        ids = torch.cat([out, prompt(TEXT, "more")], 1)
    short = prompt(TEXT)[:, :5]
    assert (
        model.generate(short, logits_processor=[guard], **arguments).tolist()
        == model.generate(short, logits_processor=[fresh()], **arguments).tolist()
    )


def test_an_attached_guard_knows_the_limit_and_reserves_the_answer(place):
    model, ids = make_model(TEXT), prompt(TEXT)
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT, reserve_answer_tokens=6)
    with guard.attach(model):
        out = model.generate(ids, max_new_tokens=30, do_sample=False, logits_processor=[guard])
    assert_structured(TEXT, out[0].tolist(), ids.shape[1])
    assert "_get_logits_processor" not in vars(model)
    with guard.attach(model), pytest.raises(InputError, match=r"max_tokens=9 .* raise max_tokens"):
        model.generate(ids, max_new_tokens=9, do_sample=False)


def test_raw_logits_of_the_host_stay_raw(place):
    """`output_logits=True` shares the tensor that is handed to the processors."""
    model, ids = make_model(TEXT), prompt(TEXT)
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT, max_thinking_tokens=4, max_answer_tokens=4)
    arguments = dict(max_new_tokens=30, do_sample=False, output_logits=True, return_dict_in_generate=True)
    alone = model.generate(ids, logits_processor=[guard], **arguments)
    with guard.attach(model):
        attached = model.generate(ids, **arguments)
    for out in (alone, attached):
        assert all(torch.isfinite(step).all() for step in out.logits)


def test_continuous_batching():
    model = make_model(TEXT)
    texts = ["hi", "two words", "a third question", "x" * 30]
    inputs = [prompt(TEXT, text)[0].tolist() for text in texts]
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT, max_thinking_tokens=7, max_answer_tokens=5)
    config = transformers.GenerationConfig(
        max_new_tokens=40, do_sample=False, eos_token_id=TEXT.eos_ids[0], pad_token_id=TEXT.pad_ids[0]
    )
    model.set_attn_implementation("paged|eager")
    small = transformers.ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=256)  # else most of the free memory
    with guard.attach(model):
        results = model.generate_batch(inputs, config, small, progress_bar=False)
    outputs = {tuple(result.prompt_ids): result.generated_tokens for result in results.values()}
    assert len(outputs) == len(inputs)
    for ids in inputs:
        assert_structured(TEXT, [*ids, *outputs[tuple(ids)]], len(ids))
        assert guard.explain(ids, outputs[tuple(ids)], max_tokens=40).well_formed


def test_where_the_kernels_do_not_run_the_host_edits(monkeypatch):
    """On a GPU of another maker, or behind a driver that refuses them."""
    monkeypatch.setattr(hf_scores, "_ON_CPU", True)
    monkeypatch.setattr(hf_scores, "_RUN_ON", {})
    monkeypatch.setattr(device_kernels, "kernels_of", lambda device: None)
    model, ids = make_model(TEXT), prompt(TEXT)
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT, max_thinking_tokens=6, max_answer_tokens=5)
    alone = model.generate(ids, max_new_tokens=30, do_sample=False, logits_processor=[guard])
    with guard.attach(model):
        attached = model.generate(ids, max_new_tokens=30, do_sample=False)
    assert alone.tolist() == attached.tolist()
    assert_structured(TEXT, alone[0].tolist(), ids.shape[1])
    assert not guard.binding.device_tables


def test_ids_of_another_width_go_by_the_host(monkeypatch):
    """The kernels read ids of 4 and of 8 bytes."""
    monkeypatch.setattr(hf_scores, "_ON_CPU", True)
    ids, scores = prompt(TEXT), torch.zeros(1, TEXT.num_tokens)
    kinds = (torch.int64, torch.int32, torch.int16, torch.uint8)
    assert [hf_scores.runs_on_device(ids.to(kind), scores) for kind in kinds] == [True, True, False, False]
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT, max_thinking_tokens=0)
    wide, narrow = (guard(ids.to(kind), scores.clone()) for kind in (torch.int64, torch.int16))
    assert torch.equal(wide, narrow)


def test_scores_of_a_type_that_the_core_does_not_know_are_refused(place):
    guard, ids = ThinkLogitsProcessor(TEXT, format=FORMAT), prompt(TEXT)
    own = AttachedProcessor(guard.binding, make_model(TEXT).generation_config, ids.shape[1])
    for processor in (guard, own):
        with pytest.raises(InputError, match=r"scores are torch.float64 .* wanted float32, float16 or bfloat16"):
            processor(ids, torch.zeros(1, TEXT.num_tokens, dtype=torch.float64))


def test_what_is_no_tensor_that_can_be_read_and_edited_is_refused(place):
    """By the processor itself and by the attached one, before and behind its first step."""
    guard, ids = ThinkLogitsProcessor(TEXT, format=FORMAT), prompt(TEXT)
    scores = torch.zeros(1, TEXT.num_tokens)
    negative, next_ids = torch._neg_view(scores.clone()), torch.cat([ids, ids[:, :1]], 1)
    began = AttachedProcessor(guard.binding, make_model(TEXT).generation_config, ids.shape[1])
    began(ids, scores.clone())
    new = AttachedProcessor(guard.binding, make_model(TEXT).generation_config, ids.shape[1])
    for processor, row in ((guard, ids), (new, ids), (began, next_ids)):
        for *wrong, told in (
            (row.tolist(), scores, "^input_ids is a list: wanted a torch tensor"),
            (None, scores, "^input_ids is a NoneType: wanted"),
            (row.numpy(), scores, "^input_ids is a ndarray: wanted"),
            (row[0], scores, "^input_ids has one dimension, as in continuous batching"),
            (row[None], scores, r"^input_ids is torch.int64 of shape .*: wanted ids, \[num_rows, length\]"),
            (row.bool(), scores, "^input_ids is torch.bool of shape"),
            (row.float(), scores, "^input_ids is torch.float32 of shape"),
            (row.to(torch.complex64), scores, "^input_ids is torch.complex64 of shape"),
            (row.to_sparse(), scores, "^input_ids is a tensor of layout torch.sparse_coo"),
            (row, scores[None], r"^(scores are torch.float32 of shape|logits have shape) \[1, 1, "),
        ):
            with pytest.raises(InputError, match=told):
                processor(*wrong)
    for processor in (guard, new):  # in a call that goes on what comes later is of the same hands as the first
        with pytest.raises(InputError, match=r"^input_ids has the negative bit set: pass input_ids.resolve_neg\(\)"):
            processor(torch._neg_view(ids), scores)
        with pytest.raises(InputError, match=r"^scores has the negative bit set: pass scores.resolve_neg\(\)"):
            processor(ids, negative)
    assert torch.equal(negative, scores), "left as it was"
    assert torch.equal(began(next_ids, scores.clone()), guard(next_ids, scores.clone())), "and the next step goes on"


def test_ids_that_lie_askew_are_read_as_they_are(place):
    guard, ids = ThinkLogitsProcessor(TEXT, format=FORMAT, max_thinking_tokens=2), prompt(TEXT)
    own = AttachedProcessor(guard.binding, make_model(TEXT).generation_config, ids.shape[1])
    other = AttachedProcessor(guard.binding, make_model(TEXT).generation_config, ids.shape[1])
    for token in (*TEXT.encode("<think>\nab"), *TEXT.encode("</think>")):
        askew = torch.frombuffer(bytearray(b"." + ids.numpy().tobytes()), dtype=torch.int64, offset=1)[None]
        scores = torch.zeros(1, TEXT.num_tokens)
        assert torch.equal(own(askew, scores.clone()), other(ids, scores.clone()))
        ids = torch.cat([ids, torch.tensor([[token]])], 1)


@pytest.mark.parametrize("wrong", [1.5, [1.5], "12", ["1"], [None], True, torch.tensor([1.5])], ids=repr)
def test_an_eos_that_is_no_token_id_is_refused(wrong):
    with pytest.raises(InputError, match=r"^eos_token_id is .*: wanted a whole number, as token ids are"):
        ThinkLogitsProcessor(TEXT, format=FORMAT, eos_token_id=wrong)


def test_bad_input_is_refused_by_name():
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT)
    ids = prompt(TEXT)
    with pytest.raises(InputError, match=r"scores are torch.int64 of shape \[1, 9\]"):
        guard(ids, torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(InputError, match=r"scores are torch.float32 of shape \[9\]"):
        guard(ids, torch.zeros(9))
    with pytest.raises(InputError, match="input_ids has 1 rows and scores 2"):
        guard(ids, torch.zeros(2, 9))
    with pytest.raises(InputError, match=r"use `with guard\.attach\(model\): model\.generate_batch"):
        guard(ids[0], torch.zeros(1, 9))
    with pytest.raises(InputError, match="input_ids holds -100"):
        guard(torch.tensor([[-100, 3]]), torch.zeros(1, 200))
    with pytest.raises(PolicyError, match="unknown policy field 'max_thinking': did you mean 'max_thinking_tokens'"):
        ThinkLogitsProcessor(TEXT, format=FORMAT, max_thinking=3)
    with pytest.raises(InputError, match="not both"):
        ThinkLogitsProcessor(TEXT, format=FORMAT, policy=ThinkPolicy(), max_thinking_tokens=3)


def test_empty_batch_and_a_generated_negative_id():
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT)
    assert guard(torch.zeros(0, 4, dtype=torch.long), torch.zeros(0, 200)).shape == (0, 200)
    ids = prompt(TEXT)
    guard(ids, torch.zeros(1, 200))
    scores = torch.randn(1, 200)
    inert = guard(torch.cat([ids, torch.tensor([[-1]])], 1), scores)
    assert torch.equal(inert, scores)


def test_the_signature_is_at_hand():
    """`generate` asks for it at every step."""
    import inspect

    for cls in (ThinkLogitsProcessor, AttachedProcessor):
        assert list(inspect.signature(cls.__call__).parameters) == ["self", "input_ids", "scores"]


def test_program_is_shared_and_pickled():
    import pickle

    program = ThinkProgram(FORMAT, TEXT)
    again = pickle.loads(pickle.dumps(program))
    guard = ThinkLogitsProcessor(again, max_thinking_tokens=3)
    assert guard.program is again
    model, ids = make_model(TEXT), prompt(TEXT)
    arguments = dict(max_new_tokens=20, do_sample=False)
    one = model.generate(ids, logits_processor=[guard], **arguments)
    two = model.generate(ids, logits_processor=[ThinkLogitsProcessor(program, max_thinking_tokens=3)], **arguments)
    assert one.tolist() == two.tolist()


def test_a_wrapper_of_the_model_is_seen_through():
    """PEFT's `generate` runs that of the model inside; an attribute set on the wrapper would guard nothing."""

    class Wrapper(torch.nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside = inside

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.inside, name)

        def generate(self, *args, **kwargs):
            return self.inside.generate(*args, **kwargs)

    model, ids = make_model(TEXT), prompt(TEXT)
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT, max_thinking_tokens=6, max_answer_tokens=5)
    wrapper = Wrapper(model)
    with guard.attach(wrapper):
        out = wrapper.generate(ids, max_new_tokens=30, do_sample=False)
    assert_structured(TEXT, out[0].tolist(), ids.shape[1])
    assert "_get_logits_processor" not in vars(model)
    with pytest.raises(InputError, match="model is a Linear"), guard.attach(torch.nn.Linear(1, 1)):
        pass


def test_a_second_guard_on_one_model_is_refused_and_the_first_stays():
    model, ids = make_model(TEXT), prompt(TEXT)
    first, second = (ThinkLogitsProcessor(TEXT, format=FORMAT, max_answer_tokens=5) for _ in range(2))
    with first.attach(model):
        for guard in (first, second):
            with pytest.raises(UnsupportedError, match="attached to this model already"), guard.attach(model):
                pass
        out = model.generate(ids, max_new_tokens=30, do_sample=False)
    assert_structured(TEXT, out[0].tolist(), ids.shape[1])
    assert not {"_get_logits_processor", "init_continuous_batching"} & set(vars(model))


def test_a_draft_model_may_be_attached_too(place):
    """Its calls begin in the middle of the target's output and have a few tokens to go."""
    model, draft, ids = make_model(TEXT), make_model(TEXT, seed=3), prompt(TEXT)
    draft.generation_config.num_assistant_tokens = 3
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT, max_thinking_tokens=12, max_answer_tokens=8)
    with guard.attach(model), guard.attach(draft):
        plain = model.generate(ids, max_new_tokens=40, do_sample=False)
        assert model.generate(ids, max_new_tokens=40, assistant_model=draft, do_sample=False).tolist() == plain.tolist()


def test_calls_in_threads_and_in_turn_do_not_disturb_each_other():
    """Two batches of 100 rows, step by step in turn, and two threads: no row is taken for a prompt."""
    import threading

    guard = ThinkLogitsProcessor(TEXT, format=FORMAT, max_thinking_tokens=30)
    walked = []
    walk = History._walk
    History._walk = lambda rows, ids, length: walked.append(length) or walk(rows, ids, length)
    heads = [torch.cat([prompt(TEXT, f"{name}{i:03}") for i in range(100)]) for name in "ab"]

    def steps(batches):
        for _ in range(6):
            for k, ids in enumerate(batches):
                guard(ids, torch.zeros(100, TEXT.num_tokens))
                batches[k] = torch.cat([ids, torch.full((100, 1), 40 + k)], 1)

    try:
        steps(list(heads))
        assert len(walked) == 200
        threads = [threading.Thread(target=steps, args=([head],)) for head in heads for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(walked) == {heads[0].shape[1]}
        assert len(walked) == 600
    finally:
        History._walk = walk


def test_threads_have_rows_of_their_own_where_the_kernels_keep_them(place):
    """Two calls at once, each with the steps of its own batch, and one processor; the tables are shared."""
    import threading

    guard = ThinkLogitsProcessor(TEXT, format=FORMAT, max_thinking_tokens=3)
    heads = [torch.cat([prompt(TEXT, f"{name}{i}", opened=True) for i in range(8)]) for name in "abc"]
    found = {}

    def steps(processor, number, ids):
        for step in range(6):
            scores = processor(ids, torch.zeros(8, TEXT.num_tokens))
            found[number, step] = scores
            ids = torch.cat([ids, scores.argmax(1, keepdim=True)], 1)

    threads = [threading.Thread(target=steps, args=(guard, number, ids)) for number, ids in enumerate(heads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = dict(found)
    for number, ids in enumerate(heads):
        steps(ThinkLogitsProcessor(guard.program, policy=guard.policy), number, ids)
    assert len(together) == 18
    assert all(torch.equal(together[key], found[key]) for key in found)


def test_ids_on_another_device_are_never_read_by_address():
    """A draft model may live elsewhere, and go on where the target's last call stopped."""
    model, ids = make_model(TEXT), prompt(TEXT)
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT)
    own = AttachedProcessor(guard.binding, model.generation_config, ids.shape[1])
    scores = torch.zeros(1, TEXT.num_tokens)
    token = int(own(ids, scores.clone()).argmax())
    longer = torch.cat([ids, torch.tensor([[token]])], 1)
    narrow = own(longer.int(), scores.clone())
    assert torch.equal(narrow, guard(longer, scores))


def test_scores_that_prompt_lookup_shares_stay(place):
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT)
    config = transformers.GenerationConfig(prompt_lookup_num_tokens=3)
    ids, scores = prompt(TEXT), torch.ones(1, TEXT.num_tokens)
    own = AttachedProcessor(guard.binding, config, ids.shape[1])
    assert not torch.equal(own(ids, scores), scores)
    assert torch.equal(scores, torch.ones(1, TEXT.num_tokens))


def test_eos_token_id_may_be_any_whole_number():
    end = TEXT.eos_ids[0]
    for eos in (end, np.int64(end), [end], np.array([end]), torch.tensor(end), torch.tensor([end])):
        assert ThinkLogitsProcessor(TEXT, format=FORMAT, eos_token_id=eos).binding.eos_token_ids == (end,)


def test_continuous_batching_leaves_the_callers_config_and_sees_an_unguarded_manager():
    from thinkguard.hf.continuous import with_per_request_processors

    class Model:
        _cached_continuous_batching_manager = None

        def init_continuous_batching(self, generation_config=None, continuous_batching_config=None):
            return continuous_batching_config

    model, config = Model(), transformers.ContinuousBatchingConfig()
    before = dict(vars(config))
    with with_per_request_processors(model):
        used = model.init_continuous_batching(None, config)
        assert used.per_request_processors
        assert used.use_async_batching is False
        assert used.use_cuda_graph is False, "a replayed graph asks nobody"
        assert vars(config) == before
        for graphs in (True, (False, True)):
            with pytest.raises(UnsupportedError, match="use_cuda_graph=True replays steps"):
                model.init_continuous_batching(None, transformers.ContinuousBatchingConfig(use_cuda_graph=graphs))
        model._cached_continuous_batching_manager = used
        model.init_continuous_batching(None, config)
        model._cached_continuous_batching_manager = object()
        with pytest.raises(UnsupportedError, match="destroy_cached_continuous_batching_manager"):
            model.init_continuous_batching(None, config)


@pytest.mark.parametrize("config", [object, type("Config", (), {"use_cuda_graph": False})], ids=["none", "an older one"])
def test_releases_without_per_request_processors_are_refused_with_the_remedy(config, monkeypatch):
    """transformers 4.56 to 5.0 have `generate_batch`, and no configuration of it."""
    from thinkguard.hf.continuous import with_per_request_processors

    class Model:
        def init_continuous_batching(self, generation_config=None, **arguments):
            raise AssertionError("it was not refused")

    monkeypatch.setattr(sys.modules["transformers"], "ContinuousBatchingConfig", config)
    model = Model()
    with with_per_request_processors(model), pytest.raises(UnsupportedError, match=r"upgrade to 5\.8"):
        model.init_continuous_batching(None, manual_eviction=False)


def test_explain_knows_the_eos_of_an_attached_call():
    """The host's EOS is the one that is forced at `max_answer_tokens`."""
    model, ids = make_model(TEXT), prompt(TEXT)
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT, max_thinking_tokens=8, max_answer_tokens=5)
    with guard.attach(model):
        out = model.generate(ids, max_new_tokens=60, do_sample=False, eos_token_id=TEXT.encode("Z"))
    trace = guard.explain(ids[0], out[0, ids.shape[1] :], max_tokens=60)
    assert trace.finished
    assert trace.well_formed, trace


def test_what_another_processor_bans_is_said_once(place, caplog):
    """A bad word that the close begins with: the close goes on without it, and the log says so."""
    model, ids = make_model(TEXT), prompt(TEXT)
    guard = ThinkLogitsProcessor(TEXT, format=FORMAT, max_thinking_tokens=3, max_answer_tokens=3, close_message="Stop.")
    with guard.attach(model):
        for _ in range(2):
            out = model.generate(ids, max_new_tokens=40, do_sample=False, bad_words_ids=[TEXT.encode("S")])
    assert_structured(TEXT, out[0].tolist(), ids.shape[1])
    trace = guard.explain(ids[0], out[0, ids.shape[1] :], max_tokens=40)
    assert trace.well_formed
    assert trace.skipped
    assert sum("had banned the token that was due" in record.message for record in caplog.records) == 1
