"""Tokenizers of checkpoints that hold no tokenizer.json, built from their files as data: no code of theirs ever runs."""
