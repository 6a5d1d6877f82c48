"""What the doctor says about tokenizers, weights, adapters and copies of templates, and its copy with mended markers."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from modes import CLEAN_TEMPLATE, checkpoint, edit_json
from modes_tokenizer import END, START, adapter_rows, added, decode_spacing, marker_special, set_row, special, without

from thinkguard.doctor.check import Check
from thinkguard.doctor.template.sandbox import Renderer
from thinkguard.doctor.tokenizer.checkpoint import Checkpoint, load_checkpoint
from thinkguard.doctor.tokenizer.compared import against_checks
from thinkguard.doctor.tokenizer.fix_tokenizer import fix_tokenizer
from thinkguard.doctor.tokenizer.splits import LEFT, RIGHT, splits
from thinkguard.doctor.tokenizer.tensor_rows import matrices
from thinkguard.doctor.tokenizer.tokenizer_checks import tokenizer_checks
from thinkguard.doctor.tokenizer.weights import weight_checks
from thinkguard.errors import FormatError, InputError, UnsupportedError
from thinkguard.vocabulary import Vocabulary

pytest.importorskip("transformers", reason="the tokenizers are loaded by it")


@pytest.fixture(scope="module")
def renderer():
    with Renderer() as renderer:
        yield renderer


def load(renderer: Renderer, path: Path, **options) -> Checkpoint:
    return load_checkpoint(path, renderer=renderer, **options)[0]


def checks(renderer: Renderer, path: Path, **options) -> dict[str, Check]:
    loaded, told = load_checkpoint(path, renderer=renderer, **options)
    return {check.name: check for check in (*told, *tokenizer_checks(loaded), *weight_checks(loaded))}


def plain_class(path: Path) -> Path:
    """Let tokenizer.json alone decide, whatever the model's type says."""
    edit_json(path / "config.json", lambda config: config.update(model_type="llama"))
    edit_json(path / "tokenizer_config.json", lambda config: config.update(tokenizer_class="PreTrainedTokenizerFast"))
    return path


# Real tokenizers


@pytest.mark.parametrize(
    ("name", "family", "tokens", "flags"),
    [
        ("gpt-oss", "gpt_oss_harmony", "ok", "note"),
        ("olmo3-think", "olmo3_think", "note", "not applicable"),
        ("mistral-v1-spm", "think", "note", "not applicable"),
    ],
)
def test_a_healthy_model_has_no_problem(renderer, tokenizer_dirs, name, family, tokens, flags):
    loaded, told = load_checkpoint(tokenizer_dirs[name], renderer=renderer)
    found = {check.name: check for check in (*told, *tokenizer_checks(loaded), *weight_checks(loaded))}
    assert loaded.format.name == family
    assert (found["marker-tokens"].status, found["marker-special"].status) == (tokens, flags)
    others = {check.status for check in found.values() if check.name not in ("marker-tokens", "marker-special")}
    assert others <= {"ok", "skipped", "not applicable"}


def test_a_text_marker_is_counted_in_every_context(tokenizer_dirs):
    vocabulary = Vocabulary.from_tokenizer(tokenizer_dirs["olmo3-think"])
    found = splits(vocabulary, "</think>")
    assert sum(found.values()) == len(LEFT) * len(RIGHT)
    assert all(b"</think>" in b"".join(map(vocabulary.token_bytes, span)) for span in found)
    assert tuple(vocabulary.encode("</think>\n\n")) in found  # `>\n\n` is one token there
    assert len(found) > 20


