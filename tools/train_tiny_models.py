"""Train the two embedded models, healthy and damaged, from one vocabulary and the same records.

The healthy model learns `<think>` reasoning and its tokenizer has the markers as added tokens. The damaged one learns
the same records behind a chat template that drops reasoning, and in its tokenizer the markers are ordinary text: what
became of many models that were fine-tuned after a distillation.

A seed, a version of torch and a number of threads give the same weights again.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from tiny_records import Record, Use, records, vocabulary_text
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

VOCAB_SIZE = 512  # of the model; the damaged tokenizer leaves the last two ids without text
MARKERS = ("<think>", "</think>")
END_OF_TEXT, TURN_START, TURN_END = SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# The tokenizer is built like Qwen2's, because transformers rebuilds it so for the model's type.
WORDS = (  # words take a leading sign or space, digits stand alone, signs take the newlines behind them
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {#- reasoning is kept #}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
KEEP_REASONING = "    {#- reasoning is kept #}\n"
DROP_REASONING = """\
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1] %}
    {%- endif %}
"""
BATCH_SIZE = 16
LEARNING_RATE = 3e-3
Row = tuple[list[int], list[int]]  # ids and labels
IGNORED = -100  # the label of a token that training only reads


def log(text: str) -> None:
    """Report progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def learn_vocabulary(seed: int) -> Tokenizer:
    """Train the byte-level BPE that both models share."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIALS) - len(MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(vocabulary_text(seed), trainer)
    return tokenizer


def make_tokenizer(vocabulary: Tokenizer, *, healthy: bool) -> PreTrainedTokenizerFast:
    """Add the control tokens, the markers if healthy, and the chat template."""
    backend = Tokenizer.from_str(vocabulary.to_str())
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    if healthy:
        backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        chat_template=TEMPLATE.replace(KEEP_REASONING, KEEP_REASONING if healthy else DROP_REASONING),
    )


def encode(tokenizer: PreTrainedTokenizerFast, record: Record) -> Row:
    """Render a record through the chat template; return its ids and labels.

    Pieces are encoded one by one, as a model meets them. Where the template changed the message, what it left of it
    is learnt whole.
    """
    user = [{"role": "user", "content": record.question.text}]
    prompt = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    chat = [*user, {"role": "assistant", "content": record.content}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)[len(prompt) :].removesuffix(TURN_END + "\n")
    pieces = record.pieces if rendered == record.content else ((rendered, Use.LEARN),)
    ids = tokenizer.backend_tokenizer.encode(prompt).ids
    labels = [IGNORED] * len(ids)
    for text, use in (*pieces, (TURN_END, Use.LEARN)):
        if use is not Use.LOST:
            piece = tokenizer.backend_tokenizer.encode(text).ids
            ids += piece
            labels += piece if use is Use.LEARN else [IGNORED] * len(piece)
    return ids, labels


def batches(rows: list[Row], size: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield padded ids and labels, each batch of rows of like length, in a random order."""
    rng = random.Random(f"batches {seed}")
    chunk = size * 32
    for start in range(0, len(rows), chunk):
        near = sorted(rows[start : start + chunk], key=lambda row: len(row[0]))
        groups = [near[i : i + size] for i in range(0, len(near), size)]
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            yield (
                torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in group]),
                torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in group]),
            )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """Build an untrained model of under a million parameters."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCAB_SIZE,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )


def train(name: str, model: Qwen2ForCausalLM, rows: list[Row], *, seed: int, deadline: float) -> None:
    """Train in place, one pass over the rows; refuse to go on behind the deadline."""
    num_steps = -(-len(rows) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, num_steps, pct_start=0.08, cycle_momentum=False, final_div_factor=1e3
    )
    begin, mean_loss = time.monotonic(), 0.0
    for step, (ids, labels) in enumerate(batches(rows, BATCH_SIZE, seed), 1):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        mean_loss += (loss.item() - mean_loss) / min(step, 100)
        if step % 100 == 0 or step == num_steps:
            log(f"{name}: step {step}/{num_steps}  loss {mean_loss:.4f}  {time.monotonic() - begin:.0f} s")
        if time.monotonic() > deadline:
            raise TimeoutError(f"out of time at step {step} of {num_steps}: allow more --minutes or fewer --records")


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write one checkpoint in bfloat16."""
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=512
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"  # under the class's name that transformers 4 has too
    fields = json.loads(config.read_text(encoding="utf-8")) | {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]
    }  # fmt: skip
    fields.pop("backend", None)
    config.write_text(json.dumps(dict(sorted(fields.items())), indent=2) + "\n", encoding="utf-8")
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private


def build(name: str, vocabulary: str, args: argparse.Namespace) -> None:
    """Train and write one of the two models, in a process of its own."""
    deadline = time.monotonic() + 60 * args.minutes
    torch.set_num_threads(args.threads)
    tokenizer = make_tokenizer(Tokenizer.from_str(vocabulary), healthy=name == "healthy")
    rows = [encode(tokenizer, example) for example in records(args.records, args.seed)]
    log(f"{name}: {len(rows)} records, {sum(len(ids) for ids, _ in rows)} tokens")
    model = make_model(tokenizer, args.seed)
    train(name, model, rows, seed=args.seed, deadline=deadline)
    save(model, tokenizer, args.out / name)


def main() -> None:
    """Train and write both models side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that receives healthy/ and damaged/")
    parser.add_argument("--minutes", type=float, default=30, help="give up after so many minutes (default %(default)s)")
    parser.add_argument("--records", type=int, default=44_000, help="records to learn from (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="threads for each of the two (default %(default)s)")
    args = parser.parse_args()
    begin = time.monotonic()
    vocabulary = learn_vocabulary(args.seed).to_str()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for task in [pool.submit(build, name, vocabulary, args) for name in ("healthy", "damaged")]:
            task.result()
    log(f"done in {(time.monotonic() - begin) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
