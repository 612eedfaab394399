"""Small tokenizers of every kind that checkpoints come with, trained on a few lines, and folders that hold them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Don't stop; it's 3.14 o'clock!",
    "Hello, my name is Forebay. A forebay is the basin that feeds a turbine.",
    "def main():\n    return [x for x in range(10)]\n\n\n# comment\tend",
    "Grüße aus Köln, naïve café. 東京は日本の首都です。Привет, мир!",
    "system user assistant tool think im_start im_end begin of text",
] * 4
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + "
    "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(
        tokenizer,
        trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral have it: sentencepiece's letters, bytes for the rest, <s> in front."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = SPECIALS + [f"<0x{byte:02X}>" for byte in range(256)]
    text = [line.encode("ascii", "ignore").decode() for line in CORPUS]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    data = json.loads(tokenizer.to_str())  # bytes are vocabulary, not added tokens
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in SPECIALS]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def metaspace_unigram() -> Tokenizer:
    """As T5 and XLM-R have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    _train(
        tokenizer,
        trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False),
    )
    return tokenizer


def wordpiece() -> Tokenizer:
    """As BERT has it: lower case, "##" pieces, a decoder that cleans up spaces."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    specials = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    _train(tokenizer, trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False))
    tokenizer.add_special_tokens([AddedToken("[mark]", normalized=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def word_suffix_bpe() -> Tokenizer:
    """As GPT-1 and CLIP have it: "</w>" ends a word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIALS, end_of_word_suffix="</w>", show_progress=False
    )
    _train(tokenizer, trainer)
    return tokenizer


BUILDERS = (byte_level, byte_fallback, metaspace_unigram, wordpiece, word_suffix_bpe)


@functools.cache
def tokenizer_json(kind: str) -> str:
    """The tokenizer.json of a kind, trained once per test run."""
    return {builder.__name__: builder for builder in BUILDERS}[kind]().to_str()


def tokenizer_of(kind: str) -> Tokenizer:
    """A fresh tokenizer of a kind."""
    return Tokenizer.from_str(tokenizer_json(kind))


def write_folder(folder: Path, kind: str = "byte_level", *, chat_template: str | None = None, **config: object) -> Path:
    """Writes what a checkpoint has beside its weights; `config` goes into tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(kind), encoding="utf-8")
    settings = {"bos_token": "<s>", "eos_token": "<|im_end|>"} if kind != "wordpiece" else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 4}))
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return folder


def _train(tokenizer: Tokenizer, trainer: object) -> None:
    tokenizer.train_from_iterator(CORPUS, trainer)