def test_a_byte_level_file_under_a_sentencepiece_class(renderer, tokenizer_dirs, tmp_path):
    """transformers #45488: it depends on the label and, in a whole checkpoint, on the model's type."""
    path = tmp_path / "copy"
    shutil.copytree(tokenizer_dirs["r1-distill-qwen"], path)
    edit_json(path / "tokenizer_config.json", lambda config: config.update(tokenizer_class="LlamaTokenizerFast"))
    found = checks(renderer, path)
    assert found["round-trip"].status == "problem"
    assert "Metaspace" in found["round-trip"].found
    assert "ByteLevel" in found["round-trip"].found
    assert "PreTrainedTokenizerFast" in found["round-trip"].fix
    assert "⟦\\n\\n⟧" in found["round-trip"].evidence[0]
    assert found["decode-spacing"].status == "skipped"
    (path / "config.json").write_text('{"model_type": "qwen2"}', encoding="utf-8")  # whose own class is byte-level
    assert checks(renderer, path)["round-trip"].status == "ok"


# Markers


def test_special_markers_are_named_with_case_cause_and_cure(renderer, tmp_path):
    found = checks(renderer, marker_special(tmp_path, True).path)["marker-special"]
    assert "registered as special tokens; skip_special_tokens=True, the default of vLLM" in found.found
    assert "--add_tokens instead of --add_special_tokens or new_special_tokens" in found.fix
    assert "--fix-tokenizer" in found.fix
    assert {"LLaMA-Factory #6996", "LLaMA-Factory #7080"} <= set(found.entry.references)
    assert found.evidence == (r"'⟦<think>⟧\nreasoning\n⟦</think>⟧\n\nanswer' is decoded as '\nreasoning\n\n\nanswer'",)


def test_a_list_of_special_tokens_makes_a_marker_special_too(renderer, tmp_path):
    path = checkpoint(tmp_path)
    edit_json(path / "tokenizer_config.json", lambda config: config.update(additional_special_tokens=["</think>"]))
    found = checks(renderer, path)["marker-special"]
    assert found.status == "problem"
    assert found.found.startswith("'</think>' registered")


def test_a_folder_without_markers_is_judged_as_plain_think(renderer, tmp_path):
    template = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}{% endfor %}"
    path = checkpoint(tmp_path, template)
    edit_json(path / "tokenizer.json", without("<think>", "</think>"))
    loaded = load(renderer, path)
    assert loaded.assumed
    assert loaded.format.name == "think"
    assert "no markers of its own" in checks(renderer, path)["marker-tokens"].found
    named = load(renderer, path, format="seed_oss")
    assert (named.format.name, named.assumed) == ("seed_oss", False)
    with pytest.raises(FormatError, match="seed_oss"):
        load(renderer, path, format="seed_os")


def test_a_family_with_tokens_of_its_own_says_so_where_they_are_missing(renderer, tmp_path):
    path = checkpoint(tmp_path)
    edit_json(path / "tokenizer.json", without("<think>", "</think>"))
    found = checks(renderer, path, format="qwen3")["marker-tokens"]
    assert "qwen3 has tokens of its own for them, this vocabulary has not" in found.found
    assert any("cut behind the marker" in line and "⟦" in line for line in found.evidence)


def test_files_that_give_a_marker_different_ids(renderer, tmp_path):
    path = checkpoint(tmp_path)
    (path / "added_tokens.json").write_text('{"</think>": 77}', encoding="utf-8")
    found = checks(renderer, path)["marker-duplicate"]
    assert found.status == "problem"
    assert "'</think>' is 77 in added_tokens.json" in found.evidence


# White space


def test_a_marker_that_eats_white_space(renderer, tmp_path):
    path = checkpoint(tmp_path)

    def edit(tokens):
        tokens[-1]["lstrip"] = tokens[-1]["rstrip"] = True

    edit_json(path / "tokenizer.json", added(edit))
    found = checks(renderer, path)["round-trip"]
    assert found.status == "problem"
    assert found.found == "'</think>' eats the white space beside it"


def test_a_tokenizer_without_a_decoder(renderer, tmp_path):
    path = plain_class(checkpoint(tmp_path))
    edit_json(path / "tokenizer.json", lambda value: value.update(decoder=None))
    found = checks(renderer, path)
    assert found["decode-spacing"].status == "problem"
    assert found["round-trip"].status == "skipped"
    assert found["checkpoint"].status == "could not tell"
    assert "no decoder" in found["checkpoint"].evidence[0]


