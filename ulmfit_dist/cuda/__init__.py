"""CUDA kernels (`*.cu`) and their compilation at run time (`compile.py`)."""
