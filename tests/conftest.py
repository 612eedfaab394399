"""Keeps the suite's processes from fighting over cores, and gives Triton an interpreter where there is no GPU.

Set before anything imports torch, which imports Triton, and inherited by servers.
"""

from __future__ import annotations

import os
from pathlib import Path

# A thread that waits for others sleeps instead of spinning, and each of several workers computes with one thread.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
