"""Keeps the suite's processes from fighting over cores: set before anything imports torch, and inherited by servers."""

from __future__ import annotations

import os

# A thread that waits for others sleeps instead of spinning, and each of several workers computes with one thread.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
