"""Whatever frames come, a flight's tokens are a prefix of those that belong to it, and each sequence ends once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.demultiplexer import ProtocolError
from tests.frontend.doubles import RecordingSink
from tests.frontend.fake_executor import expected_tokens
from tests.frontend.frames import LENGTH, STOP, VOCAB_SIZE, Bench, Part, frame_of

NUM_SEQUENCES, NUM_TOKENS, SEEDS = 2, 6, (3, 4)

frames = st.lists(
    st.tuples(
        st.lists(
            st.fixed_dictionaries(
                {
                    "who": st.sampled_from([0, 0, 0, 1, 1, 1, None]),
                    "sequence_index": st.sampled_from([0, 0, 0, 0, 1, 1, 1, 1, NUM_SEQUENCES]),
                    "shift": st.sampled_from([0, 0, 0, 0, -1, -1, -2, 1]),  # of the first token, from what follows
                    "num": st.integers(0, 3),
                    "epoch_shift": st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1]),
                    "wrong": st.sampled_from(["", "", "", "contradicts", "contradicts", "out of vocabulary"]),
                    "finish": st.sampled_from([0] * 10 + [LENGTH, STOP]),
                }
            ),
            min_size=1,
            max_size=4,
        ),
        st.sampled_from([None] * 12 + ["handles", "epochs", "token_ids", "num_tokens"]),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(frames=frames, stops_at=st.dictionaries(st.integers(0, NUM_SEQUENCES - 1), st.integers(1, NUM_TOKENS)))
def test_tokens_are_a_prefix_and_each_sequence_ends_once_whatever_comes(frames: list, stops_at: dict[int, int]) -> None:
    bench, next_handle = Bench(), 1
    flights = []
    for _ in SEEDS:
        flights.append(bench.board(next_handle, RecordingSink(NUM_SEQUENCES, stops_at), n=NUM_SEQUENCES))
        next_handle += 1
    want = {
        id(flight): [expected_tokens(seed, index, NUM_TOKENS + 9) for index in range(NUM_SEQUENCES)]
        for flight, seed in zip(flights, SEEDS, strict=True)
    }

    def part_of(drawn: dict) -> Part:
        """The true tokens at a place that may be a wrong one; tokens that nobody can know to be wrong are not drawn."""
        if drawn["who"] is None:
            return Part(999, 0, [1] * drawn["num"])
        flight, index = flights[drawn["who"]], drawn["sequence_index"]
        known = flight.token_ids[index] if index < NUM_SEQUENCES else []
        first = max(0, len(known) + drawn["shift"])
        token_ids = want[id(flight)][index % NUM_SEQUENCES][first : first + drawn["num"]]
        if drawn["wrong"] == "out of vocabulary" and token_ids:
            token_ids[-1] = VOCAB_SIZE
        elif drawn["epoch_shift"] or (drawn["wrong"] == "contradicts" and first < len(known)):
            token_ids = [(token_id + 1) % VOCAB_SIZE for token_id in token_ids]
        epoch = flight.epoch + drawn["epoch_shift"]
        return Part(flight.handle, first, token_ids, max(0, epoch), index, drawn["finish"])

    def move_on() -> None:
        """What a dispatcher does with flights that were handed out."""
        nonlocal next_handle
        for flight in bench.broken:
            bench.resubmit(flight, next_handle)
            next_handle += 1
        bench.broken.clear()

    for drawn, longer in frames:
        frame = frame_of(*(part_of(part) for part in drawn))
        if longer:
            getattr(frame, longer).append(0)
        try:
            bench.demultiplexer.deliver(frame)
        except ProtocolError:
            bench.broken += bench.demultiplexer.flights.values()  # the session ends
            bench.demultiplexer.flights.clear()
        move_on()
        for flight in flights:
            for index, token_ids in enumerate(flight.sink.token_ids):
                assert token_ids == want[id(flight)][index][: len(token_ids)]

    for flight in flights:  # an executor that does it right ends what is left
        for index in range(NUM_SEQUENCES):
            known = len(flight.token_ids[index])
            rest = want[id(flight)][index][known : known + 1]
            bench.deliver(Part(flight.handle, known, rest, flight.epoch, index, LENGTH))
    assert all(flight.sink.num_ends == [1] * NUM_SEQUENCES and flight.done for flight in flights)
    assert sorted(map(id, bench.ended)) == sorted(map(id, flights)), "each flight leaves once"
    assert bench.demultiplexer.flights == {}