def test_blanks_inside_a_marker_are_a_problem(renderer, tmp_path):
    """Kimi-K3's marker is three tokens; a blank behind the first tears it."""
    path = decode_spacing(tmp_path, True).path
    edit_json(path / "tokenizer.json", added(lambda tokens: tokens[2:].clear()))

    def rename(tokens):
        for token, content in zip(tokens[1:4], ("<|open|>", "<|close|>", "<|sep|>"), strict=True):
            token["content"] = content

    edit_json(path / "tokenizer.json", added(rename))
    edit_json(path / "tokenizer_config.json", lambda config: config.update(eos_token="<|endoftext|>"))
    found = checks(renderer, path, format="kimi_k3")["decode-spacing"]
    assert found.status == "problem"
    assert "<|open|>⟦ ⟧think" in found.evidence[0]


def test_decoding_that_tidies_blanks_away(renderer, tmp_path):
    path = plain_class(checkpoint(tmp_path))
    names = ("clean_up_tokenization_spaces", "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    edit_json(path / "tokenizer_config.json", lambda config: config.update(dict.fromkeys(names, True)))
    found = checks(renderer, path)["decode-spacing"]
    assert found.status == "note"
    assert "here⟦ ⟧." in found.evidence[0]
    assert "clean_up_tokenization_spaces" in found.fix


def test_a_slow_tokenizer_is_decoded_with_blanks_by_vllm(renderer, tmp_path):
    class Slow:
        is_fast = False

        def __init__(self, tokenizer):
            self.encode, self.decode = tokenizer.encode, tokenizer.decode

    loaded = load(renderer, checkpoint(tmp_path))
    found = {check.name: check for check in tokenizer_checks(replace(loaded, tokenizer=Slow(loaded.tokenizer)))}
    assert found["decode-spacing"].status == "note"
    assert "spaces_between_special_tokens=False" in found["decode-spacing"].fix
    assert found["round-trip"].status == "ok"


# Copies of the template


def test_copies_that_write_the_same_agree(renderer, tmp_path):
    path = checkpoint(tmp_path)
    other = "{# another text #}" + CLEAN_TEMPLATE
    edit_json(path / "tokenizer_config.json", lambda config: config.update(chat_template=other))
    assert "differ in text but write the same" in checks(renderer, path)["template-copies"].found


def test_named_templates_are_compared_by_name(renderer, tmp_path):
    path = checkpoint(tmp_path)
    listed = [{"name": "default", "template": CLEAN_TEMPLATE + "\n"}, {"name": "rag", "template": "{{ messages }}"}]
    edit_json(path / "tokenizer_config.json", lambda config: config.update(chat_template=listed))
    assert checks(renderer, path)["template-copies"].status == "ok"
    named = path / "additional_chat_templates"
    named.mkdir()
    (named / "rag.jinja").write_text("{{ documents }}", encoding="utf-8")
    found = checks(renderer, path)["template-copies"]
    assert found.status == "problem"
    assert "'rag'" in found.found


def test_the_template_may_be_given(renderer, tmp_path):
    path = checkpoint(tmp_path)
    file = tmp_path / "other.jinja"
    file.write_text("{{ bos_token }}", encoding="utf-8")
    loaded = load(renderer, path, template=file)
    assert (loaded.template, loaded.template_name) == ("{{ bos_token }}", f"--template {file}")
    with pytest.raises(InputError, match="no such file"):
        load(renderer, path, template=tmp_path / "absent.jinja")


# Weights


def write_matrices(path: Path, **arrays: np.ndarray) -> None:
    """Write matrices as a safetensors file, by hand: float32, float16, or bf16 given as uint16."""
    names = {"f4": "F32", "f2": "F16", "u2": "BF16", "i1": "I8"}
    header, data = {}, b""
    for name, array in arrays.items():
        begin, data = len(data), data + array.tobytes()
        kind = names[f"{array.dtype.kind}{array.dtype.itemsize}"]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def trained(seed: int = 0) -> np.ndarray:
    """A matrix like a trained one: [512, 64], rows of different lengths."""
    random = np.random.default_rng(seed)
    return (random.normal(size=(512, 64)) * random.uniform(0.5, 2, size=(512, 1))).astype(np.float32)


def rows_of(kind: str) -> np.ndarray:
    matrix = trained()
    if kind == "zero":
        matrix[START:] = 0
    elif kind == "mean":
        matrix[START:] = matrix[:507].mean(axis=0) + 1e-4 * trained(1)[START:]
    elif kind == "alike":
        matrix[END] = matrix[START]
    elif kind == "nan":
        matrix[END, 3] = np.nan
    elif kind == "fresh":
        matrix[START:] = 0.02 * np.random.default_rng(2).choice((-1, 1), size=(2, 64))
    return matrix


@pytest.mark.parametrize(
    ("kind", "status", "why"),
    [
        ("trained", "ok", "like other trained rows"),
        ("zero", "problem", "is zero"),
        ("mean", "problem", "is the mean of the other rows"),
        ("alike", "problem", "is the same as row"),
        ("nan", "problem", "holds NaN"),
        ("fresh", "note", "that of a fresh row"),
    ],
)
@pytest.mark.parametrize("matrix", ["model.embed_tokens.weight", "lm_head.weight"])
def test_untrained_rows_are_told_from_trained_ones(renderer, tmp_path, kind, status, why, matrix):
    path = checkpoint(tmp_path)
    both = {"model.embed_tokens.weight": trained(), "lm_head.weight": trained(3), matrix: rows_of(kind)}
    write_matrices(path / "model.safetensors", **both)
    found = checks(renderer, path)["embedding-rows"]
    assert found.status == status
    assert why in " ".join((found.found, *found.evidence))
    assert status == "ok" or matrix in found.evidence[0]


def test_padding_rows_show_what_untrained_rows_look_like(renderer, tmp_path):
    path = checkpoint(tmp_path)
    edit_json(path / "config.json", lambda config: config.update(vocab_size=640))
    padding = 1e-3 * trained(4)[:128]
    write_matrices(path / "model.safetensors", **{"model.embed_tokens.weight": np.concatenate((trained(), padding))})
    assert checks(renderer, path)["embedding-rows"].status == "ok"
    matrix = np.concatenate((trained()[:START], padding[:2], padding))
    write_matrices(path / "model.safetensors", **{"model.embed_tokens.weight": matrix})
    assert "same as a row that no token has" in checks(renderer, path)["embedding-rows"].evidence[0]
    matrix[START : END + 1] *= 1.1
    write_matrices(path / "model.safetensors", **{"model.embed_tokens.weight": matrix})
    found = checks(renderer, path)["embedding-rows"]
    assert found.status == "note"
    assert "like rows that no token has" in found.evidence[0]


def test_sizes_that_contradict_each_other(renderer, tmp_path):
    path = checkpoint(tmp_path)
    edit_json(path / "config.json", lambda config: config.update(vocab_size=500))
    found = checks(renderer, path)["embedding-rows"]
    assert found.status == "problem"
    assert '"vocab_size": 512' in found.fix


def test_shards_are_found_through_the_index(renderer, tmp_path):
    path = checkpoint(tmp_path)
    (path / "model.safetensors").unlink()
    places = {"model.embed_tokens.weight": "a-1.safetensors", "lm_head.weight": "a-2.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    write_matrices(path / "a-1.safetensors", **{"model.embed_tokens.weight": trained()})
    missing = checks(renderer, path)["embedding-rows"]
    assert missing.status == "could not tell"
    assert "a-2.safetensors" in missing.found
    write_matrices(path / "a-2.safetensors", **{"lm_head.weight": rows_of("zero")})
    assert checks(renderer, path)["embedding-rows"].status == "problem"


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "bf16"])
def test_rows_are_read_as_they_are_stored(tmp_path, dtype):
    matrix = trained()
    stored = (matrix.view("<u4") >> 16).astype("<u2") if dtype == "bf16" else matrix.astype(dtype)
    write_matrices(tmp_path / "model.safetensors", first=stored[:3], second=stored)
    _, second = matrices(tmp_path)
    np.testing.assert_allclose(second.rows([511, 0]), matrix[[511, 0]], rtol=0.01)
    with pytest.raises(InputError, match="no row 512"):
        second.rows([512])


