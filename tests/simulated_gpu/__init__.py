"""Simulated GPU: CUDA code paths on a machine without a GPU.

Tensors on `cuda:N` keep their data in CPU memory and follow a GPU's rules: operations that CUDA, cuDNN or NCCL refuse raise.
The simulation counts kernels, bytes, allocated memory, waits for the device, and LSTM calls with non-contiguous weights. It
has no speed, no streams, no Triton, no real cuDNN and no real NCCL, so it cannot replace a run on a GPU.

    native.py, guard.cpp   the device guard that a CPU build of torch lacks
    counters.py            counts, and `set_sync_debug_mode`
    tensor.py, kernels.py  the tensor and the rules of its operations
    cudnn.py               LSTMs with cuDNN's rules
    collectives.py         process groups with NCCL's rules, computed by gloo
    cuda_sources.py        the package's own CUDA kernels, compiled for the CPU
    cuda_api.py            `torch.cuda` and other functions of torch that depend on it
    startup/               starts the simulation in a Python process (as PYTHONPATH)
    plugin.py              pytest plugin of `bash launch/test.sh --simulated-gpu`
    gpu_only_lines.py, line_coverage.py   lines of the package that a CPU cannot reach, and their coverage
    count_step.py          counts of one training step

It relies on torch's internals: constraints.txt pins torch.
"""
