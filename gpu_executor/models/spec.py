"""Owns what a model is, as data: facts of the maths, never about a checkpoint's names.

Shape letters, here and wherever a docstring gives a shape: T tokens in the batch, R sequences in the batch, H query
heads, G kv heads, K head_dim, D hidden, F mlp, E experts, V vocabulary, B blocks, S block_size, L layers, P positions.

A tensor that may or may not exist (a bias, a gate, a norm of queries) is no field here: its presence decides.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from gpu_executor.models.towers.tower import TowerSpec


@dataclasses.dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm or LayerNorm; one that is not affine has neither weight nor bias."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-6
    affine: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class LinearScaling:
    """Position interpolation (Chen et al., 2023): all frequencies are divided."""

    factor: float


@dataclasses.dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1: slow pairs are divided by the factor, fast ones are left as they are, with a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    trained_len: int


@dataclasses.dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (Peng et al., 2023): as Llama3Scaling with another ramp, and larger cosines and sines."""

    factor: float
    trained_len: int
    beta_fast: float
    beta_slow: float
    truncate: bool  # the ramp begins and ends at whole pairs
    magnitude: float  # cosines and sines are multiplied by it


@dataclasses.dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """LongRoPE (Ding et al., 2024): each pair is divided by a factor of its own, another one in sequences beyond trained_len."""

    factors: tuple[float, ...]
    magnitude: float  # cosines and sines are multiplied by it
    long_factors: tuple[float, ...]
    long_magnitude: float
    trained_len: int

    @property
    def long(self) -> LongRopeScaling:
        """What holds in sequences of more than trained_len tokens."""
        return dataclasses.replace(self, factors=self.long_factors, magnitude=self.long_magnitude)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclasses.dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions (Su et al., 2021) over the first `dim` of K, in pairs (i, i + dim / 2)."""

    dim: int
    theta: float
    scaling: RopeScaling | None = None
    # Pairs that turn with each axis of a token's position, in order (M-RoPE: Wang et al., 2024); empty: there is one axis.
    sections: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Alibi:
    """Attention with linear biases (Press et al., 2021): each head adds slope * (key position - query position)."""

    slopes: tuple[float, ...]  # (H)


@dataclasses.dataclass(frozen=True, slots=True)
class Learned:
    """A table of positions, added to the embedding."""

    num_positions: int


@dataclasses.dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention over a paged KV cache, in groups of num_heads / num_kv_heads query heads per kv head.

    `qk_norm` normalizes queries and keys before they rotate: each head with one weight (K) for all of them ("head") or
    with one of its own (H, K) ("heads"), or all heads together ("projection"). `norm` is how; the stack's where it is None.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    positions: Rope | Alibi | None = None
    window: int | None = None  # keys that a query sees, itself included
    softcap: float | None = None  # scores s become softcap * tanh(s / softcap)
    qk_norm: Literal["head", "heads", "projection"] | None = None
    norm: Norm | None = None
    clip: float | None = None  # queries, keys and values are clamped to [-clip, clip]
    causal: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class BlockSparseAttention:
    """Attention that sees some blocks of keys alone (Phi-3-small: Abdin et al., 2024); see kernels/block_sparse_attention.

    These are the last num_local_blocks, and every stride-th one before them, shifted by h * head_step for head h.
    """

    attention: Attention
    sparse_block_size: int
    num_local_blocks: int
    stride: int
    head_step: int


@dataclasses.dataclass(frozen=True, slots=True)
class Mla:
    """Multi-head latent attention (DeepSeek-V2, 2024): keys and values of all heads come from one latent vector.

    A head's query and key are nope_dim numbers without position, and rope.dim that rotate; the rotating part of the
    key is one for all heads. The cache holds the latent (kv_rank) and that part.
    """

    num_heads: int
    nope_dim: int
    v_dim: int
    kv_rank: int
    q_rank: int | None  # None: queries are projected from the hidden state directly
    rope: Rope
    scale: float
    norm: Norm  # of the two latents


@dataclasses.dataclass(frozen=True, slots=True)
class Mamba:
    """Selective state space (Gu and Dao, 2023): a causal convolution, then a scan with input-dependent steps."""

    inner_size: int
    state_size: int
    conv_size: int
    dt_rank: int
    norm: Norm | None = None  # of the step, B and C, where there is one


@dataclasses.dataclass(frozen=True, slots=True)
class Mlp:
    """down(act(gate(x)) * up(x)), or down(act(up(x))) where there is no gate."""

    size: int
    act: str = "silu"
    act_bound: float | None = None  # of activations that have one, see kernels/activation


@dataclasses.dataclass(frozen=True, slots=True)
class Moe:
    """A router that sends each token to top_k of num_experts gated MLPs of `size`; shared_size is one that all pass.

    Scores (kernels/moe_routing): softmax or sigmoid over all experts, softmax over the chosen ones, or sparse mixer.
    With several groups only experts of the topk_groups best ones can be chosen.
    """

    num_experts: int
    top_k: int
    size: int
    act: str = "silu"
    score: Literal["softmax", "sigmoid", "softmax_topk", "sparse_mixer"] = "softmax"
    renormalize: bool = True  # the chosen experts' weights sum up to `scale`
    scale: float = 1.0
    num_groups: int = 1
    topk_groups: int = 1
    group_score: Literal["max", "top2"] = "max"
    shared_size: int | None = None
    jitter: float = 0.0  # of the sparse mixer


Mixer = Attention | BlockSparseAttention | Mla | Mamba
FeedForward = Mlp | Moe
Residual = Literal["sequential", "parallel", "post_norm", "branch_norm", "normed", "experts_beside", "gated_cross"]


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """A mixer and a feed-forward layer around one residual stream; models/block.py draws the forms. Either may be absent.

    Between them may stand attention to an encoder's output (`cross`), whose keys lie in the cache beside the mixer's; in
    the form "gated_cross" it stands in the mixer's place.
    """

    mixer: Mixer | None
    mlp: FeedForward | None
    residual: Residual = "sequential"
    residual_scale: float = 1.0  # of what a branch adds to the stream
    cross: Attention | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Skip:
    """Before layer `into`, the stream becomes weight * (what it was before layer `start`) + (1 - weight) * itself."""

    start: int
    into: int
    weight: float


@dataclasses.dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A stack of layers between an embedding and a head."""

    layers: tuple[Layer, ...]
    norm: Norm
    hidden_size: int
    positions: Learned | None = None
    tied: bool = False  # the head is the embedding
    embed_size: int | None = None  # of an embedding that is projected to hidden_size, and back before the head
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    masked_ids: tuple[int, ...] = ()  # entries of the vocabulary that are never generated
    num_segments: int = 0  # entries of a table of token types, which is added to the embedding; 0: there is none
    skips: tuple[Skip, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Classifier:
    """A head that gives num_classes numbers per hidden state: score(act(dense(x))), or score(x) where there is no dense."""

    num_classes: int
    act: Literal["tanh", "relu"] = "tanh"


PoolingKind = Literal["cls", "last", "mean", "all", "step"]


@dataclasses.dataclass(frozen=True, slots=True)
class Pooling:
    """Which hidden states of a prompt count: the first, the last, the mean of all, each one, or those at a token."""

    kind: PoolingKind
    step_tag_id: int | None = None  # that token
    # Tokens, as the vocabulary writes them, that end an instruction: a mean begins behind the last such sequence, or
    # behind the first token where there is none.
    instruction_ends: tuple[tuple[str, ...], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model: its decoder, and what it takes and gives."""

    architecture: str
    decoder: DecoderSpec
    vocab_size: int
    max_model_len: int  # most tokens of prompt and output together
    encoder: DecoderSpec | None = None  # a stack without a head, whose output the decoder's cross attention reads
    max_encoder_len: int = 0  # most tokens that the encoder takes
    has_head: bool = True  # over the vocabulary
    classifier: Classifier | None = None
    pooling: Pooling | None = None  # what the architecture itself pools, if it has an opinion
    tower: TowerSpec | None = None  # what makes rows of embeddings of media
    reads_media: bool = False  # cross attention reads the features of media, which take no token's place
    prefix_bidirectional: bool = False  # tokens of a prompt with media see each other, whichever comes first

    @property
    def most_encoded(self) -> int:
        """Most rows that cross attention reads of a prompt's own encoder, or of one item of media."""
        return self.tower.max_tiles * self.tower.tile_rows if self.reads_media else self.max_encoder_len

    @property
    def encoded_layers(self) -> tuple[int, ...]:
        """Layers that keep nothing but what cross attention reads."""
        layers = enumerate(self.decoder.layers)
        return tuple(index for index, layer in layers if layer.mixer is None and layer.cross is not None)

    @property
    def long_from(self) -> int | None:
        """Sequences with more tokens than this rotate by LongRoPE's long factors; None if there are no such sequences."""
        for layer in self.decoder.layers:
            mixer = layer.mixer.attention if isinstance(layer.mixer, BlockSparseAttention) else layer.mixer
            rope = mixer.rope if isinstance(mixer, Mla) else getattr(mixer, "positions", None)
            scaling = rope.scaling if isinstance(rope, Rope) else None
            if isinstance(scaling, LongRopeScaling) and self.max_model_len > scaling.trained_len:
                return scaling.trained_len
        return None

    @property
    def bidirectional(self) -> bool:
        """Whether tokens see those that follow, so that a prompt has to be computed whole."""
        mixers = [layer.mixer for layer in self.decoder.layers]
        return any(isinstance(mixer, Attention) and not mixer.causal for mixer in mixers)
