"""Rules take every tensor of a checkpoint to its canonical name, and fold its quirks without changing what it computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from forebay.errors import CheckpointError
from gpu_executor.models.rope import cos_sin_table
from gpu_executor.models.rules import (
    Match,
    Rule,
    change,
    fold_unit_offset,
    match_names,
    permute_rope,
    rename,
    rows_of_parts,
    skip,
    split_experts,
    split_gate_up,
    split_heads,
    split_kv,
    split_qkv,
    transpose,
)
from gpu_executor.models.spec import Attention, Rope
from kernels.rope_kv_write.reference import rotate

ATTENTION = Attention(num_heads=6, num_kv_heads=2, head_dim=4, scale=0.5)
H, G, K, D = 6, 2, 4, 5


def apply(rule: Rule, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    assert rule.reshape is not None
    return rule.reshape(tensor)


def test_each_tensor_goes_to_the_first_rule_that_takes_its_whole_name() -> None:
    rules = (rename(r"h\.(\d+)\.a", r"layers.\1.b"), rename(r"h\.0\.a", "never", optional=True), skip(r".*\.inv_freq"))
    first, second, third = match_names(["h.0.a", "h.12.a", "x.inv_freq"], rules)
    assert first == Match("h.0.a", rules[0], ("layers.0.b",))
    assert second.targets == ("layers.12.b",)
    assert third.targets == ()


@pytest.mark.parametrize("name", ["xh.0.a", "h.0.a.more", "h.x.a"])
def test_a_rule_is_anchored_on_both_sides(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"tensors that this architecture does not: {name}"):
        match_names(["h.0.a", name], [rename(r"h\.(\d+)\.a", r"layers.\1.b")])


def test_tensors_that_nothing_takes_are_named_and_counted() -> None:
    with pytest.raises(CheckpointError, match=r"does not: t0, t1, t2 and 2 more"):
        match_names([f"t{i}" for i in range(5)], [skip("x")])


def test_a_rule_that_takes_nothing_is_named_unless_it_is_optional() -> None:
    optional = (rename("b", "c", optional=True), skip("d"))
    assert len(match_names(["a"], (rename("a", "x"), *optional))) == 1
    with pytest.raises(CheckpointError, match=r"the checkpoint has no tensor like needed\.weight"):
        match_names(["a"], (rename("a", "x"), rename("needed.weight", "y"), *optional))


def test_transpose_turns_matrices_and_leaves_vectors() -> None:
    rule = transpose("w", "x")
    matrix, vector = torch.randn(3, 5), torch.randn(5)
    assert torch.equal(apply(rule, matrix)[0], matrix.T)
    assert torch.equal(apply(rule, vector)[0], vector)


@pytest.mark.parametrize("shape", [(D,), ()], ids=["weight", "bias"])
@pytest.mark.parametrize("layout", ["stacked", "grouped"])
def test_split_qkv_undoes_how_the_projection_was_fused(layout: str, shape: tuple[int, ...]) -> None:
    q, k, v = torch.randn(H, K, *shape), torch.randn(G, K, *shape), torch.randn(G, K, *shape)
    if layout == "stacked":
        fused = torch.cat((q, k, v))
    else:
        fused = torch.cat([torch.cat((q[g * 3 : g * 3 + 3], k[g : g + 1], v[g : g + 1])) for g in range(G)])
    rule = split_qkv(r"(\d)\.c", r"layers.\1.mixer.{}.weight", ATTENTION, layout=layout)
    assert rule.targets == (r"layers.\1.mixer.q.weight", r"layers.\1.mixer.k.weight", r"layers.\1.mixer.v.weight")
    for got, want in zip(apply(rule, fused.flatten(0, 1)), (q, k, v), strict=True):
        assert torch.equal(got, want.flatten(0, 1))


def test_split_qkv_per_head_is_grouped_with_one_query_each() -> None:
    attention = Attention(num_heads=3, num_kv_heads=3, head_dim=4, scale=1.0)
    per_head = torch.arange(3 * 3 * 4).view(3, 3, 4)  # head, (q, k, v), K
    q, k, v = apply(split_qkv("c", "{}", attention, layout="grouped"), per_head.flatten())
    assert torch.equal(q, per_head[:, 0].flatten())
    assert torch.equal(k, per_head[:, 1].flatten())
    assert torch.equal(v, per_head[:, 2].flatten())


def test_split_qkv_of_a_transposed_matrix() -> None:
    fused = torch.randn((H + 2 * G) * K, D)
    plain = apply(split_qkv("c", "{}", ATTENTION), fused)
    turned = apply(split_qkv("c", "{}", ATTENTION, transposed=True), fused.T.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(plain, turned, strict=True))
    bias = torch.randn((H + 2 * G) * K)
    assert torch.equal(torch.cat(apply(split_qkv("c", "{}", ATTENTION, transposed=True), bias)), bias)


def test_split_gate_up() -> None:
    gate, up = torch.randn(7, D), torch.randn(7, D)
    rule = split_gate_up("w", "mlp.{}.weight")
    assert rule.targets == ("mlp.gate.weight", "mlp.up.weight")
    got = apply(rule, torch.cat((gate, up)))
    assert torch.equal(got[0], gate) and torch.equal(got[1], up)


@pytest.mark.parametrize("stacked", [True, False], ids=["three-dimensions", "one-below-the-other"])
def test_split_experts_takes_each_expert_from_its_rows(stacked: bool) -> None:
    gate_up = torch.randn(3, 14, D)
    rule = split_experts(r"(\d)\.e", (r"layers.\1.{}.gate", r"layers.\1.{}.up"), 3, lambda matrix: matrix.chunk(2))
    assert rule.targets[:3] == (r"layers.\1.0.gate", r"layers.\1.0.up", r"layers.\1.1.gate")
    parts = apply(rule, gate_up if stacked else gate_up.flatten(0, 1))
    want = [half for expert in range(3) for half in (gate_up[expert, :7], gate_up[expert, 7:])]
    assert len(parts) == len(want) == len(rule.targets)
    assert all(torch.equal(a, b) for a, b in zip(parts, want, strict=True))


def test_split_experts_refuses_another_number_of_experts() -> None:
    rule = split_experts("e", ("{}",), 2, lambda matrix: (matrix,))
    for tensor in (torch.zeros(7, D), torch.zeros(4, 6, D)):
        with pytest.raises(CheckpointError, match=f"its {len(tensor)} rows are not those of 2 experts"):
            apply(rule, tensor)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (split_qkv("w", "{}", ATTENTION), "its 7 outputs are not those of 6 query and 2 kv heads of 4"),
        (split_gate_up("w", "{}"), "its 7 outputs are not two halves"),
        (permute_rope("w", "x", head_dim=4, rope_dim=4), "its 7 outputs are not those of heads of 4"),
    ],
    ids=["qkv", "gate-up", "rope"],
)
def test_a_reshape_refuses_a_shape_that_cannot_be(rule: Rule, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        apply(rule, torch.zeros(7, D))


def test_fold_unit_offset_adds_in_float32() -> None:
    weight = torch.tensor([0.001, -0.5], dtype=torch.bfloat16)
    (folded,) = apply(fold_unit_offset("w", "x"), weight)
    assert folded.dtype == torch.float32
    assert torch.equal(folded, weight.float() + 1)


@pytest.mark.parametrize("rope_dim", [8, 4])
def test_permuted_heads_attend_as_heads_that_rotate_neighbours_do(rope_dim: int) -> None:
    """Scores of queries and keys, rotated as GPT-J does it, equal those of permuted projections rotated as NeoX does."""
    num_heads, head_dim, num_tokens = 3, 8, 6
    cos_sin, positions = cos_sin_table(Rope(rope_dim, 50.0), num_tokens), torch.arange(num_tokens)
    x, q_weight, k_weight = torch.randn(num_tokens, D), torch.randn(24, D), torch.randn(24, D)

    def rotate_neighbours(t: torch.Tensor) -> torch.Tensor:
        cos, sin = cos_sin[:, None].chunk(2, -1)
        a, b = t[..., 0:rope_dim:2], t[..., 1:rope_dim:2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        return torch.cat((turned, t[..., rope_dim:]), -1)

    def heads(weight: torch.Tensor) -> torch.Tensor:
        return (x @ weight.T).view(num_tokens, num_heads, head_dim)

    rule = permute_rope("w", "x", head_dim=head_dim, rope_dim=rope_dim)
    want = torch.einsum("thk,shk->hts", rotate_neighbours(heads(q_weight)), rotate_neighbours(heads(k_weight)))
    q, k = (rotate(heads(apply(rule, weight)[0]), cos_sin, positions) for weight in (q_weight, k_weight))
    torch.testing.assert_close(torch.einsum("thk,shk->hts", q, k), want, rtol=1e-5, atol=1e-4)


def test_a_norm_with_a_row_for_each_head_is_split_into_them() -> None:
    rows = torch.arange(12.0).view(3, 4)
    assert torch.equal(torch.stack(apply(split_heads("w", "{}", 3), rows)), rows)
    rotated = apply(split_heads("w", "{}", 3, neighbours=4), rows)
    assert rotated[1].tolist() == [4.0, 6.0, 5.0, 7.0]
    with pytest.raises(CheckpointError, match="its 3 rows are not those of 2 heads"):
        apply(split_heads("w", "{}", 2), rows)


def test_a_rule_says_what_it_does() -> None:
    assert str(rename("a", "b")) == "a → b"
    assert str(skip("a")) == "a → skipped"
    assert str(split_qkv("a", "{}", ATTENTION, layout="grouped")) == "a → q, k, v (split grouped)"
    assert str(transpose("a", "b")) == "a → b (transposed)"


def test_keys_and_values_of_each_kv_head_are_parted() -> None:
    rule = split_kv(r"(weight|bias)", r"{}.\1", ATTENTION)
    assert rule.targets == (r"k.\1", r"v.\1")
    heads = torch.randn(G, 2, K, D)
    k, v = apply(rule, heads.view(-1, D))
    assert torch.equal(k, heads[:, 0].reshape(-1, D)) and torch.equal(v, heads[:, 1].reshape(-1, D))
    assert torch.equal(apply(rule, heads[..., 0].reshape(-1))[1], v[:, 0])
    with pytest.raises(CheckpointError, match="its 15 outputs are not the keys and values of 2 kv heads of 4"):
        apply(rule, torch.zeros(15, D))


def test_gate_and_up_may_lie_interleaved() -> None:
    gate, up = apply(split_gate_up("w", "{}", interleaved=True), torch.arange(6)[:, None] * torch.ones(6, D))
    assert gate[:, 0].tolist() == [0, 2, 4] and up[:, 0].tolist() == [1, 3, 5]


def parts_of(rule: Rule, num_rows: int) -> dict[str, list[int]] | None:
    (match,) = match_names(["w"], [rule])
    rows = rows_of_parts(match, num_rows)
    return rows and {target: part.tolist() for target, part in rows.items()}


def test_rules_that_choose_rows_say_which() -> None:
    attention = Attention(num_heads=2, num_kv_heads=1, head_dim=2, scale=1.0)
    assert parts_of(rename("w", "a"), 3) == {"a": [0, 1, 2]}
    for transposed in (False, True):
        assert parts_of(split_gate_up("w", "{}", transposed=transposed), 4) == {"gate": [0, 1], "up": [2, 3]}
    assert parts_of(split_gate_up("w", "{}", interleaved=True), 4) == {"gate": [0, 2], "up": [1, 3]}
    assert parts_of(split_qkv("w", "{}", attention, neighbours=2), 8) == {"q": [0, 1, 2, 3], "k": [4, 5], "v": [6, 7]}
    assert parts_of(permute_rope("w", "a", head_dim=4, rope_dim=4), 4) == {"a": [0, 2, 1, 3]}
    assert parts_of(transpose("w", "a"), 3) == {"a": [0, 1, 2]}


@pytest.mark.parametrize(
    "changed",
    [
        lambda t: t + 1,
        lambda t: t * 2,
        lambda t: t.flip(1),
        lambda t: t[:, :1],
        lambda t: t.flatten(),
        lambda t: torch.nn.functional.normalize(t),
        lambda t: t[:, torch.tensor([5])],
        lambda t: t.unflatten(1, (5, 5)),
        lambda t: torch.cat((t, torch.zeros(1, 2))),
    ],
    ids=["shifted", "scaled", "columns-swapped", "columns-cut", "flat", "normal", "columns-chosen", "columns-split", "padded"],
)  # fmt: skip
def test_rules_that_do_more_than_choose_rows_say_so(changed: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert parts_of(change("w", "a", changed), 4) is None


def test_a_matrix_of_the_wrong_size_has_no_parts() -> None:
    assert parts_of(split_gate_up("w", "{}"), 3) is None
