"""What the loss covers: tokenised rows as trainers keep them, and the labels that a trainer would make of records."""

from __future__ import annotations

from collections import Counter

import pytest
from modes import CLEAN_TEMPLATE, HEALTHY, checkpoint
from modes_mask import START_OUTSIDE

from thinkguard.doctor.catalogue import entries
from thinkguard.doctor.judges.mask import IGNORED, judge
from thinkguard.doctor.judges.tags import Markers
from thinkguard.doctor.mask.labels import labeller_of
from thinkguard.doctor.mask.mask_checks import mask_checks
from thinkguard.doctor.records.record import Record, Turn
from thinkguard.doctor.template.readings import read_template
from thinkguard.doctor.template.sandbox import Renderer
from thinkguard.doctor.tokenizer.checkpoint import load_checkpoint
from thinkguard.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_tokenizer(HEALTHY)
THINK = Markers.of(None)
OPENS = Markers.of(None, prompt_opens=True)
USER = "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
MASK = [name for name, entry in entries().items() if entry.part == "mask"]


def row(*parts, **columns):
    """A row of (text, whether it is in the loss)."""
    ids, labels = [], []
    for text, learned in parts:
        new = VOCABULARY.encode(text)
        ids += new
        labels += new if learned else [IGNORED] * len(new)
    return Record([], kind="tokenized", raw={"input_ids": ids, "labels": labels, **columns})


def found(record, markers=THINK, vocabulary=VOCABULARY):
    hits = judge(record, markers, vocabulary)
    assert all(entries()[hit.check].part == "mask" for hit in hits)
    assert all(len(hit.excerpt) <= 200 and "\n" not in hit.excerpt for hit in hits)
    return {hit.check: hit.kind for hit in hits}


