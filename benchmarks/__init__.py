"""Benchmarks; `bench.py` is where they start."""

import os

# Before NumPy is imported: its loops are one process's, and threads that wait for each other only slow small products.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
