"""`forebay verify` prints a line per check, and its exit status says whether all of them hold."""

from __future__ import annotations

import pytest
import torch

import kernels.linear
from forebay.cli import main
from forebay.errors import EXIT_BAD_CONFIG
from kernels.verification import products


def test_a_healthy_machine_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--device", "cpu", "--ops", "linear,row_groups", "--dtype", "float32,float16"]) == 0
    headline, _, *lines, verdict = capsys.readouterr().out.splitlines()
    assert headline.startswith("CPU with ") and verdict == "all 8 checks passed"
    assert [line.split()[0] for line in lines] == ["linear"] * 6 + ["row_groups"] * 2
    assert all(line.endswith("ok") for line in lines) and "float16" in lines[3]


def test_a_broken_kernel_is_told_and_fails_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if len(x) == 300:
            raise RuntimeError("illegal\ninstruction")
        return kernels.linear.linear(x, weight, bias) + (len(x) == 30)

    monkeypatch.setattr(products, "linear", broken)
    assert main(["verify", "--device", "cpu", "--ops", "linear,embedding", "--dtype", "float32"]) == 1
    _, _, right, wrong, raises, other, verdict = capsys.readouterr().out.splitlines()
    assert right.endswith("ok") and other.endswith("ok") and verdict == "2 of 4 checks failed"
    assert wrong.endswith("FAILED") and raises.endswith("FAILED: RuntimeError: illegal instruction")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ops", "liner"], "--ops: there is no operation 'liner'; there are activation, "),
        (["--dtype", "float64"], "--dtype: there is no number format 'float64'; there are float32, bfloat16, float16"),
        pytest.param(
            ["--device", "cuda"], "--device: device is cuda, but torch sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        ),
    ],
    ids=["ops", "dtype", "device"],
)  # fmt: skip
def test_what_is_not_there_is_refused_in_one_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *flags]) == EXIT_BAD_CONFIG
    err = capsys.readouterr().err
    assert err.startswith(f"forebay verify: {message}") and err.count("\n") == 1
