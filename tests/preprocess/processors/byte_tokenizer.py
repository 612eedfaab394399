"""A tokenizer without merges: control tokens first, then one token for each byte. And prompts on their way through it."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from preprocess.processors.processor import PromptText
from preprocess.tokenizer import TextTokenizer


def byte_level(*controls: str, bos: str | None = None) -> Tokenizer:
    """`controls` have the ids 0, 1, …; `bos` is the one that the tokenizer puts in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate((*controls, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in controls])
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocab[bos])]
        )
    return tokenizer


def text_tokenizer(*controls: str, bos: str | None = None) -> TextTokenizer:
    """The same, as preprocessing uses it."""
    return TextTokenizer(byte_level(*controls, bos=bos), named_tokens={}, chat_template=None)


def write_tokenizer(folder: Path, *controls: str, bos: str | None = None) -> TextTokenizer:
    """The same, also as a checkpoint's tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_level(*controls, bos=bos).save(str(folder / "tokenizer.json"))
    return text_tokenizer(*controls, bos=bos)


def plain_prompt(tokenizer: TextTokenizer, text: str) -> PromptText:
    """A prompt that is text, in which control tokens are recognised."""

    def encode(part: str, add_special_tokens: bool) -> list[int]:
        return tokenizer.encode(part, add_special_tokens=add_special_tokens)

    return PromptText(text, encode=encode, adds_special_tokens=True)


def chat_prompt(tokenizer: TextTokenizer, template: str, user_text: str) -> PromptText:
    """A rendered chat: `{}` in the template is what the user typed, in which names of control tokens are plain text."""

    def encode(part: str, add_special_tokens: bool) -> list[int]:
        return tokenizer.encode_disguised(part, add_special_tokens=add_special_tokens)

    text = tokenizer.disguise(template).format(user_text)
    return PromptText(text, encode=encode, write=tokenizer.disguise, adds_special_tokens=False)
