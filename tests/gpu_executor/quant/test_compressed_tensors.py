"""What compressed-tensors writes is read as it reads it itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpu_executor.quant.config import Scheme
from gpu_executor.quant.matrix import FORMATS, QuantizedMatrix
from tests.gpu_executor.quant.quantizers import groups_in_order, rounded

pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed: it is no dependency")

from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

DOUT, DIN = 24, 48


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize(("format", "num_bits", "strategy"), [
    ("pack-quantized", 4, "group"), ("pack-quantized", 4, "channel"), ("pack-quantized", 8, "group"),
    ("int-quantized", 8, "channel"), ("naive-quantized", 8, "channel"),
])  # fmt: skip
def test_integers(format: str, num_bits: int, strategy: str, symmetric: bool) -> None:
    weight = torch.randn(DOUT, DIN, generator=torch.Generator().manual_seed(0))
    groups = groups_in_order(DIN) if strategy == "group" else torch.zeros(DIN, dtype=torch.long)
    _, scales, zeros, _ = rounded(weight, num_bits, groups, symmetric=symmetric)
    options = {"group_size": 16} if strategy == "group" else {}
    args = QuantizationArgs(num_bits=num_bits, type="int", strategy=strategy, symmetric=symmetric, **options)
    zero_point = (zeros - 2 ** (num_bits - 1)).to(torch.int8)
    check(format, args, {"weight": weight, "weight_scale": scales.float(), "weight_zero_point": zero_point})


@pytest.mark.parametrize("strategy", ["tensor", "channel", "block"])
def test_floats(strategy: str) -> None:
    weight = torch.randn(DOUT, DIN, generator=torch.Generator().manual_seed(0))
    shape = {"tensor": (1,), "channel": (DOUT, 1), "block": (3, 3)}[strategy]
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 0.01 + 0.01
    options = {"block_structure": [8, 16]} if strategy == "block" else {}
    args = QuantizationArgs(num_bits=8, type="float", strategy=strategy, symmetric=True, **options)
    check("float-quantized", args, {"weight": weight, "weight_scale": scale})


def check(format: str, args: QuantizationArgs, tensors: dict[str, Any]) -> None:
    """compressed-tensors compresses; both decompress."""
    compressor, scheme = (
        BaseCompressor.get_value_from_registry(format),
        QuantizationScheme(targets=["Linear"], weights=args),
    )
    stored = compressor.compress(tensors, scheme)
    want = compressor.decompress(stored, scheme)["weight"]
    (form,) = [form for form in FORMATS["compressed-tensors"] if form.main in stored]
    matrix = QuantizedMatrix("P.weight", Scheme("compressed-tensors", block=(8, 16)), form, stored)
    got = matrix.unpack(matrix.pack(torch.device("cpu")), torch.float32, inputs_first=False)
    assert got.shape == (DOUT, DIN) and want.std() > 0.5
    torch.testing.assert_close(got, want.float(), rtol=1e-6, atol=1e-7)
