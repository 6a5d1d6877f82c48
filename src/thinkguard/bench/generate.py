"""Tokens per second of a user's model in `generate()`, alone and guarded, in pairs on the user's device.

Both runs of a pair make as many tokens from the same prompt, with the same seed: nothing ends an output early. The guard's
budget is half of them: of a model that thinks longer, free thinking, the forced end and the answer are all in what is timed,
and the result counts what ended the thinking of each output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from thinkguard import __version__
from thinkguard.bench.machine import processor
from thinkguard.bench.result import Plan, Result
from thinkguard.bench.timing import in_pairs
from thinkguard.core.names import Phase
from thinkguard.core.trace import ThinkTrace
from thinkguard.errors import FormatError, InputError, ThinkGuardError, UnsupportedError
from thinkguard.formats.renders import SWITCHES
from thinkguard.hf import ThinkLogitsProcessor

QUESTION: Final = "How many prime numbers lie between 20 and 40?"
RUNS: Final = 4  # of one pair: a b b a


def measure(plan: Plan, tell: Callable[[str], None]) -> Result:
    """Measure one model; `tell` is given a line of progress at each step.

    InputError or FormatError for what cannot be measured as asked, if it shows before the weights are loaded.
    UnsupportedError where the model does not run on the device, ThinkGuardError if a guarded output that was timed is not
    as the guard promises.
    """
    device = _device(plan.device)
    _check_path(plan.model)
    config = _loaded(plan, "config", AutoConfig)
    guard, prompt = _prepare(plan, _loaded(plan, "tokenizer", AutoTokenizer))
    _check_length(plan, config, len(prompt))
    tell(f"loading {plan.model} for {device}")
    model = _loaded(plan, "model", AutoModelForCausalLM, dtype="auto")
    try:
        if model.device != device:  # some quantized models are loaded to where they run, and refuse to be moved
            model.to(device)
        seconds, traces = _timed(plan, model, guard, prompt, tell)
    except ThinkGuardError:
        raise
    except RuntimeError as error:  # out of memory, or an operation that the device does not have in this dtype
        raise UnsupportedError(
            f"--model {plan.model} with --batch {plan.batch} and --new-tokens {plan.new_tokens} failed on {device}: "
            f"{_line(error)}; lower --batch or --new-tokens if memory is short, or choose another --device"
        ) from error
    return Result(
        plan=plan,
        format=guard.program.format.name,
        prompt_tokens=len(prompt),
        device=str(device),
        device_name=_device_name(device),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        dtype=str(model.dtype).removeprefix("torch."),
        versions={
            "thinkguard": __version__, "torch": str(torch.__version__), "transformers": transformers.__version__,
        },
        seconds=seconds,
        closed_by=dict(Counter(trace.closed_by for trace in traces).most_common()),
    )  # fmt: skip


def _device(name: str | None) -> torch.device:
    """Return a device that works, with its index; InputError for one that does not."""
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        tensor = torch.zeros(1, device=name or best)
        tensor.cpu()  # the device "meta" holds no values
    except (RuntimeError, AssertionError, ImportError) as error:  # torch without CUDA asserts
        raise InputError(f"--device {name or best}: {_line(error)}; leave it out for {best}, the best one here") from None
    return tensor.device


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return processor()


def _check_path(model: str) -> None:
    """Refuse what is meant as a folder and holds no model; transformers would take it for a name, and look on the hub."""
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"--model {model}: holds no config.json; give a folder with it, weights and tokenizer")
    elif path.is_absolute() or model.startswith(".") or len(path.parts) > 2:
        raise InputError(f"--model {model}: there is no such folder; give one with config.json, weights and tokenizer")


def _loaded(plan: Plan, what: str, kind: Any, **arguments: Any) -> Any:
    """Load one part of the model, without running code that comes with it."""
    try:
        return kind.from_pretrained(plan.model, trust_remote_code=False, **arguments)
    except ImportError:
        raise
    except Exception as error:  # transformers, the hub and the libraries below each raise their own
        raise InputError(
            f"--model {plan.model}: its {what} cannot be loaded: {_line(error)}; give a folder with config.json, weights "
            "and tokenizer, or a name that transformers finds"
        ) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")


def _prepare(plan: Plan, tokenizer: Any) -> tuple[ThinkLogitsProcessor, list[int]]:
    """Return the guard and the prompt's ids."""
    try:
        guard = ThinkLogitsProcessor(tokenizer, format=plan.format, max_thinking_tokens=plan.max_thinking_tokens)
    except FormatError as error:
        remedy = "; name it with --format" if plan.format is None else ""
        raise FormatError(f"--model {plan.model}: {error}{remedy}") from None
    room = guard.program.most_room(guard.binding.bound)
    if plan.max_thinking_tokens < room:
        raise InputError(
            f"--new-tokens {plan.new_tokens} is too small: half of them are the guard's budget, and opening, close and an "
            f"answer have to fit into the others, which take up to {room} in the format {guard.program.format.name!r}; "
            f"give at least {2 * room}"
        )
    return guard, _prompt(plan, tokenizer, guard)


