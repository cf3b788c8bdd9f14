"""Loads compiled CUDA kernels and launches them, through the driver's own library."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_uint, c_void_p


@functools.cache
def library() -> ctypes.CDLL | None:
    """The driver's library; None where there is none."""
    try:
        found = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    found.cuLaunchKernel.argtypes = [c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p]
    found.cuCtxPushCurrent_v2.argtypes = [c_void_p]
    found.cuModuleGetFunction.argtypes = [c_void_p, c_void_p, c_char_p]
    return found


def check(status: int) -> None:
    """Raise RuntimeError with the driver's own words unless the status is success."""
    driver = library()
    if status and driver is not None:
        text = c_char_p()
        driver.cuGetErrorString(status, byref(text))
        raise RuntimeError(f"CUDA driver: {(text.value or b'unknown error').decode()} ({status})")


class Kernel:
    """One function of a compiled module.

    Args:
        code: machine code or PTX.
        name: of the function.
        device: index of the device, as torch counts them.
    """

    def __init__(self, code: bytes, name: str, device: int) -> None:
        driver = library()
        if driver is None:
            raise RuntimeError("the CUDA driver's library was not found")
        self.driver, self.context = driver, c_void_p()
        module, self.function, handle = c_void_p(), c_void_p(), c_int()
        check(driver.cuInit(0))
        check(driver.cuDeviceGet(byref(handle), device))
        check(driver.cuDevicePrimaryCtxRetain(byref(self.context), handle))  # the one that torch uses
        with self.current():
            check(driver.cuModuleLoadData(byref(module), code))
            check(driver.cuModuleGetFunction(byref(self.function), module, name.encode()))

    def current(self) -> _Current:
        """The device's context, current as long as the block runs: threads of autograd may have none."""
        return _Current(self.driver, self.context)

    def launch(
        self, num_blocks: int, threads: int, stream: int, pointers: Sequence[int | None], sizes: Sequence[int]
    ) -> None:
        """Start the kernel; its last parameter is a structure of integers, those before are pointers."""
        values = [c_void_p(pointer) for pointer in pointers]
        structure = (c_int * len(sizes))(*sizes)
        arguments = (c_void_p * (len(values) + 1))(*map(ctypes.addressof, values), ctypes.addressof(structure))
        with self.current():
            check(
                self.driver.cuLaunchKernel(self.function, num_blocks, 1, 1, threads, 1, 1, 0, stream, arguments, None)
            )


class _Current:
    def __init__(self, driver: ctypes.CDLL, context: c_void_p) -> None:
        self.driver, self.context = driver, context

    def __enter__(self) -> None:
        check(self.driver.cuCtxPushCurrent_v2(self.context))

    def __exit__(self, *error: object) -> None:
        self.driver.cuCtxPopCurrent_v2(byref(c_void_p()))
