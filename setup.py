"""Builds the native CPU kernels. Everything else is in pyproject.toml.

The extension is compiled with OpenMP but not linked with it: its symbols resolve in the runtime that torch has loaded,
so that both share one pool of threads. Without a compiler the build goes on, and torch serves.
"""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("kernels/native")

setup(
    ext_modules=[
        Extension(
            "kernels.native._cpu",
            sources=sorted(str(path) for path in NATIVE.glob("*.c")),
            depends=sorted(str(path) for path in NATIVE.glob("*.h")),
            extra_compile_args=["-O3", "-fopenmp", "-fno-math-errno", "-ffp-contract=fast", "-Wall"],
            optional=True,
        )
    ]
)
