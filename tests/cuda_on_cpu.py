"""CUDA sources of the package, compiled for a CPU by g++: the same text computes, one thread of a block after the other.

Kernels that wait for each other inside a block (`__syncthreads`) get a thread of the CPU for each of a few CUDA threads.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ulmfit_dist.cuda import compile as cuda_compile

HAS_COMPILER = shutil.which("g++") is not None
THREADS = {"dropout_masks": cuda_compile.THREADS, "softmax_gradient": 4}

CUDA = """
#include <barrier>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>
#include <immintrin.h>
#define __device__
#define __global__
#define __shared__ static
#define __align__(bytes) alignas(bytes)
struct Index { unsigned x; };
static thread_local Index blockIdx, threadIdx, blockDim;
static std::barrier<>* block_barrier;
static inline void __syncthreads() { if (block_barrier) block_barrier->arrive_and_wait(); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
static inline float __uint_as_float(unsigned x) { float y; std::memcpy(&y, &x, 4); return y; }
static inline unsigned __float_as_uint(float x) { unsigned y; std::memcpy(&y, &x, 4); return y; }
static inline float fp16_to_float(unsigned short x) { return _cvtsh_ss(x); }
static inline unsigned short float_to_fp16(float x) { return _cvtss_sh(x, 0); }
"""

RUN = {
    "dropout_masks": """
extern "C" void run(int blocks, const u64* table, u64* out, int num_blocks) {
    blockDim.x = THREADS;
    for (int block = 0; block < blocks; block++)
        for (int thread = 0; thread < THREADS; thread++) {
            blockIdx.x = block;
            threadIdx.x = thread;
            dropout_masks(table, out, num_blocks);
        }
}
""",
    "softmax_gradient": """
extern "C" void run(int blocks, Logit* logits, const long long* targets, float* losses, int num_words, double scale) {
    std::barrier<> barrier(THREADS);
    block_barrier = &barrier;
    std::vector<std::thread> threads;
    for (int thread = 0; thread < THREADS; thread++)
        threads.emplace_back([=] {
            blockDim.x = THREADS;
            threadIdx.x = thread;
            for (int block = 0; block < blocks; block++) {
                blockIdx.x = block;
                softmax_gradient(logits, targets, losses, num_words, scale);
                __syncthreads();
            }
        });
    for (auto& thread : threads) thread.join();
}
""",
}


def compile_source(name: str, *options: str) -> Callable[[int, list[Any]], None]:
    """As `ulmfit_dist.cuda.compile.compile_source`, for tensors in the memory of the CPU."""
    run = _library(name, options).run

    def launch(num_blocks: int, arguments: list[Any]) -> None:
        run(num_blocks, *(_to_c(argument) for argument in arguments))

    return launch


def _to_c(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int(argument)


@functools.cache
def _library(name: str, options: tuple[str, ...]) -> ctypes.CDLL:
    source = CUDA + Path(cuda_compile.__file__).with_name(f"{name}.cu").read_text() + RUN[name]
    flags = ["-std=c++20", "-O2", "-mf16c", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
    flags += [f"-DTHREADS={THREADS[name]}", *options]
    folder = Path(tempfile.mkdtemp(prefix="ulmfit-dist-kernel-"))
    try:
        (folder / "kernel.cpp").write_text(source)
        subprocess.run(["g++", *flags, str(folder / "kernel.cpp"), "-o", str(folder / "kernel.so")], check=True)
        return ctypes.CDLL(str(folder / "kernel.so"))
    finally:
        shutil.rmtree(folder)  # a library stays loaded without its file
