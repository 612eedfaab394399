"""Stop strings end a sequence where the first of them is complete; what may begin one is held back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.frontend.sequences import KINDS, TOKENIZERS, byte_ids, split, text_of


def certain_texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """What each id adds to the text."""
    text = text_of(tokenizer)
    return [text.push([i]).text for i in ids]


def first_complete(text: str, stops: Sequence[str], after: int = 0) -> tuple[int, str] | None:
    """The first end of a stop string beyond a place in the text, and the longest that ends there."""
    for end in range(after + 1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return end, max(found, key=len)
    return None


def letters(tokenizer: Tokenizer) -> list[int]:
    return [i for name in ("a", "b", "ab", "Ġ", "é") if (i := tokenizer.token_to_id(name)) is not None]


# Over two letters, so that strings overlap themselves and each other.
STOPS = st.lists(
    st.text("ab", min_size=2, max_size=5) | st.text("ab c", min_size=1, max_size=3), min_size=1, max_size=4
)


@given(data=st.data(), stops=STOPS, include=st.booleans(), min_tokens=st.integers(0, 6), size=st.integers(1, 5))
@settings(max_examples=400, deadline=None)
def test_first_stop_string_ends_the_text_exactly_there(data, stops, include, min_tokens, size):
    tokenizer = TOKENIZERS["byte_level"]
    ids = data.draw(st.lists(st.sampled_from(letters(tokenizer)), max_size=25))
    added = certain_texts(tokenizer, ids)
    found = first_complete("".join(added), stops, after=len("".join(added[:min_tokens])))

    text, shown, num_tokens, stop_string = text_of(
        tokenizer, stop=stops, include_stop_str_in_output=include, min_tokens=min_tokens
    ), "", 0, None  # fmt: skip
    for push in split(ids, [size]):
        delta = text.push(push)
        shown, num_tokens, stop_string = shown + delta.text, num_tokens + delta.num_tokens, delta.stop_string
        if stop_string is not None:
            break
    shown += text.finish()

    if found is None:
        assert (shown, num_tokens, stop_string) == (tokenizer.decode(ids), len(ids), None)
        return
    end, expected = found
    assert stop_string == expected
    assert shown == "".join(added)[: end if include else end - len(expected)]
    assert num_tokens == next(n for n in range(len(ids) + 1) if len("".join(added[:n])) >= end)


@given(data=st.data(), stops=STOPS, min_tokens=st.integers(0, 6))
@settings(max_examples=200, deadline=None)
def test_what_may_begin_a_stop_string_is_held_back_and_no_more(data, stops, min_tokens):
    tokenizer = TOKENIZERS["byte_level"]
    ids = data.draw(st.lists(st.sampled_from(letters(tokenizer)), max_size=25))
    text, shown, certain = text_of(tokenizer, stop=stops, min_tokens=min_tokens), "", ""
    for token_id, new in zip(ids, certain_texts(tokenizer, ids), strict=True):
        delta = text.push([token_id])
        if delta.stop_string is not None:
            return
        shown, certain = shown + delta.text, certain + new
        beginnings = [stop[:n] for stop in stops for n in range(1, len(stop)) if certain.endswith(stop[:n])]
        assert certain == shown + max(beginnings, key=len, default="")


@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_are_found_across_tokens_of_every_kind(kind):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode("the quick brown fox jumps", add_special_tokens=False).ids
    whole = tokenizer.decode(ids)
    stop = whole[6:12]
    text = text_of(tokenizer, stop=[stop])
    shown, deltas = "", []
    for token_id in ids:
        deltas.append(text.push([token_id]))
        shown += deltas[-1].text
        if deltas[-1].stop_string:
            break
    assert deltas[-1].stop_string == stop and deltas[-1].num_tokens == 1
    assert shown + text.finish() == whole[:6]


def spelled(text: str) -> list[int]:
    """An id per character."""
    ids = byte_ids(TOKENIZERS["byte_level"], text.encode())
    assert len(ids) == len(text)
    return ids


def test_longest_of_the_stop_strings_that_end_together_counts():
    delta = text_of(TOKENIZERS["byte_level"], stop=["b", "ab", "xb"]).push(spelled("caabz"))
    assert (delta.text, delta.num_tokens, delta.stop_string) == ("ca", 4, "ab")


@pytest.mark.parametrize(("min_tokens", "num_tokens"), [(0, 2), (1, 2), (2, 5), (4, 5), (5, None)])
def test_stop_string_counts_only_if_its_last_token_comes_after_min_tokens(min_tokens, num_tokens):
    text = text_of(TOKENIZERS["byte_level"], stop=["ab"], min_tokens=min_tokens)
    counts, stopped = 0, None
    for token_id in spelled("abcab"):
        delta = text.push([token_id])
        counts, stopped = counts + delta.num_tokens, stopped or delta.stop_string
        if stopped:
            break
    assert (counts if stopped else None) == num_tokens


def test_nothing_comes_after_a_stop_string():
    text = text_of(TOKENIZERS["byte_level"], stop=["b"])
    assert text.push(spelled("abc")).stop_string == "b"
    late = text.push(spelled("xyz"))
    assert (late.text, late.num_tokens, late.stop_string) == ("", 0, None)
    assert text.finish() == ""


def test_beginning_of_a_stop_string_is_shown_when_the_sequence_ends():
    text = text_of(TOKENIZERS["byte_level"], stop=["abc"])
    assert text.push(spelled("xab")).text == "x"
    assert text.finish() == "ab"


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["aab"], "aaab", "a"),
        (["abab"], "aababab", "a"),
        (["abcx", "bc"], "abcx", "a"),
        (["abcd", "c"], "abcd", "ab"),
        (["abx", "bay"], "abay", "a"),
    ],
)
def test_strings_that_overlap_are_told_apart(stops, text, expected):
    delta = text_of(TOKENIZERS["byte_level"], stop=stops).push(spelled(text))
    assert delta.stop_string in stops
    assert delta.text == expected


def test_stop_string_that_is_certain_only_at_the_end_takes_its_beginning_along():
    tokenizer = TOKENIZERS["byte_fallback"]
    text = text_of(tokenizer, stop=["a東"])
    assert text.push([tokenizer.token_to_id("a"), *byte_ids(tokenizer, "東".encode())]).text == ""
    assert text.finish() == ""


@pytest.mark.parametrize("include", [False, True])
def test_stop_string_in_bytes_that_are_certain_only_at_the_end_still_cuts(include):
    tokenizer = TOKENIZERS["byte_fallback"]
    text = text_of(tokenizer, stop=["東"], include_stop_str_in_output=include)
    assert text.push(byte_ids(tokenizer, "é東京".encode())).text == ""
    assert text.finish() == ("é東" if include else "é")


# Stop tokens, and no tokenizer.


@pytest.mark.parametrize(("include", "expected"), [(False, "ab"), (True, "abc")])
def test_stop_token_gives_text_only_if_stops_are_part_of_the_output(include, expected):
    text = text_of(TOKENIZERS["byte_level"], include_stop_str_in_output=include)
    first, last = text.push(spelled("a")), text.push(spelled("bc"), finished_by_stop_token=True)
    assert first.text + last.text + text.finish() == expected
    assert (last.num_tokens, last.stop_string) == (2, None)


def test_special_stop_token_is_shown_only_if_special_tokens_are():
    tokenizer = TOKENIZERS["byte_level"]
    ids = [*spelled("a"), tokenizer.token_to_id("<|im_end|>")]
    for skip, expected in ((True, "a"), (False, "a<|im_end|>")):
        text = text_of(tokenizer, skip_special_tokens=skip, include_stop_str_in_output=True)
        assert text.push(ids, finished_by_stop_token=True).text + text.finish() == expected


def test_stop_token_does_not_complete_a_stop_string():
    delta = text_of(TOKENIZERS["byte_level"], stop=["ab"]).push(spelled("ab"), finished_by_stop_token=True)
    assert (delta.text, delta.num_tokens, delta.stop_string) == ("", 2, None)


def test_stop_string_before_the_stop_token_comes_first():
    delta = text_of(TOKENIZERS["byte_level"], stop=["a"]).push(spelled("xab"), finished_by_stop_token=True)
    assert (delta.text, delta.num_tokens, delta.stop_string) == ("x", 2, "a")


def test_push_of_nothing_changes_nothing():
    text = text_of(TOKENIZERS["byte_level"], stop=["ab"])
    assert text.push(spelled("xa")).text == "x"
    delta = text.push([], finished_by_stop_token=True)
    assert (delta.text, delta.num_tokens, delta.stop_string) == ("", 0, None)
    assert text.finish() == "a"


@pytest.mark.parametrize("by_stop_token", [False, True])
def test_without_a_tokenizer_there_are_only_ids(by_stop_token):
    text = text_of(None)
    delta = text.push([5, 6, 7], finished_by_stop_token=by_stop_token)
    assert (delta.text, delta.num_tokens, delta.stop_string) == ("", 3, None)
    assert text.finish() == ""
