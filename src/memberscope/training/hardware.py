"""Where and in which arithmetic a model is trained: device, precision, threads, memory."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from memberscope.defenses.registry import in_force
from memberscope.errors import ConfigError
from memberscope.training.recipe import Recipe

_SMALLEST_SIDE = 16
"""Smaller images gain too little by bf16 for its lost digits: 1.1 times the speed at 8x8, 1.4 at 16x16, 2.05 at 32x32
(one thread with AVX512-BF16; benchmarks/training.py --precisions)."""


def resolve_device(name: str) -> torch.device:
    """Give the device of a name; ``auto``: a CUDA device if there is one, else Apple's, else the CPU.

    Raises
    ------
    ConfigError
        The name is unknown, or there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device = {name!r} is unknown", "one of auto, cpu, cuda, cuda:1, mps") from None
    available = {
        "cpu": device.index in (None, 0),
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        raise ConfigError(f"device = {name!r}: there is no such device here", "use auto or cpu")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


def resolve_precision(recipe: Recipe, module: nn.Module, input_shape: tuple[int, ...], device: torch.device) -> Recipe:
    """Give the recipe with ``auto`` replaced by the precision that it means for this model on this device.

    bf16 where the device multiplies bfloat16 matrices natively, for convolutional networks on images of at least
    16x16 pixels; benchmarks/training.py compares the accuracy. Feature rows keep their 24 bits.
    """
    if recipe.precision != "auto":
        return recipe
    if any(defense.full_precision for defense in in_force(recipe)):
        return replace(recipe, precision="fp32")
    large = len(input_shape) == 3 and min(input_shape[1:]) >= _SMALLEST_SIDE
    convolutional = any(isinstance(part, nn.Conv2d) for part in module.modules())
    gains = large and convolutional and has_native_bf16(device)
    return replace(recipe, precision="bf16" if gains else "fp32")


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 matrix products in hardware (CPUs: AVX512-BF16 or AMX)."""
    if device.type == "cuda":
        return bool(torch.cuda.get_device_capability(device) >= (8, 0))
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(f" {flag}" in flags for flag in ("avx512_bf16", "amx_bf16"))


@contextlib.contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """Compute with this many threads inside the block; None: as many as before."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Inside the block cuDNN takes algorithms that repeat themselves, and no TF32; bf16 is left as it is.

    For trainings. Nothing changes on a CPU. On a GPU PyTorch's own kernels may still add in any order (the gradient of
    max-pooling does so), and matrix products follow `torch.set_float32_matmul_precision`: by default float32.
    """
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@contextlib.contextmanager
def exact_fp32() -> Iterator[None]:
    """Inside the block float32 products are float32 products: no TF32, no bf16 passes, no autotuned algorithms."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with repeatable():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def keep_freed_memory() -> None:
    """Let the C library keep what a training step frees, for the next step.

    By default glibc hands a step's activations back to the system and takes as many fresh, zeroed pages for the next:
    about a tenth of the time of a step of the small networks here. Does nothing elsewhere.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 32 << 20)  # the largest that glibc takes
    libc.mallopt(trim_threshold, 1 << 30)
