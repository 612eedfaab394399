"""Owns the search for what top-k and top-p keep of a row of logits, without sorting it.

Logits are compared as integers in the same order. The smallest one that is kept lies in an interval of these; each pass over
the row counts, and weighs, what reaches three pivots inside, and leaves a quarter of the interval. Logits of one row seldom
lie close together, so that ten passes or so leave a single one in it; 16 end any search.
"""

from __future__ import annotations

from kernels.triton_runtime import tl, triton

ALL = 0x7FFFFFFF  # ties: as many as there are
_ALL = tl.constexpr(ALL)


@triton.jit
def to_key(x):
    """float32 -> int32 in the same order; the two zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def from_key(key):
    """int32 -> the float32 that it stands for."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def load_scaled(row, ids, size, temperature):
    """Logits over temperature, divided as IEEE says; -inf behind the end and for NaN."""
    x = tl.load(row + ids, ids < size, float("-inf"))
    return tl.div_rn(tl.where(x == x, x, float("-inf")), temperature)


@triton.jit
def count_and_mass(row, size, temperature, peak, key, BLOCK: tl.constexpr):
    """How many logits reach the key (int32), and the sum of their exp(logit - peak)."""
    count, mass = tl.zeros((), tl.int32), tl.zeros((), tl.float32)
    for first in range(0, size, BLOCK):
        x = load_scaled(row, first + tl.arange(0, BLOCK), size, temperature)
        reached = to_key(x) >= key
        count += tl.sum(reached.to(tl.int32), 0)
        mass += tl.sum(tl.where(reached, tl.exp(x - peak), 0.0), 0)
    return count, mass


@triton.jit
def search(row, size, temperature, peak, low, count_low, target, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The smallest set of largest logits that weighs `target`: each 1, or exp(logit - peak) with BY_MASS.

    low (int64): a key that all candidates reach, count_low of them. Returns the key that all of the set reach, and how many
    of those that lie exactly on it belong to it: ALL where the key itself decides.
    """
    high, count_high, weight_high = to_key(peak).to(tl.int64) + 1, tl.zeros((), tl.int32), tl.zeros((), tl.float32)
    while (high - low > 1) & (count_low - count_high > 1):
        step = tl.maximum((high - low) // 4, 1)
        pivot1, pivot2, pivot3 = low + step, tl.minimum(low + 2 * step, high), tl.minimum(low + 3 * step, high)
        count1, count2, count3 = tl.zeros((), tl.int32), tl.zeros((), tl.int32), tl.zeros((), tl.int32)
        mass1, mass2, mass3 = tl.zeros((), tl.float32), tl.zeros((), tl.float32), tl.zeros((), tl.float32)
        for first in range(0, size, BLOCK):
            x = load_scaled(row, first + tl.arange(0, BLOCK), size, temperature)
            key = to_key(x)
            reach1, reach2, reach3 = key >= pivot1.to(tl.int32), key >= pivot2.to(tl.int32), key >= pivot3.to(tl.int32)
            count1 += tl.sum(reach1.to(tl.int32), 0)
            count2 += tl.sum(reach2.to(tl.int32), 0)
            count3 += tl.sum(reach3.to(tl.int32), 0)
            if BY_MASS:
                power = tl.exp(x - peak)
                mass1 += tl.sum(tl.where(reach1, power, 0.0), 0)
                mass2 += tl.sum(tl.where(reach2, power, 0.0), 0)
                mass3 += tl.sum(tl.where(reach3, power, 0.0), 0)
        weight1 = mass1 if BY_MASS else count1.to(tl.float32)
        weight2 = mass2 if BY_MASS else count2.to(tl.float32)
        weight3 = mass3 if BY_MASS else count3.to(tl.float32)
        if weight3 >= target:
            low, count_low = pivot3, count3
        elif weight2 >= target:
            low, count_low = pivot2, count2
            high, count_high, weight_high = pivot3, count3, weight3
        elif weight1 >= target:
            low, count_low = pivot1, count1
            high, count_high, weight_high = pivot2, count2, weight2
        else:
            high, count_high, weight_high = pivot1, count1, weight1
    ties = tl.zeros((), tl.int32) + _ALL
    if count_low - count_high > 1:  # equal logits: as many as it takes
        each = tl.exp(from_key(low.to(tl.int32)) - peak) if BY_MASS else 1.0
        ties = tl.ceil(tl.div_rn(target - weight_high, each)).to(tl.int32)
        ties = tl.minimum(tl.maximum(ties, 1), count_low - count_high)
    return low, ties


@triton.jit
def kept_of(key, low, ties, num_before):
    """Which of a block's logits (keys) are in a set, the lower ids of those that tie; num_before: ties in earlier blocks.

    Returns them, and the ties up to the end of this block.
    """
    kept = key >= low.to(tl.int32)
    if ties < _ALL:
        tied = (key == low.to(tl.int32)).to(tl.int32)
        rank = num_before + tl.cumsum(tied, 0) - tied
        kept = kept & ((tied == 0) | (rank < ties))
        num_before += tl.sum(tied, 0)
    return kept, num_before
