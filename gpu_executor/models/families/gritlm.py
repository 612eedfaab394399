"""GritLM (Muennighoff et al., 2024): Mistral, trained to generate as it is and to embed without causality.

An embedding is the mean over the text behind the instruction, which ends with <|embed|> and a newline.
"""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LLAMA_RULES, read_attention, read_model
from gpu_executor.models.families.mistral import mistral
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.spec import Pooling

# How the tokenizer splits it at the beginning of a text, and behind a newline.
_EMBED = ("|", "embed", "|", ">", "<0x0A>")
_POOLING = Pooling("mean", instruction_ends=(("\u2581<", *_EMBED), ("<0x0A>", "<", *_EMBED)))


@architecture("GritLM", tasks=("generate", "embed"), examples="GritLM 7B")
def gritlm(config: ConfigReader, architecture: str) -> Resolved:
    if config.task != "embed":
        return mistral(config, architecture)
    attention = dataclasses.replace(read_attention(config), causal=False)
    spec = read_model(config, architecture, [attention] * config.integer("num_hidden_layers"))
    return Resolved(dataclasses.replace(spec, pooling=_POOLING), LLAMA_RULES, GATE)
