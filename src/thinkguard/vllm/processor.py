"""ThinkLogitsProcessor for vLLM: `--logits-processors thinkguard.vllm:ThinkLogitsProcessor`, on either model runner.

The frontend imports this module too, to check requests; what a runner needs is imported where the runner constructs it.
"""

from __future__ import annotations

from typing import Any

import vllm

from thinkguard.errors import UnsupportedError
from thinkguard.requests.admission import admit
from thinkguard.vllm import interface
from thinkguard.vllm.engine_requests import Requests


class ThinkLogitsProcessor(*interface.processor_interfaces()):  # type: ignore[misc]
    """Holds every request of a vLLM engine to think, then answer; configured as `engine_requests.Requests` says.

    Behaves as a processor of the runner that constructs it: V1 passes a device and whether memory is pinned, V2 the state
    of its request slots.
    """

    def __init__(self, vllm_config: Any, *host: Any) -> None:
        requests = Requests(vllm_config)
        if untested := interface.why_untested(vllm.__version__):
            requests.say(untested)
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
        """Check a request where it is admitted; PolicyError or RefusedRequest, to the client an HTTP 400."""
        if admit(sampling_params) is not False:
            interface.check_runner()

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