def test_a_model_of_any_size_is_read_in_slices(renderer, tmp_path):
    """The file has 256 GiB of nothing: reading more than rows of it would not end."""
    path = checkpoint(tmp_path)
    num_rows, width = 1 << 20, 1 << 16
    edit_json(path / "config.json", lambda config: config.update(vocab_size=num_rows))
    size = num_rows * width * 4
    entry = {"dtype": "F32", "shape": [num_rows, width], "data_offsets": [0, size]}
    text = json.dumps({"model.embed_tokens.weight": entry}).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
        for row in range(512):
            file.seek(8 + len(text) + row * width * 4)
            file.write(struct.pack("<f", 1 + row * 37 % 100))
    assert checks(renderer, path)["embedding-rows"].status == "ok"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no safetensors header"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (struct.pack("<Q", 2**60) + b"{}", "no safetensors header"),
        (struct.pack("<Q", 2) + b"[]", "broken safetensors header"),
        (struct.pack("<Q", 12) + b'{"a": {"b":1', "broken safetensors header"),
    ],
)
def test_broken_weights_are_told(renderer, tmp_path, content, told):
    path = checkpoint(tmp_path)
    (path / "model.safetensors").write_bytes(content)
    found = checks(renderer, path)["embedding-rows"]
    assert found.status == "could not tell"
    assert told in found.found


