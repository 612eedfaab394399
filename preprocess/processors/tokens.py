"""Owns the tokens that stand for media: a vocabulary's name of an id, and the id of a name."""

from __future__ import annotations

from forebay.errors import CheckpointError
from preprocess.tokenizer import TextTokenizer


def token_text(tokenizer: TextTokenizer, token_id: int, stands_for: str) -> str:
    """How text writes the token with this id; raises CheckpointError if the vocabulary has none."""
    (text,) = tokenizer.tokens([token_id])
    if not text:
        raise CheckpointError(
            f"config.json says that token {token_id:,} stands for {stands_for}; the vocabulary has none"
        )
    return text


def token_id(tokenizer: TextTokenizer, text: str) -> int:
    """The id of a token that the architecture needs; raises CheckpointError if the vocabulary has none."""
    found = tokenizer.backend.token_to_id(text)
    if found is None:
        raise CheckpointError(f"the vocabulary has no token {text}, which this architecture needs")
    return found


def feature_token(tokenizer: TextTokenizer, text: str, token_id: int | None) -> int:
    """The id that stands for features in a prompt, where the model never reads its embedding.

    The vocabulary's, if it has the token, else the one that config.json names, if that is in the vocabulary; else the end
    of a text.
    """
    found = tokenizer.backend.token_to_id(text)
    if found is None and token_id is not None and token_id < tokenizer.vocab_size:
        found = token_id
    if found is None:
        found = tokenizer.backend.token_to_id(tokenizer.named_tokens.get("eos_token", ""))
    if found is None:
        raise CheckpointError(f"the vocabulary has neither {text} nor an eos_token, one of which stands for features")
    return found
