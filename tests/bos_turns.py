"""Tokenizers whose BOS or padding also begins turns, as folders, and what a chat and a text look like in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 17, "b": 25}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
ASKED = {"role": "user", "content": "What is 17 + 25?"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [ASKED],
    "a system message": [{"role": "system", "content": "Be kind."}, ASKED],
    "several turns": [ASKED, {"role": "assistant", "content": "It is 42."}, ASKED],
    "a tool's result": [ASKED, CALLS, {"role": "tool", "content": "42"}],
}
TEXTS = ("Once upon a time", "assistant\nOnce", "user\nassistant")

# Name -> (template, added tokens, special ones by their role), of the construction that SmolLM2, Seed-OSS and Zephyr have.
KINDS: dict[str, tuple[str, list[str], dict[str, str]]] = {
    "chatml": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"},
    ),
    "bos before every turn": (
        "{% for m in messages %}{{ bos_token }}{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function | tojson }}{% endfor %}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ bos_token }}assistant\n{% endif %}",
        ["<s:bos>", "<s:pad>", "<s:eos>"],
        {"bos_token": "<s:bos>", "eos_token": "<s:eos>", "pad_token": "<s:pad>"},
    ),
    "roles behind the padding token": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function | tojson }}{% endfor %}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ["<unk>", "<s>", "</s>"],
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"},
    ),
}


def folder_of(kind: str, path: Path) -> Path:
    """Write a byte-level tokenizer of 256 tokens and a few added ones, and the config of a model."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from thinkguard.vocabulary.readers import BYTE_ALPHABET

    template, names, roles = KINDS[kind]
    tokenizer = Tokenizer(models.BPE(vocab={BYTE_ALPHABET[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **roles}
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    return path
