"""Owns `forebay verify`: whether the kernels compute on this machine what they should. Needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from forebay.cli.parser import VerbParser
from forebay.flags import ConfigError

if TYPE_CHECKING:
    import torch

    from kernels.verification.check import Finding

DESCRIPTION = """\
Checks each operation on this machine's own device, on small shapes and without a model: its results are as close to the
definition in plain torch as the tests ask, the same input gives the same bits twice, and under --batch-invariant a row
gets the same bits in calls of any size. The exit status is 1 if anything is not so."""

DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 where everything is as it should be, else 1."""
    parser = VerbParser("verify", DESCRIPTION)
    parser.add_argument("--ops", help="operations, comma-separated (default: all)", metavar="NAMES")
    parser.add_argument(
        "--dtype",
        default=",".join(DTYPES),
        help="number formats, comma-separated (default: %(default)s)",
        metavar="NAMES",
    )
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="where to run; auto takes a GPU if there is one",
    )
    parsed = parser.parse_args(arguments)
    import torch

    from gpu_executor.startup import choose_device
    from kernels.verification import Place, operations
    from kernels.verification.check import check

    names = _chosen(parsed.ops or ",".join(operations()), tuple(operations()), "--ops", "operation")
    dtypes = [getattr(torch, name) for name in _chosen(parsed.dtype, DTYPES, "--dtype", "number format")]
    try:
        device = choose_device(parsed.device)
    except ValueError as error:
        raise ConfigError(f"--device: {error}") from None
    print(_headline(device))
    print(f"{'operation':24}{'shapes':44}{'dtype':10}{'error':>9}{'allowed':>9}  twice  any batch")
    findings = []
    for name in names:
        for dtype in dtypes:
            for finding in check(name, Place(device, dtype)):
                print(_line(finding), flush=True)
                findings.append(finding)
    bad = sum(not finding.ok for finding in findings)
    print(f"{bad} of {len(findings)} checks failed" if bad else f"all {len(findings)} checks passed")
    return 1 if bad else 0


def _chosen(given: str, known: Sequence[str], flag: str, kind: str) -> list[str]:
    chosen = given.split(",")
    for name in chosen:
        if name not in known:
            raise ConfigError(f"{flag}: there is no {kind} {name!r}; there are {', '.join(known)}")
    return chosen


def _headline(device: torch.device) -> str:
    """What is checked: the device, and whose kernels work there."""
    import torch

    from kernels import native

    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, Triton kernels, torch {torch.__version__}"
    formats = ", ".join(str(dtype).removeprefix("torch.") for dtype in native.codes)
    kernels = f"native kernels for {formats}" if formats else "no native kernels: torch alone"
    return f"CPU with {torch.get_num_threads()} threads, {kernels}, torch {torch.__version__}"


def _line(finding: Finding) -> str:
    dtype = str(finding.dtype).removeprefix("torch.")
    beginning = f"{finding.operation:24}{finding.shape:44}{dtype:10}"
    if finding.failure:
        return f"{beginning}FAILED: {' '.join(finding.failure.split())}"
    twice, invariant = ("same" if same else "DIFFERS" for same in (finding.repeats, finding.invariant))
    judgement = "ok" if finding.ok else "FAILED"
    return f"{beginning}{finding.error:9.1e}{finding.allowed:9.1e}  {twice:7}{invariant:9}  {judgement}"
