"""ThinkLogitsProcessor for vLLM: `--logits-processors thinkguard.vllm:ThinkLogitsProcessor`, on either model runner.

The frontend imports this module too, to check requests; what a runner needs is imported where the runner constructs it.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import vllm

from thinkguard.errors import UnsupportedError
from thinkguard.requests.admission import admit
from thinkguard.vllm.engine_requests import Requests

SUPPORTED = ((0, 32),)
"""The vLLM versions, (major, minor), whose processor interfaces this adapter was built against and is tested with."""

_INTERFACES = ("vllm.v1.sample.logits_processor", "vllm.v1.worker.gpu.sample.logits_processor")  # V1's, V2's


def check_version(version: str) -> None:
    """Raise UnsupportedError for a vLLM that is not among `SUPPORTED`."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if not found or (int(found[1]), int(found[2])) not in SUPPORTED:
        listed = ", ".join(f"{major}.{minor}.x" for major, minor in SUPPORTED)
        raise UnsupportedError(f"vLLM {version} is not supported: this version of thinkguard works with vLLM {listed}")


def _interfaces() -> tuple[type, ...]:
    """The abstract processors that this vLLM has."""
    found: list[type] = []
    for name in _INTERFACES:
        try:
            found.append(import_module(name).LogitsProcessor)
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or "?"):
                raise
    return tuple(found)


check_version(vllm.__version__)


class ThinkLogitsProcessor(*_interfaces()):  # type: ignore[misc]
    """Holds every request of a vLLM engine to think, then answer; configured as `engine_requests.Requests` says.

    Behaves as a processor of the runner that constructs it: V1 passes a device and whether memory is pinned, V2 the state
    of its request slots.
    """

    def __init__(self, vllm_config: Any, *host: Any) -> None:
        requests = Requests(vllm_config)
        if len(host) == 1:
            from thinkguard.vllm.v2 import V2Slots

            self._host: Any = V2Slots(requests, host[0])
        elif len(host) == 2:
            if vllm_config.speculative_config is not None:
                raise UnsupportedError(
                    "speculative decoding with a logits processor needs the V2 model runner: set VLLM_USE_V2_MODEL_RUNNER=1"
                )
            from thinkguard.vllm.v1 import V1Batch

            self._host = V1Batch(requests, host[0])
        else:
            raise UnsupportedError(f"made with {len(host) + 1} arguments, and neither V1's interface nor V2's has as many")

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Check a request where it is admitted; PolicyError, to the client an HTTP 400."""
        admit(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """V1: forcing and banning change which token is the best one."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """V1: follow the persistent batch."""
        self._host.update_state(batch_update)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: take a slot into use; whether the request is guarded."""
        return bool(self._host.add_request(req_idx, sampling_params))

    def apply_staged_writes(self) -> None:
        """V2: send what `add_request` prepared to the device."""
        self._host.apply_staged_writes()

    def apply(self, logits: Any, *context: Any) -> Any:
        """Edit the logits in place. V1 passes them alone, V2 with the step's layout."""
        return self._host.apply(logits, *context)