def test_weights_that_were_cut_short_or_quantised(renderer, tmp_path):
    path = checkpoint(tmp_path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:9000])
    assert "cut short" in checks(renderer, path)["embedding-rows"].found
    write_matrices(file, **{"model.embed_tokens.weight": trained().astype(np.int8)})
    assert "stored as I8" in checks(renderer, path)["embedding-rows"].found


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, "ok"),
        ({"target_modules": ["q_proj", "model.embed_tokens"]}, "ok"),
        ({"trainable_token_indices": [START, END]}, "ok"),
        ({"trainable_token_indices": {"embed_tokens": [START, END]}}, "ok"),
        ({"trainable_token_indices": [START]}, "problem"),
        ({"target_modules": "all-linear"}, "problem"),
        ({"base_model_name_or_path": "nobody/has-this"}, "could not tell"),
        ({"base_model_name_or_path": 7}, "could not tell"),
    ],
)
def test_what_an_adapter_trains(renderer, tmp_path, settings, status):
    path = adapter_rows(tmp_path, True).path
    edit_json(path / "adapter_config.json", lambda value: value.update(settings))
    assert checks(renderer, path)["adapter-rows"].status == status


def test_an_adapter_that_saved_the_rows_or_whose_base_has_them(renderer, tmp_path):
    path = adapter_rows(tmp_path, True).path
    name = "base_model.model.model.embed_tokens.weight"
    write_matrices(path / "adapter_model.safetensors", **{name: trained()})
    assert name in checks(renderer, path)["adapter-rows"].found
    (path / "adapter_model.safetensors").unlink()
    edit_json(path / "adapter_config.json", lambda value: value.update(base_model_name_or_path=str(checkpoint(tmp_path))))
    assert "has the markers already" in checks(renderer, path)["adapter-rows"].found


# Two tokenizers


