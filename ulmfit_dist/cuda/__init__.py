"""CUDA kernels of this package (`*.cu`), and how they are compiled at run time (`compile.py`)."""
