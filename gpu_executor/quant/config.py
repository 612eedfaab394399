"""Owns reading how a checkpoint is quantized: what config.json says, as a scheme; anything that is not served is refused here."""

from __future__ import annotations

import dataclasses

from forebay.errors import NotOffered
from gpu_executor.models.config_reader import ConfigReader

_SECTIONS = ("quantization_config", "compression_config")
_OFFERED = "served are fp8, compressed-tensors (float, int and naive, or packed in 4 or 8 bits), gptq (4 or 8 bits) and awq (gemm)"
_FORMATS = frozenset({"float-quantized", "int-quantized", "naive-quantized", "pack-quantized"})


@dataclasses.dataclass(frozen=True, slots=True)
class Scheme:
    """How matrices are stored, as far as their tensors do not say it themselves."""

    method: str  # fp8, compressed-tensors, gptq or awq
    block: tuple[int, int] = (128, 128)  # outputs and inputs that share a scale, where blocks do
    zero_offset: int = 0  # what gptq's stored zeros lack
    group_size: int | None = None  # of gptq; None: all inputs


def read_scheme(config: ConfigReader) -> Scheme | None:
    """The scheme of a config.json, None for one that is not quantized. Raises NotOffered, or CheckpointError naming the key."""
    section = config.section(*_SECTIONS)
    for inner in ("text_config", "llm_config", "language_config"):  # where some multimodal checkpoints have it
        section = section if section.data else config.section(inner).section(*_SECTIONS)
    if not section.data:
        return None
    method = section("quant_method", default="compressed-tensors" if section.has("config_groups") else "?")
    match method:
        case "fp8" | "fbgemm_fp8":  # two names for the same tensors
            return Scheme("fp8", _read_block(section, "weight_block_size"))
        case "compressed-tensors":
            return _read_compressed(section)
        case "gptq":
            return _read_gptq(section)
        case "awq":
            _require(section, "bits", 4, (4,))
            _require(section, "version", "gemm", ("gemm", "GEMM"))
            return Scheme("awq")
    raise _refusal(str(method)[:40])


def _read_compressed(section: ConfigReader) -> Scheme:
    """Layers may differ in how they are quantized: in groups, whose formats stand with them or over all."""
    groups = [ConfigReader(g, where="config_groups") for g in section.section("config_groups").data.values() if g]
    default = section("format", default="?")
    formats = {group("format", default=default) for group in groups} or {default}
    if wrong := sorted(map(str, formats - _FORMATS)):
        raise _refusal(f"compressed-tensors in the format {wrong[0][:40]}")
    if section.section("sparsity_config")("format", default="dense") != "dense":
        raise _refusal("compressed-tensors with sparse weights")
    if section.section("transform_config").data:
        raise _refusal("compressed-tensors with transforms")
    weights = [group.section("weights") for group in groups]
    for each in weights:
        if each("num_bits", default=8) not in (4, 8):
            raise _refusal(f"compressed-tensors in {each('num_bits')!r} bits")
    blocks = {_read_block(each, "block_structure") for each in weights if each("block_structure", default=None)}
    if len(blocks) > 1:
        raise _refusal("compressed-tensors in blocks of several sizes")
    return Scheme("compressed-tensors", *blocks)


def _read_gptq(section: ConfigReader) -> Scheme:
    _require(section, "bits", 4, (4, 8))
    _require(section, "checkpoint_format", "gptq", ("gptq", "gptq_v2"))
    size = section("group_size", default=-1)
    if not isinstance(size, int) or (size < 1 and size != -1):
        raise section.wrong(("group_size",), size, "a number of inputs, or -1 for all")
    offset = 0 if section("checkpoint_format", default="gptq") == "gptq_v2" else 1
    return Scheme("gptq", zero_offset=offset, group_size=None if size == -1 else size)


def _require(section: ConfigReader, key: str, default: str | int, served: tuple[str | int, ...]) -> None:
    value = section(key, default=default)
    if value not in served:
        raise _refusal(f"{section('quant_method')} with {key} {str(value)[:40]}")


def _read_block(section: ConfigReader, key: str) -> tuple[int, int]:
    block = section(key, default=[128, 128])
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise section.wrong((key,), block, "two numbers: outputs and inputs that share a scale")
    return block[0], block[1]


def _refusal(what: str) -> NotOffered:
    return NotOffered(f"this checkpoint is quantized with {what}, which is not served; {_OFFERED}")