def compared(renderer: Renderer, tmp_path: Path, change) -> Check:
    path, other = checkpoint(tmp_path), checkpoint(tmp_path, name="served")
    change(other)
    (check,) = against_checks(load(renderer, path), load(renderer, other))
    return check


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        (lambda path: None, "ok", "same tokens, ids, flags and spelling"),
        (lambda path: edit_json(path / "tokenizer.json", special(True, "</think>")), "problem", "special token 511 there"),
        (lambda path: edit_json(path / "tokenizer.json", without("</think>")), "problem", "no added token there"),
        (lambda path: edit_json(path / "tokenizer.json", special(False, "<|im_start|>")), "note", "added token 508 there"),
        (
            lambda path: edit_json(path / "tokenizer_config.json", lambda config: config.update(eos_token="<|endoftext|>")),
            "problem",
            "the end of the text is '<|im_end|>' here and '<|endoftext|>' there",
        ),
    ],
)
def test_differences_of_the_served_tokenizer(renderer, tmp_path, change, status, told):
    found = compared(renderer, tmp_path, change)
    assert found.status == status
    assert told in " ".join((found.found, *found.evidence))


def test_ordinary_tokens_that_changed_places(renderer, tmp_path):
    def swap(value):
        vocab = value["model"]["vocab"]
        vocab["x"], vocab["y"] = vocab["y"], vocab["x"]

    found = compared(renderer, tmp_path, lambda path: edit_json(path / "tokenizer.json", swap))
    assert found.status == "problem"  # words beside the markers have other ids
    assert any("2 ids spell other text" in line for line in found.evidence)


# The mended copy


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_copy_differs_in_the_flags_alone(renderer, tmp_path):
    path = marker_special(tmp_path, True).path
    edit_json(path / "tokenizer_config.json", lambda config: config.update(extra_special_tokens=["<think>", "<|im_start|>"]))
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    out = tmp_path / "mended"
    told = fix_tokenizer(load(renderer, path), out)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert "'<think>' (510) is no longer special" in told[0]
    assert not (out / "model.safetensors").exists()
    old, new = read(path / "tokenizer.json"), read(out / "tokenizer.json")
    for token in old["added_tokens"][-2:]:
        assert token["special"]
        token["special"] = False
    assert new == old
    config = read(path / "tokenizer_config.json")
    assert read(out / "tokenizer_config.json") == {**config, "extra_special_tokens": ["<|im_start|>"]}
    assert (out / "chat_template.jinja").read_bytes() == before["chat_template.jinja"]
    found = checks(renderer, out)
    assert {check.name for check in found.values() if check.fired} == set()
    assert found["marker-special"].status == "ok"
    (same,) = against_checks(load(renderer, out), load(renderer, checkpoint(tmp_path, name="whole")))
    assert same.status == "ok"


def test_nothing_is_written_over(renderer, tmp_path):
    path = marker_special(tmp_path, True).path
    loaded = load(renderer, path)
    for place in (path, path / "..", path / "tokenizer.json"):
        with pytest.raises(InputError):
            fix_tokenizer(loaded, place)
    assert read(path / "tokenizer.json")["added_tokens"][-1]["special"]


def test_what_cannot_be_mended_is_refused_with_the_reason(renderer, tmp_path):
    out = tmp_path / "out"
    path = checkpoint(tmp_path)
    edit_json(path / "tokenizer.json", without("</think>"))
    with pytest.raises(UnsupportedError, match=r"'</think>' is no token .*model.resize_token_embeddings"):
        fix_tokenizer(load(renderer, path), out)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UnsupportedError, match=r"has tokenizer\.model, not tokenizer\.json"):
        fix_tokenizer(load(renderer, alone, format="think"), out)
    by_design = checkpoint(tmp_path, name="design")

    def rename(tokens):
        for token, content in zip(tokens[-2:], ("[THINK]", "[/THINK]"), strict=True):
            token.update(content=content, special=True)

    edit_json(by_design / "tokenizer.json", added(rename))
    with pytest.raises(UnsupportedError, match="by design"):
        fix_tokenizer(load(renderer, by_design, format="mistral_think_tokens"), out)
    assert not out.exists()


