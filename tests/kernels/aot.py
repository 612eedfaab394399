"""Compiles Triton kernels ahead of time, without a GPU, and reads from the binary what they would use on one.

Runs as a process of its own, `python -m tests.kernels.aot`, because the tests' process has Triton's interpreter in place
of its compiler. Prints one JSON line per kernel and kind of GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # of one block: CUDA C++ programming guide, compute capabilities
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """What one compiled kernel needs, or why there is none."""

    operation: str
    name: str
    arch: int
    max_stack_bytes: int = 0
    lacks: str = ""  # an instruction that it should use
    registers: int = 0
    stack_bytes: int = 0
    shared_bytes: int = 0
    error: str = ""

    @property
    def complaints(self) -> list[str]:
        """Everything that would keep it from running fast, or at all."""
        if self.error:
            return [f"{self.name} on sm_{self.arch} does not compile: {self.error}"]
        found = []
        if self.stack_bytes > self.max_stack_bytes:
            found.append(f"spills: {self.stack_bytes} bytes of stack, {self.max_stack_bytes} allowed")
        if self.shared_bytes > MAX_SHARED_BYTES[self.arch]:
            found.append(f"{self.shared_bytes} bytes of shared memory, there are {MAX_SHARED_BYTES[self.arch]}")
        if self.lacks:
            found.append(f"no {self.lacks}")
        return [f"{self.name} on sm_{self.arch}, {self.registers} registers: {what}" for what in found]


def operations() -> list[str]:
    """Names of those that have a Triton kernel."""
    return sorted(path.parent.name for path in ROOT.glob("kernels/*/kernel.py"))


def compiled_usage(names: Sequence[str]) -> list[Usage]:
    """Compiles all specializations of these operations, in two fresh processes at once; takes seconds each."""
    shares = [share for share in (names[0::2], names[1::2]) if share]
    with ThreadPoolExecutor() as pool:
        return [usage for found in pool.map(_compiled_elsewhere, shares) for usage in found]


def _compiled_elsewhere(names: Sequence[str]) -> list[Usage]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "FOREBAY_KERNELS")
    }
    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.aot", *names],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [Usage(**json.loads(line)) for line in result.stdout.splitlines()]


def _compile(operation: str, arch: int | None) -> Iterator[Usage]:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    for item in importlib.import_module(f"kernels.{operation}.kernel").COMPILED:
        arguments = item.kernel.arg_names
        assert set(arguments) == {*item.types, *item.constants}, (
            f"{operation} {item.name} names {sorted({*item.types, *item.constants} ^ set(arguments))} wrongly or not"
        )
        source = ASTSource(
            fn=item.kernel,
            signature={name: item.types.get(name, "constexpr") for name in arguments},
            constexprs=dict(item.constants),
            attrs={
                (i,): [["tt.divisibility", 16]]
                for i, name in enumerate(arguments)
                if name in item.aligned
                or (
                    item.types.get(name, "").startswith("*")
                    and not item.kernel.params[i].do_not_specialize_on_alignment
                )
            },
        )
        for target in item.archs if arch is None else (arch,):
            options = {"num_warps": item.num_warps, "num_stages": item.num_stages}
            usage = Usage(operation, item.name, target, item.max_stack_bytes)
            try:
                built = compile(source, target=GPUTarget("cuda", target, 32), options=options)
            except Exception as error:  # reported with the others: one that fails must not hide them
                traceback.print_exc()
                yield dataclasses.replace(usage, error=f"{type(error).__name__}: {error}")
                continue
            registers, stack, _, local = _resource_usage(built.asm["cubin"])
            yield dataclasses.replace(
                usage,
                registers=registers,
                stack_bytes=stack + local,
                shared_bytes=built.metadata.shared,
                lacks="wgmma" if item.wgmma and target >= 90 and "wgmma" not in built.asm["ptx"] else "",
            )


def _resource_usage(cubin: bytes) -> tuple[int, ...]:
    """Registers, and bytes of stack, static shared and local memory, by NVIDIA's own tool, which Triton brings."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    (usage,) = _USAGE.findall(text)
    return tuple(int(number) for number in usage)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operation", nargs="*", help="default: all")
    parser.add_argument("--arch", type=int, choices=sorted(MAX_SHARED_BYTES))
    asked = parser.parse_args()
    for operation in asked.operation or operations():
        for usage in _compile(operation, asked.arch):
            print(json.dumps(dataclasses.asdict(usage)), flush=True)
