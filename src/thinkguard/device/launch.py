"""Launching the kernels: through the CUDA driver, by ctypes alone, or, on a CPU, the same C in place.

No compiler, no cache and no lock at run time: the images were compiled when the package was built. A step is one struct,
given to the kernel by value, so that a launch is a call of the driver with one argument.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any, Final, Protocol

from thinkguard.core import _core
from thinkguard.device import images
from thinkguard.device.steps import KERNELS, Step
from thinkguard.errors import ThinkGuardError

REPORT: Final = "please report this with the name of the GPU and the version of its driver"
LANES: Final = 128  # of a block, as csrc/lanes.h has it
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
Launch = Callable[[int, int], None]
"""(number of blocks, stream): starts a kernel over the step that it was bound to; nothing waits."""


class UnavailableError(ThinkGuardError):
    """Why the kernels cannot run on a device; the work is the host's then."""


class Kernels(Protocol):
    """The kernels on one device."""

    def bind(self, name: str, step: Step) -> Launch:
        """Return what launches a kernel over `step` as it is then; the caller keeps it and what it points at alive."""


class HostKernels:
    """The same C, run in place over one sequence after the other."""

    def bind(self, name: str, step: Step) -> Launch:
        """See `Kernels`; there are no streams."""
        run, address = getattr(_core, name), ctypes.addressof(step)
        return lambda num_blocks, stream: run(address, num_blocks)


class Driver:
    """libcuda: every call is checked."""

    def __init__(self) -> None:
        """UnavailableError, where there is no driver."""
        try:
            self.library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        except OSError as error:
            raise UnavailableError(f"the CUDA driver cannot be loaded: {error}") from None

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver; UnavailableError names it and what went wrong."""
        try:
            status = getattr(self.library, name)(*arguments)
        except AttributeError:
            raise UnavailableError(f"the CUDA driver has no {name}: it is older than version 525") from None
        if status:
            raise UnavailableError(f"{name}: {self.error(status)}; {REPORT}")

    def error(self, status: int) -> str:
        """The name of an error."""
        text = ctypes.c_char_p()
        self.library.cuGetErrorName(status, ctypes.byref(text))
        return text.value.decode() if text.value else f"error {status}"


class DeviceKernels:
    """The kernels on one CUDA device, in the primary context, which is the one that torch uses."""

    def __init__(self, ordinal: int, driver: Driver | None = None) -> None:
        """Load the image for a device. UnavailableError, where there is none or the driver refuses it."""
        self.driver = call = driver or Driver()
        device, library = ctypes.c_int(), ctypes.c_void_p()
        self.context = ctypes.c_void_p()
        call("cuInit", 0)
        call("cuDeviceGet", ctypes.byref(device), ordinal)
        version = tuple(self._attribute(device, which) for which in (_MAJOR, _MINOR))
        image, other = images.load(*version), images.fallback(*version)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)
        try:
            call("cuLibraryLoadData", ctypes.byref(library), image, None, None, 0, None, None, 0)
        except UnavailableError:
            if other is None:
                raise
            call("cuLibraryLoadData", ctypes.byref(library), other, None, None, 0, None, None, 0)
        self._functions = {name: self._function(library, name) for name in KERNELS}

    def _attribute(self, device: ctypes.c_int, which: int) -> int:
        value = ctypes.c_int()
        self.driver("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    def _function(self, library: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        kernel, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.driver("cuLibraryGetKernel", ctypes.byref(kernel), library, name.encode())
        self.driver("cuCtxPushCurrent_v2", self.context)
        try:
            self.driver("cuKernelGetFunction", ctypes.byref(function), kernel)  # loads it now, not at the first step
        finally:
            self.driver("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        return function

    def bind(self, name: str, step: Step) -> Launch:
        """See `Kernels`. A launch that the driver refuses raises UnavailableError."""
        function, arguments = self._functions[name], (ctypes.c_void_p * 1)(ctypes.addressof(step))
        launch, which, context = self.driver.library.cuLaunchKernel, self.driver.library.cuCtxGetCurrent, self.context.value

        def start(num_blocks: int, stream: int) -> None:
            current = ctypes.c_void_p()
            which(ctypes.byref(current))
            if current.value != context:  # a thread that never touched CUDA, or one that works on another device
                self._elsewhere(function, num_blocks, stream, arguments)
                return
            # No argtypes, so pointers come as ctypes' own: to check eleven arguments takes longer than the call.
            status = launch(function, num_blocks, 1, 1, LANES, 1, 1, 0, ctypes.c_void_p(stream), arguments, None)
            if status:
                raise UnavailableError(f"cuLaunchKernel({name}): {self.driver.error(status)}; {REPORT}")

        return start

    def _elsewhere(self, function: ctypes.c_void_p, num_blocks: int, stream: int, arguments: Any) -> None:
        """Launch with this device's context made current for the call."""
        self.driver("cuCtxPushCurrent_v2", self.context)
        try:
            shape = (num_blocks, 1, 1, LANES, 1, 1, 0)
            self.driver("cuLaunchKernel", function, *shape, ctypes.c_void_p(stream), arguments, None)
        finally:
            self.driver("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