TURN = "<think>\nOne and one.\n</think>\n\n2.<|im_end|>\n"
FINE = {
    "the whole text": row((USER + TURN, True)),
    "the response": row((USER, False), (TURN, True)),
    "the newline behind the turn is not": row((USER, False), (TURN[:-1], True), ("\n", False)),
    "an earlier turn is not learned": row((USER + TURN + USER, False), (TURN, True)),
    "an earlier turn is": row((USER, False), (TURN, True), (USER, False), (TURN, True)),
    "no reasoning": row((USER, False), ("2.<|im_end|>\n", True)),
    "an empty block in the prompt": row((USER + "<think>\n\n</think>\n\n", False), ("2.<|im_end|>\n", True)),
    "an empty block, asked for": row(
        (USER.replace("1?", "1? /no_think"), False), ("<think>\n\n</think>\n\n2.<|im_end|>\n", True)
    ),
    "a lone end": row((USER, False), ("2.</think>3.<|im_end|>\n", True)),
}
BAD = {
    "start": (row((USER + "<think>\n", False), (TURN[8:], True)), "mask-start", "the start marker is not in the loss"),
    "end": (
        row((USER, False), ("<think>\nOne and one.\n", True), ("</think>", False), ("\n\n2.<|im_end|>\n", True)),
        "mask-end", "the end marker is not in the loss",
    ),
    "answer": (
        row((USER, False), ("<think>\nOne and one.\n</think>", True), ("\n\n2.<|im_end|>\n", False)),
        "mask-end", "the answer is not in the loss",
    ),
    "turn end": (
        row((USER, False), ("<think>\nOne and one.\n</think>\n\n2.", True), ("<|im_end|>\n", False)),
        "mask-end", "the turn's end is not in the loss",
    ),
    "cut off": (row((USER, False), ("<think>\nOne and", True)), "mask-end", "the row ends inside the block"),
    "no loss": (row((USER + TURN, False)), "mask-end", "nothing of the row is in the loss"),
    "body": (
        row((USER, False), ("<think>", True), ("\nOne and one.\n", False), ("</think>\n\n2.<|im_end|>\n", True)),
        "mask-body", "the reasoning alone",
    ),
    "block": (
        row((USER + "<think>\nOne and one.\n</think>\n\n", False), ("2.<|im_end|>\n", True)),
        "mask-body", "the reasoning and its markers",
    ),
    "empty": (
        row((USER, False), ("<think>\n\n</think>\n\n2.<|im_end|>\n", True)),
        "mask-empty-block", "an empty block in the loss",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
def test_a_whole_block_in_the_loss_is_right(name):
    assert found(FINE[name]) == {}


@pytest.mark.parametrize("name", BAD)
def test_what_the_loss_leaves_out_is_named_once(name):
    record, check, kind = BAD[name]
    assert found(record) == {check: kind}


def test_a_start_in_the_prompt_is_right_where_the_prompt_opens_the_block():
    assert found(BAD["start"][0], OPENS) == {}


SYSTEM = "<|im_start|>system\nBe short.<|im_end|>\n"


def test_packed_rows_have_to_say_where_one_ends():
    one = row((SYSTEM + USER + TURN, True))
    num = len(one.raw["input_ids"])
    packed = row((2 * (SYSTEM + USER + TURN), True))
    assert found(one) == {}
    assert found(packed) == {"packed-rows": "no column says where one ends"}

    def with_columns(**columns):
        return Record([], kind="tokenized", raw={**packed.raw, **columns})

    assert found(with_columns(position_ids=list(range(2 * num)))) == {"packed-rows": "positions do not restart"}
    assert found(with_columns(position_ids=2 * list(range(num)))) == {}
    assert found(with_columns(seq_lengths=[num, num])) == {}
    assert found(with_columns(attention_mask=[1] * num + [2] * num)) == {}
    assert found(with_columns(attention_mask=[1] * 2 * num)) == {"packed-rows": "no column says where one ends"}
    several = row((SYSTEM + USER + TURN + USER + TURN, True), position_ids=list(range(999)))
    assert found(several) == {}, "several turns of one conversation"


def test_bos_tokens_tell_conversations_apart():
    pieces = [bytes([i]) for i in range(256)]
    vocabulary = Vocabulary.from_parts(
        pieces, added={"<s>": 256, "</s>": 257}, special=[256, 257], bos_ids=[256], eos_ids=[257]
    )
    ids = [256, 65, 257, 256, 66, 257]
    raw = {"input_ids": ids, "labels": ids}
    assert found(Record([], kind="tokenized", raw=raw), THINK, vocabulary) == {
        "packed-rows": "no column says where one ends"
    }
    twice = {"input_ids": [256, 256, 65, 257], "labels": [256, 256, 65, 257]}
    assert found(Record([], kind="tokenized", raw=twice), THINK, vocabulary) == {}, "a doubled BOS is one conversation"


def test_rows_that_cannot_be_read_are_named():
    assert found(FINE["the response"], vocabulary=None) == {}
    ids = FINE["the response"].raw["input_ids"]
    for raw, kind in (
        ({"input_ids": [*ids, 10**6], "labels": [*ids, 0]}, "ids that this tokenizer does not have"),
        ({"input_ids": ids, "labels": ids[1:]}, "ids and labels of different lengths"),
        ({"input_ids": ids}, "no labels"),
        ({"input_ids": ["a"], "labels": [0]}, "ids or labels that are no numbers"),
        ({"input_ids": [], "labels": []}, "an empty row"),
    ):
        assert found(Record([], kind="tokenized", raw=raw)) == {"row-ids": kind}


def records(*contents, place="", **raw):
    """Training records with inline reasoning, or with it in a field."""
    made = []
    for content in contents:
        thought, answer = content if isinstance(content, tuple) else (None, content)
        turns = [Turn("user", "1 + 1?"), Turn("assistant", answer, thought, place if thought else "")]
        made.append(Record(turns, raw=dict(raw)))
    return made


INLINE = records("<think>\nOne and one.\n</think>\n\n2.", "<think>\nTwo.\n</think>\n\n4.")
FIELD = records(("One and one.", "2."), ("Two.", "4."), place="reasoning_content")
# Qwen3's way: it takes the reasoning out of the content, and the last turn gets a block in any case
SPLITTING = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- set content = message.content %}
    {%- set reasoning = message.reasoning_content or '' %}
    {%- if message.role == 'assistant' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<think>\\n' + reasoning + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def checks(folder, template, sample, trainer=None):
    """{check: status} of the mask's part, and the checks."""
    with Renderer() as renderer:
        loaded, _ = load_checkpoint(checkpoint(folder, template), renderer=renderer)
        readings = read_template(
            renderer, template, loaded.format, bos=loaded.bos, eos=loaded.eos, tokenizer=loaded.tokenizer
        )
        made = mask_checks(renderer, loaded, readings, sample, trainer)
    assert [check.name for check in made] == MASK or not made
    return {check.name: check.status for check in made}, {check.name: check for check in made}


@pytest.mark.parametrize("trainer", [None, "trl", "axolotl", "ms-swift", "openai", "llamafactory"])
def test_a_clean_template_is_learned_whole_by_every_trainer(tmp_path, trainer):
    sample = INLINE if trainer in ("llamafactory", "openai", "ms-swift") else INLINE + FIELD
    statuses, made = checks(tmp_path, CLEAN_TEMPLATE, sample, trainer)
    assert {name for name, status in statuses.items() if status != "ok"} == {"packed-rows"}, made
    assert statuses["packed-rows"] == "not applicable"


def test_axolotl_takes_the_start_for_the_templates_own(tmp_path):
    statuses, made = checks(tmp_path, SPLITTING, INLINE, "axolotl")
    assert statuses["mask-start"] == "problem"
    assert statuses["mask-end"] == statuses["mask-body"] == "ok"
    assert "2 of 2 records: the start marker is not in the loss (2), by axolotl's chat_template" in made["mask-start"].found
    assert "compares the turn with a dummy" in made["mask-start"].fix
    assert "⟦<think>⟧" in made["mask-start"].evidence[0]


def test_a_generation_block_behind_the_start_leaves_it_out(tmp_path):
    statuses, made = checks(tmp_path, START_OUTSIDE, FIELD, "trl")
    assert statuses["mask-start"] == "problem"
    assert "assistant_only_loss=True" in made["mask-start"].found


def test_lost_reasoning_is_anothers_problem(tmp_path):
    stripping = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content.split('</think>')[-1] + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"  # noqa: E501
    statuses, made = checks(tmp_path, stripping, INLINE)
    assert {statuses[name] for name in ("mask-start", "mask-end", "mask-body")} == {"skipped"}
    assert "see final-reasoning" in made["mask-start"].found


def test_an_inserted_empty_block_is_the_templates_problem(tmp_path):
    statuses, made = checks(tmp_path, SPLITTING, records("2.", "4."))
    assert statuses["mask-empty-block"] == "skipped"
    assert "see empty-block" in made["mask-empty-block"].found


def test_what_cannot_be_followed_is_said(tmp_path):
    assert checks(tmp_path / "a", CLEAN_TEMPLATE, [row((USER + TURN, True))])[1] == {}, "the audit judged the rows"
    statuses, _ = checks(tmp_path / "b", CLEAN_TEMPLATE, [Record([Turn("assistant", "2.")], kind="output")])
    assert set(statuses.values()) == {"not applicable"}
    plain = records("<think>a</think>2.", prompt="1 + 1?", completion="2.")
    statuses, made = checks(tmp_path / "c", CLEAN_TEMPLATE, plain, "trl")
    assert set(statuses.values()) == {"could not tell"}
    assert "plain text" in made["mask-start"].found
    statuses, made = checks(tmp_path / "d", "{{ raise_exception('no') }}", INLINE)
    assert set(statuses.values()) == {"skipped"}
    assert "see template-renders" in made["mask-start"].found
    statuses, made = checks(tmp_path / "e", CLEAN_TEMPLATE, records("2."), "llamafactory")
    assert statuses["mask-empty-block"] == "could not tell"
    assert "1 records have no reasoning" in made["mask-empty-block"].found


def test_labels_are_those_that_trl_makes(tmp_path):
    """The same ids and the same loss as `SFTTrainer` prepares, in its three ways."""
    pytest.importorskip("trl", reason="the labels are compared with those of TRL, which is not installed")
    transformers = pytest.importorskip("transformers", reason="TRL prepares its data with transformers")
    from trl.trainer.sft_trainer import common_prefix_length

    folder = checkpoint(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    messages = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "<think>\nOne.\n</think>\n\n2."}]
    inline = records("<think>\nOne.\n</think>\n\n2.")[0]
    with Renderer() as renderer:
        loaded, _ = load_checkpoint(folder, renderer=renderer)

        def labelled(record):
            labeller = labeller_of(loaded, record, "trl")
            return labeller.labelled(record, renderer.render(loaded.template, labeller.jobs_of(record)))

        made = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert (labelled(inline).ids, labelled(inline).loss) == (
            made["input_ids"],
            [bool(m) for m in made["assistant_masks"]],
        )
        inline.raw |= {"prompt": messages[:1], "completion": messages[1:]}
        prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
        same = common_prefix_length(prompt, made["input_ids"])
        assert labelled(inline).ids == made["input_ids"]
        assert Counter(labelled(inline).loss[:same]) == {False: same}
        assert all(labelled(inline).loss[same:])