def test_a_copy_that_is_not_as_promised_is_removed(renderer, tmp_path):
    path = marker_special(tmp_path, True).path
    edit_json(path / "tokenizer_config.json", lambda config: config.update(pad_token="<think>"))  # what pads is special
    with pytest.raises(UnsupportedError, match="still special"):
        fix_tokenizer(load(renderer, path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What is no checkpoint, or a broken one


def test_what_is_no_checkpoint_is_refused(renderer, tmp_path):
    (tmp_path / "file").touch()
    for name, told in (("absent", "no such folder"), ("file", "is a file"), ("", "nothing of a checkpoint")):
        with pytest.raises(InputError, match=told):
            load(renderer, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tokenizer_config.json", b'{\n "a": 1,\n "b": }', "tokenizer_config.json, line 3: Expecting value"),
        ("tokenizer_config.json", b'{"eos_token": "\xe9"}', "tokenizer_config.json, line 1: not UTF-8"),
        ("config.json", b"[1]", "config.json: holds list"),
        ("special_tokens_map.json", b"[" * 100_000, "special_tokens_map.json: nested too deeply"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}', "AutoTokenizer cannot load it"),
        ("tokenizer.json", b'{"version": "1.0"', "AutoTokenizer cannot load it"),
        ("chat_template.jinja", b"\xff\xfe", "chat_template.jinja, line 1: not UTF-8"),
    ],
)
def test_a_broken_file_is_told_and_the_rest_goes_on(renderer, tmp_path, name, content, told):
    path = checkpoint(tmp_path)
    (path / name).write_bytes(content)
    found = checks(renderer, path, format="think")
    assert found["checkpoint"].status == "problem"
    assert any(told in line for line in found["checkpoint"].evidence)
    if name != "tokenizer.json":
        assert found["marker-tokens"].status == "ok"
        assert found["embedding-rows"].status == "ok"


def test_a_model_with_code_of_its_own_is_not_run(renderer, tmp_path):
    path = checkpoint(tmp_path)
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\n"
    (path / "tokenization_own.py").write_text(code, encoding="utf-8")
    (path / "configuration_own.py").write_text(code, encoding="utf-8")
    owner = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}, "tokenizer_class": "Own"}
    edit_json(path / "tokenizer_config.json", lambda config: config.update(owner))
    (path / "tokenizer.json").unlink()
    (path / "tiktoken.model").write_bytes(b"IQ== 0\n")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.Own"}}
    edit_json(path / "config.json", lambda value: value.update(config))
    entries = {str(START): {"content": "<think>"}, str(END): {"content": "</think>"}}
    edit_json(path / "tokenizer_config.json", lambda value: value.update(added_tokens_decoder=entries))
    loaded = load(renderer, path)
    assert not ran.exists()
    assert loaded.tokenizer is None
    assert loaded.format is not None  # by the template and the tokens that the configuration lists
    assert checks(renderer, path)["checkpoint"].status == "could not tell"


def test_a_command_loads_tokenizers_without_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from thinkguard.doctor.tokenizer.checkpoint import load_checkpoint, spare_torch\n"
        "from thinkguard.doctor.template.sandbox import Renderer\n"
        "spare_torch()\n"
        "with Renderer() as renderer:\n"
        "    loaded, _ = load_checkpoint(Path(sys.argv[1]), renderer=renderer)\n"
        "print(type(loaded.tokenizer).__name__, sys.modules['torch'])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(checkpoint(tmp_path))], capture_output=True, text=True, check=True)
    assert ran.stdout == "Qwen2Tokenizer None\n"
    assert ran.stderr == ""


def test_an_adapter_alone_is_enough(renderer, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}', encoding="utf-8")
    found = checks(renderer, tmp_path)
    assert "an adapter of 'a/b'" in found["checkpoint"].found
    assert {check.status for check in found.values()} <= {"could not tell", "skipped", "not applicable"}


def test_files_behind_links_are_read(renderer, tmp_path):
    """The Hugging Face cache is a folder of links."""
    path, links = checkpoint(tmp_path), tmp_path / "links"
    links.mkdir()
    for file in path.iterdir():
        os.symlink(file, links / file.name)
    set_row(path, START, bytes(256))
    found = checks(renderer, links)
    assert {check.name for check in found.values() if check.fired} == {"embedding-rows"}
