"""Use an installed thinkguard by itself: no host is imported, a sequence is guarded, the kernels for GPUs came along."""

import sys
import time


def main() -> None:
    begin = time.perf_counter()
    import thinkguard

    took = time.perf_counter() - begin
    hosts = {"torch", "transformers", "triton", "vllm", "jinja2"} & set(sys.modules)
    assert not hosts, f"import thinkguard pulled in {', '.join(sorted(hosts))}"
    vocabulary = thinkguard.Vocabulary.from_parts([bytes([b]) for b in range(256)], added={"<eos>": 256}, eos_ids=[256])
    state = thinkguard.ThinkProgram("think", vocabulary).start([], thinkguard.ThinkPolicy(max_thinking_tokens=3))
    assert state.decide().token == ord("<")

    import thinkguard.core._slots
    from thinkguard.device import images

    assert images.load(9, 0)[:4] == b"\x7fELF"
    assert b".target sm_75" in images.load(13, 0)
    print(f"Python {sys.version.split()[0]}: runs alone; import thinkguard took {took * 1000:.0f} ms")


if __name__ == "__main__":
    main()
