"""Which kernels work on a device: found out once for each, and proved before the first request."""

from __future__ import annotations

import logging
import threading
from typing import Final

import torch

from thinkguard.device.images import NoImageError
from thinkguard.device.launch import DeviceKernels, HostKernels, Kernels, UnavailableError
from thinkguard.device.proof import prove

_LOG: Final = logging.getLogger("thinkguard")
_HOST: Final = HostKernels()
_found: dict[tuple[str, int], Kernels | None] = {}
_lock: Final = threading.Lock()


def kernels_of(device: torch.device) -> Kernels | None:
    """The kernels for a device, None where they cannot run: the host does the work then, and one warning has said why.

    The first call for a GPU loads an image and holds scripted sequences against the C on the host: some tens of
    milliseconds, during which it waits for the device.
    """
    if device.type == "cpu":
        return _HOST
    key = (device.type, torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index or 0)
    with _lock:
        if key not in _found:
            _found[key] = _try(torch.device(*key))
        return _found[key]


def _try(device: torch.device) -> Kernels | None:
    try:
        if device.type != "cuda" or torch.version.cuda is None:
            raise UnavailableError("they are made for CUDA")
        kernels = DeviceKernels(device.index)
        prove(kernels, device)
    except (UnavailableError, NoImageError, RuntimeError) as reason:  # torch's own, as where its memory is short
        _LOG.warning("thinkguard: on %s the work is done on the host, for its kernels do not run there: %s", device, reason)
        return None
    return kernels