def _prompt(plan: Plan, tokenizer: Any, guard: ThinkLogitsProcessor) -> list[int]:
    """Ask the question through the chat template, with the first of its switches that leaves thinking possible."""
    program = guard.program
    if not tokenizer.chat_template:
        return program.vocabulary.encode(f"{QUESTION}\n{program.format.open_text}")
    chat = [{"role": "user", "content": QUESTION}]
    for switch in SWITCHES:  # the template's own default first
        try:
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **switch)
        except ImportError:
            raise
        except Exception as error:  # a template may raise anything that Python can
            raise InputError(
                f"--model {plan.model}: its chat template does not render a question: {_line(error)}; "
                f"`thinkguard doctor {plan.model}` says more"
            ) from error
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        if program.start(ids, guard.policy).phase not in (Phase.ANSWERING, Phase.DONE):
            return ids
    raise InputError(
        f"--model {plan.model}: its chat template ends the thinking in the prompt ({text[-60:]!r}), so that there is none "
        f"to guard; `thinkguard doctor {plan.model}` says more"
    )


def _check_length(plan: Plan, config: Any, num_prompt: int) -> None:
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and num_prompt + plan.new_tokens > longest:
        raise InputError(
            f"--new-tokens {plan.new_tokens} behind a prompt of {num_prompt} exceeds the model's {longest} positions "
            f"(max_position_embeddings); give at most {longest - num_prompt}"
        )


def _timed(
    plan: Plan, model: Any, guard: ThinkLogitsProcessor, prompt: list[int], tell: Callable[[str], None]
) -> tuple[dict[str, list[float]], list[ThinkTrace]]:
    """Return the seconds of both runs by name and pair, and the traces of the guarded outputs."""
    ids = torch.tensor([prompt] * plan.batch, device=model.device)
    own = model.generation_config
    # The guard knows turn ends that the model's configuration may lack; neither run may stop at one, nor write it.
    known = [own.eos_token_id] if isinstance(own.eos_token_id, int) else list(own.eos_token_id or ())
    eos = list(dict.fromkeys([*known, *guard.program.eos_token_ids])) or None
    pad = eos[0] if eos and own.pad_token_id is None else own.pad_token_id  # never written; without one each call warns
    arguments = dict(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=plan.new_tokens, min_new_tokens=plan.new_tokens,
        eos_token_id=eos, pad_token_id=pad, return_dict_in_generate=False,
    )  # fmt: skip
    traces: list[ThinkTrace] = []
    num_runs = count(1)

    def alone(seed: int) -> Any:
        torch.manual_seed(seed)
        made = model.generate(**arguments)
        _synchronize(model.device)
        return made

    def guarded(seed: int) -> Any:
        with guard.attach(model):
            return alone(seed)

    def check(name: str, made: Any) -> None:
        if made.shape != (plan.batch, len(prompt) + plan.new_tokens):
            raise InputError(
                f"--model {plan.model}: {name}, generate() made ids of shape {list(made.shape)}, wanted {plan.batch} x "
                f"({len(prompt)} + {plan.new_tokens}); remove what ends or multiplies outputs from generation_config.json"
            )
        if name == "guarded":
            traces.extend(_checked(plan, guard, prompt, output) for output in made[:, len(prompt) :].tolist())
        pair, rest = divmod(next(num_runs), RUNS)
        if not rest:
            tell(f"pair {pair - 1} of {plan.pairs}" if pair > 1 else "warmed up")

    seconds = in_pairs({"alone": alone, "guarded": guarded}, check, plan.pairs)
    return seconds, traces[RUNS // 2 * plan.batch :]  # those of the warm-up were checked, but do not count


def _checked(plan: Plan, guard: ThinkLogitsProcessor, prompt: list[int], output: list[int]) -> ThinkTrace:
    """Explain one guarded output; ThinkGuardError if its thinking was not opened, held to the budget and closed."""
    trace = guard.explain(prompt, output, plan.new_tokens)
    closed = trace.think_blocks == 1 and trace.phase in ("answering", "done")
    if trace.thinking_tokens > plan.max_thinking_tokens or not closed:
        raise ThinkGuardError(
            f"--model {plan.model}: the guard did not hold an output that was timed, so that the figures mean nothing: "
            f"{trace.thinking_tokens} thinking tokens under max_thinking_tokens={plan.max_thinking_tokens}, "
            f"{trace.think_blocks} think block(s), closed by {trace.closed_by}, at last {trace.phase}; please report this"
        )
    return trace


def _synchronize(device: torch.device) -> None:
    """Wait for what the device was given to do, so that the clock reads when it was done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        getattr(torch, device.type).synchronize()
