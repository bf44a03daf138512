"""A simulated GPU: CUDA code paths on a machine without one.

Tensors on `cuda:N` keep their numbers in CPU memory and obey a GPU's rules: what CUDA, cuDNN or NCCL refuses, raises. The
simulation counts kernels, bytes, allocated memory, waits for the device, and LSTM calls from scattered weights. It has no
speed, no streams, no Triton, no real cuDNN and no real NCCL, so it cannot replace a run on a GPU.

    native.py, guard.cpp   the device guard that a CPU build of torch lacks
    counters.py            counts, and `set_sync_debug_mode`
    tensor.py, kernels.py  the tensor and the rules of its operations
    cudnn.py               LSTMs by cuDNN's rules
    collectives.py         process groups by NCCL's rules, computed by gloo
    cuda_sources.py        the package's own CUDA kernels, compiled for the CPU
    cuda_api.py            `torch.cuda` and other functions of torch that depend on it
    startup/               makes a Python process simulate from its start (as PYTHONPATH)
    plugin.py              for pytest: the suite of `bash launch/test.sh --simulated-gpu`
    gpu_only_lines.py, line_coverage.py   lines of the package that a CPU cannot reach, and whether tests execute them
    count_step.py          counts of one training step

It relies on torch's internals: constraints.txt pins torch.
"""
