"""Two data-parallel V1 ranks on the CPU: a processor lives where logits are sampled, so nothing more is needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from thinkguard import ThinkPolicy, ThinkProgram, cli

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="the engine tests need vllm, which is not installed")
CHECKPOINT = Path(cli.__file__).parent / "demo" / "models" / "healthy"
CHAT = "<|im_start|>user\nWhat is 123 + 456?<|im_end|>\n<|im_start|>assistant\n"
CAPS = (0, 3, 7)  # of the requests that each rank gets
WITHIN = 600  # seconds: seven processes import vLLM, one after another and on two cores
# vLLM's LLM refuses dense models with several ranks; what its server uses does not. A script of its own: ranks import it.
ENGINE = """
import asyncio, json, sys
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

async def ask(engine, prompt, cap, rank):
    params = SamplingParams(temperature=0, max_tokens=60, extra_args={"thinkguard": {"max_thinking_tokens": cap}})
    async for output in engine.generate(prompt, params, f"{rank}-{cap}", data_parallel_rank=rank):
        last = output
    return {"rank": rank, "cap": cap, "prompt": list(last.prompt_token_ids), "output": list(last.outputs[0].token_ids)}

async def main(model, prompt, caps):
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(
        model=model, logits_processors=["thinkguard.vllm:ThinkLogitsProcessor"], dtype="float32", enforce_eager=True,
        max_model_len=256, max_num_seqs=4, data_parallel_size=2, distributed_executor_backend="mp"))
    asked = [ask(engine, prompt, cap, rank) for rank in range(2) for cap in caps]
    print("TOLD " + json.dumps(await asyncio.gather(*asked)), flush=True)
    engine.shutdown()

if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
"""


def test_two_data_parallel_ranks(tmp_path):
    script, log = tmp_path / "ranks.py", tmp_path / "log"
    script.write_text(ENGINE)
    dropped = ("TRITON_INTERPRET", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL")
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    env |= {
        "VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_HOST_IP": "127.0.0.1",
    }  # fmt: skip
    command = [sys.executable, str(script), str(CHECKPOINT), CHAT, json.dumps(CAPS)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(WITHIN)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session: the ranks, if they are left
            code = process.wait()
    text = log.read_text(errors="replace")
    assert code == 0, f"{code} within {WITHIN} s\n{text[-6000:]}"
    told = json.loads(next(line for line in text.splitlines() if line.startswith("TOLD ")).removeprefix("TOLD "))
    assert sorted((one["rank"], one["cap"]) for one in told) == sorted((rank, cap) for rank in range(2) for cap in CAPS)
    program = ThinkProgram(None, CHECKPOINT)
    for one in told:
        policy = ThinkPolicy(max_thinking_tokens=one["cap"])
        trace = program.explain(one["prompt"], one["output"], policy, max_tokens=60)
        assert (trace.thinking_tokens, trace.closed_by, trace.violations) == (one["cap"], "budget", ())
        assert trace.well_formed
