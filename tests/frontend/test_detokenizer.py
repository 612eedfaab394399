"""The text of a growing sequence comes in pieces that add up to the whole decoded at once, each as soon as it is certain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from frontend.detokenizer import MAX_HELD_BYTES
from tests.frontend.sequences import KINDS, TOKENIZERS, byte_ids, pushed, split, text_of

SAMPLES = [
    "The quick brown fox",
    "  two  spaces,   three",
    "don't . , ! ? do not ' s n't",
    "naïve café, 東京は日本",
    "😀👩‍👩‍👧 é́",
    "\n\n\tdef main():\n",
    "<|im_end|> <s> [SEP] [mark]",
    "\ufffd and \ufffd\ufffd",
]
BROKEN_BYTES = [
    b"\xf0",
    b"\xf0\x9f\x98",
    b"\x80",
    b"\x9f\x80",
    b"\xe3\x81",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"\xff",
    b"\xc3",
]


def fragments(tokenizer: Tokenizer) -> list[list[int]]:
    """Ids as a model may give them: ordinary text, cut anywhere, and bytes that are no text."""
    whole = [tokenizer.encode(text, add_special_tokens=False).ids for text in SAMPLES]
    parts = [ids[start : start + 5] for ids in whole for start in range(0, len(ids), 3)]
    broken = [ids for data in BROKEN_BYTES if (ids := byte_ids(tokenizer, data))]
    return whole + parts + broken


def id_lists(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    anything = st.lists(st.integers(0, tokenizer.get_vocab_size() + 3), min_size=1, max_size=3)
    specials = st.sampled_from([[i] for i in range(5)])
    pieces = st.sampled_from(fragments(tokenizer)) | anything | specials
    return st.lists(pieces, max_size=8).map(lambda found: [i for ids in found for i in ids])


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), skip=st.booleans(), cuts=st.lists(st.integers(1, 6), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_pieces_add_up_to_the_whole(kind, data, skip, cuts):
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(id_lists(tokenizer))
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    assert pushed(text_of(tokenizer, skip_special_tokens=skip), split(ids, cuts)) == whole


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_text_comes_as_soon_as_it_is_certain(kind, data):
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(id_lists(tokenizer))
    text, shown = text_of(tokenizer, skip_special_tokens=False), ""
    for count, token_id in enumerate(ids, 1):
        shown += text.push([token_id]).text
        whole = tokenizer.decode(ids[:count], skip_special_tokens=False)
        name = tokenizer.id_to_token(token_id)
        if kind == "byte_level":
            assert whole.removesuffix("\ufffd") == shown or whole == shown
        elif name is not None and not name.startswith("<0x"):
            assert shown == whole


def test_character_in_bytes_is_held_until_its_last_byte():
    tokenizer = TOKENIZERS["byte_level"]
    text = text_of(tokenizer)
    assert [text.push([i]).text for i in byte_ids(tokenizer, "a😀é".encode())] == ["a", "", "", "", "😀", "", "é"]


def test_run_of_byte_tokens_is_held_until_it_ends():
    tokenizer = TOKENIZERS["byte_fallback"]
    text, word = text_of(tokenizer), tokenizer.token_to_id("a")
    assert [text.push([i]).text for i in byte_ids(tokenizer, "😀".encode())] == [""] * 4
    assert text.push([word]).text == "😀a"


def test_wrong_byte_turns_its_run_into_replacement_characters_at_once():
    tokenizer = TOKENIZERS["byte_fallback"]
    text = text_of(tokenizer)
    assert [text.push([i]).text for i in byte_ids(tokenizer, "é".encode() + b"\xff\x41")] == [
        "",
        "",
        "\ufffd" * 3,
        "\ufffd",
    ]


def test_long_run_of_byte_tokens_is_shown_in_whole_characters():
    tokenizer = TOKENIZERS["byte_fallback"]
    text, ids = text_of(tokenizer), byte_ids(tokenizer, ("東" * 100).encode())
    pieces = [text.push([i]).text for i in ids]
    longest_wait = max(len(wait) for wait in "".join("x" if piece else "." for piece in pieces).split("x"))
    assert longest_wait < MAX_HELD_BYTES
    assert "".join(pieces) + text.finish() == "東" * 100


def test_long_run_that_turns_out_wrong_keeps_what_was_shown():
    tokenizer = TOKENIZERS["byte_fallback"]
    num_shown = MAX_HELD_BYTES // 3
    ids = byte_ids(tokenizer, ("東" * num_shown).encode() + b"\xe6\xff")
    ids += [tokenizer.token_to_id("a")]
    assert pushed(text_of(tokenizer), [[i] for i in ids]) == "東" * num_shown + "\ufffd\ufffda"


def test_long_run_that_ends_within_a_character_leaves_what_follows_alone():
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = byte_ids(tokenizer, ("東" * 21).encode() + b"\xe6")  # one more than are held
    assert len(ids) == MAX_HELD_BYTES
    word = tokenizer.encode("the", add_special_tokens=False).ids
    text = text_of(tokenizer)
    assert text.push(ids).text == "東" * 21
    assert text.push([*word, *byte_ids(tokenizer, "é".encode()), *word]).text + text.finish() == "\ufffd theé the"


def test_space_after_a_long_run_stays():
    tokenizer = TOKENIZERS["byte_fallback"]
    ids = (
        byte_ids(tokenizer, ("é" * (MAX_HELD_BYTES // 2)).encode())
        + tokenizer.encode("the", add_special_tokens=False).ids
    )
    assert pushed(text_of(tokenizer), [[i] for i in ids]) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_ids_give_no_text(kind):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("Hello, my name", add_special_tokens=False).ids
    woven = [i for token_id in ids for i in (2**32 - 1, token_id, tokenizer.get_vocab_size())]
    text = text_of(tokenizer)
    assert text.push(woven).num_tokens == len(woven)
    assert pushed(text_of(tokenizer), [woven]) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte_fallback", "metaspace_unigram"])
def test_skipped_special_tokens_leave_the_spaces_of_their_neighbours_alone(kind):
    tokenizer = TOKENIZERS[kind]
    start, space = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("▁")
    word = tokenizer.encode("the", add_special_tokens=False).ids
    for ids in ([start] * 20 + word, word + [start] * 20 + word, [start, space] * 12 + word, [space] * 12 + word):
        assert pushed(text_of(tokenizer), [[i] for i in ids]) == tokenizer.decode(ids)


# Decoders that no tokenizer of the zoo has, over tokens that are made for trouble.

ODD_TOKENS = [
    "",
    "▁",
    "▁▁",
    "a",
    "▁b",
    "c▁",
    "##d",
    "<0xE6>",
    "<0x9D>",
    "<0xB1>",
    "<0xFF>",
    "<0x20>",
    "\ufffd",
    "Ġe",
    "æ",
    "Ŀ",
]
ODD_DECODERS = {
    "none": None,
    "fallback_without_strip": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "fallback_unfused": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()]),
    "fallback_with_strip": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "strip_two": decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)]),
    "fallback_first": decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " ")]),
    "metaspace_never": decoders.Metaspace(prepend_scheme="never"),
    "wordpiece_as_written": decoders.WordPiece(cleanup=False),
    "byte_level_with_odd_tokens": decoders.ByteLevel(),
    "fuse": decoders.Fuse(),
}


def odd_tokenizer(decoder: Any, tokens: Sequence[str] = ODD_TOKENS) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[0]))
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


ODD_TOKENIZERS = {name: odd_tokenizer(decoder) for name, decoder in ODD_DECODERS.items()}


@pytest.mark.parametrize("name", ODD_DECODERS)
@given(runs=st.lists(st.tuples(st.integers(0, len(ODD_TOKENS)), st.sampled_from([1, 1, 1, 2, 12])), max_size=30))
@settings(max_examples=200, deadline=None)
@example(runs=[(ODD_TOKENS.index(""), 12), (ODD_TOKENS.index("▁b"), 1)])
@example(runs=[(ODD_TOKENS.index("æ"), 1), (ODD_TOKENS.index(""), 12), (ODD_TOKENS.index("Ŀ"), 1)])
def test_pieces_add_up_for_other_decoders_too(name, runs):
    tokenizer, ids = ODD_TOKENIZERS[name], [token_id for token_id, count in runs for _ in range(count)]
    assert pushed(text_of(tokenizer), [[i] for i in ids]) == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(0, 3), max_size=100))
@settings(deadline=None)
def test_vocabulary_without_a_word_is_decoded_all_the_same(ids):
    tokens = ["<0xE6>", "<0x9D>", "<0xB1>", "!"]
    tokenizer = odd_tokenizer(decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]), tokens)
    assert pushed(text_of(tokenizer), [[i] for i in ids]) == tokenizer.decode(ids)


class CountingTokenizer:
    """A tokenizer that remembers how many ids it was given to decode at a time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.lengths = [0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        self.lengths.append(len(ids))
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("data", [b"\x80", b"\xff", b"\xf0", b"\xe6\x9d", b"\xe6\x9d\xb1", b"a", b" "], ids=repr)
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_cost_of_a_token_does_not_grow_with_endless_bytes(kind, data):
    tokenizer = CountingTokenizer(TOKENIZERS[kind])
    pushed(text_of(tokenizer), [[i] for i in byte_ids(TOKENIZERS[kind], data) * 500])
    assert max(tokenizer.lengths) <= MAX_HELD_BYTES + 10
    assert len(tokenizer.lengths) < 2 * 500 * len(data)


@pytest.mark.parametrize("kind", KINDS)
def test_cost_of_a_token_does_not_grow_with_the_text(kind):
    tokenizer = CountingTokenizer(TOKENIZERS[kind])
    ids = [i for text in SAMPLES for i in TOKENIZERS[kind].encode(text).ids] * 20
    pushed(text_of(tokenizer), [[i] for i in ids])
    assert max(tokenizer.lengths) <= 40  # the longest run of byte tokens among the samples, and a little
