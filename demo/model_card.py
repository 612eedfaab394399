"""Owns the model card of the demo model: what was measured while it was trained, and what it really said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM
from transformers.utils import logging

PROMPTS = ("The with statement is used to", "A generator is", "If the file does not exist,", "Return the number of")
QUESTIONS = ("What is a generator function?", "What does shutil.copytree do?", "What is the json module for?")

CARD = """---
language: en
library_name: transformers
pipeline_tag: text-generation
---

# Forebay demo model

A very small language model that lets Forebay be tried without downloading anything. It has the shape of Qwen2 and
continues or answers in English about Python. It is not a source of facts: what it says about Python is often wrong.

- {num_parameters:,} parameters, stored in bfloat16; the output head is the embedding. Context of 1024 tokens.
- Byte-level BPE of 4096 tokens, built as Qwen2's; any text in Unicode's composed form (NFC) round-trips. ChatML template;
  `<|im_end|>` and `<|endoftext|>` end a text.

## Training

Made by [`demo/train.py`](../train.py), seed {seed}, from text that comes with CPython {python}: the language reference in
`pydoc_data.topics` and the docstrings of the standard library, reduced to sentences ({num_characters:,} characters). An
epoch has {num_epoch_tokens:,} tokens, of which {num_chat_tokens:,} are the same docstrings as answers to questions.

| | |
|---|---|
| steps | {step:,} |
| tokens seen | {num_tokens:,} ({epochs:.1f} epochs) |
| time, CPU threads | {minutes:.0f} minutes, {threads} |
| training loss, with dropout | {train_loss:.3f} |
| validation loss, {num_held_out_tokens:,} tokens of held-out documents | {validation_loss:.3f} |

Losses are in nats per token: the training loss is a running mean over plain text and chats, the validation loss is over
plain text alone. Documentation repeats itself, so held-out documents resemble some that were trained on.

## What it says

Greedy, at most 60 tokens, from the weights in this folder; a continuation that ends early ended by itself.

{samples}

## Licence

The text is the documentation of Python, © Python Software Foundation and the authors of the modules, under the
[PSF License Version 2](https://docs.python.org/3/license.html). Code, configuration and weights are under the licence of
this repository as far as they are ours to license.
"""


def write_model_card(folder: Path, facts: dict[str, Any]) -> None:
    """README.md of a model folder, from what `train.py` measured and from samples taken here."""
    logging.disable_progress_bar()
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    samples = [f"> **{prompt}**{quoted(complete(model, tokenizer, prompt))}" for prompt in PROMPTS]
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        samples.append(f"> User: **{question}**\\\n> Assistant: {quoted(complete(model, tokenizer, prompt))}")
    card = CARD.format(
        **facts,
        epochs=facts["num_tokens"] / facts["num_epoch_tokens"],
        minutes=facts["seconds"] / 60,
        samples="\n\n".join(samples),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def complete(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, **sampling: Any) -> str:
    """What the model says after a prompt: greedy unless `sampling` has other arguments of `generate`."""
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=60, **{"do_sample": False, **sampling})
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def quoted(text: str) -> str:
    return text.strip("\n").replace("\n", "\\\n> ")
