"""T5's encoder (Raffel et al. 2020, arXiv 1910.10683): the first version, and v1.1 with a gated feed-forward layer."""

import json
import math
from dataclasses import dataclass, fields

import numpy as np
from mindspore import Parameter, Tensor, constexpr, nn, ops
from mindspore import dtype as mstype

from palette_ms.data.files import expand
from palette_ms.errors import UserError

_KINDS = ("relu", "gated-gelu")


@dataclass(frozen=True)
class T5Config:
    """An encoder's sizes, by the names of Hugging Face's `config.json`, where further keys stand beside them.

    Attributes:
        vocab_size: kinds of tokens.
        d_model: width.
        d_kv: width of a head.
        d_ff: width of the feed-forward layer.
        num_layers, num_heads: of the encoder.
        relative_attention_num_buckets, relative_attention_max_distance: see `bucket`.
        layer_norm_epsilon: added to the mean square.
        feed_forward_proj: "relu", of the first version, or "gated-gelu", of v1.1 (Shazeer 2020, arXiv 2002.05202).

    Raises:
        ValueError: another feed-forward layer, a size below 1, an epsilon that is no number above 0.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"

    def __post_init__(self):
        if self.feed_forward_proj not in _KINDS:
            raise ValueError(f"feed_forward_proj {self.feed_forward_proj!r} is none of {', '.join(_KINDS)}")
        for field in fields(self):
            if field.type in (int, "int") and (not isinstance(getattr(self, field.name), int)
                                               or getattr(self, field.name) < 1):
                raise ValueError(f"{field.name} must be a whole number above 0")
        if not isinstance(self.layer_norm_epsilon, (int, float)) or not 0 < self.layer_norm_epsilon < 1:
            raise ValueError("layer_norm_epsilon must be a number above 0 and below 1")

    @classmethod
    def read(cls, path):
        """Of a `config.json`. Raises UserError: it cannot be read, or is of another kind of network."""
        path = expand(path)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            known = {field.name for field in fields(cls)}
            return cls(**{name: value for name, value in raw.items() if name in known})
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is not the config.json of a T5: {error}") from None


class RootMeanSquareNorm(nn.Cell):
    """x / √(mean x² + ε) · weight over the last axis, in float32: without mean and bias (section 2.1)."""

    def __init__(self, channels, eps):
        super().__init__()
        self.eps = eps
        self.weight = Parameter(np.ones(channels, np.float32))

    def construct(self, x):
        return x * ops.rsqrt(ops.mean(x * x, -1, True) + self.eps) * self.weight


class SelfAttention(nn.Cell):
    """softmax(q kᵀ + bias) v, head by head; T5 does not divide by √d, its initial weights do.

    Inputs: x (N, L, C), bias (N, heads, L, L). Output: (N, L, C).
    """

    def __init__(self, config):
        super().__init__()
        self.heads, inner = config.num_heads, config.num_heads * config.d_kv
        self.q, self.k, self.v = (nn.Dense(config.d_model, inner, has_bias=False) for _ in range(3))
        self.o = nn.Dense(inner, config.d_model, has_bias=False)

    def construct(self, x, bias):
        n, length, _ = x.shape
        q, k, v = (layer(x).reshape((n, length, self.heads, -1)).swapaxes(1, 2) for layer in (self.q, self.k, self.v))
        weights = ops.softmax(ops.cast(ops.matmul(q, k.swapaxes(2, 3)), mstype.float32) + bias, -1)
        return self.o(ops.matmul(ops.cast(weights, v.dtype), v).swapaxes(1, 2).reshape((n, length, -1)))


class FeedForward(nn.Cell):
    """wo(relu(wi x)), or wo(gelu(wi_0 x) · wi_1 x). `wo` stays float32: in float16 what goes in and comes out of it
    overflows in the published weights."""

    def __init__(self, config):
        super().__init__()
        self.gated = config.feed_forward_proj == "gated-gelu"
        self.wi = nn.Dense(config.d_model, config.d_ff, has_bias=False)
        self.gate = nn.Dense(config.d_model, config.d_ff, has_bias=False) if self.gated else nn.Identity()
        self.wo = nn.Dense(config.d_ff, config.d_model, has_bias=False)

    def construct(self, x):
        h = ops.cast(self.wi(x), mstype.float32)
        if self.gated:
            h = ops.gelu(ops.cast(self.gate(x), mstype.float32), "tanh") * h
        else:
            h = ops.relu(h)
        return self.wo(h)


class Block(nn.Cell):
    """Attention and feed-forward layer, each normalised before and added to what came in. That sum is float32."""

    def __init__(self, config):
        super().__init__()
        self.norm1 = RootMeanSquareNorm(config.d_model, config.layer_norm_epsilon)
        self.attention = SelfAttention(config)
        self.norm2 = RootMeanSquareNorm(config.d_model, config.layer_norm_epsilon)
        self.feed_forward = FeedForward(config)

    def construct(self, x, bias):
        x = x + ops.cast(self.attention(self.norm1(x), bias), mstype.float32)
        return x + self.feed_forward(self.norm2(x))


class T5Encoder(nn.Cell):
    """The encoder.

    Args:
        config: `T5Config`.

    Inputs: ids (N, L), int32, tokens; mask (N, L), 1 for tokens and 0 for padding, which none attends to.
    Output: (N, L, d_model), float32; what stands at padding means nothing.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.buckets, self.distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
        self.embedding = Parameter(np.zeros((config.vocab_size, config.d_model), np.float32))
        self.position_bias = Parameter(np.zeros((self.buckets, config.num_heads), np.float32))
        self.blocks = nn.CellList([Block(config) for _ in range(config.num_layers)])
        self.norm = RootMeanSquareNorm(config.d_model, config.layer_norm_epsilon)

    def use_precision(self, dtype):
        """Compute attention and the feed-forward layers' first half in `dtype`, a MindSpore type; the rest stays
        float32."""
        for block in self.blocks:
            layers = (block.attention.q, block.attention.k, block.attention.v, block.attention.o, block.feed_forward.wi)
            for layer in (*layers, *([block.feed_forward.gate] if block.feed_forward.gated else [])):
                layer.to_float(dtype)
        return self

    def construct(self, ids, mask):
        length = ids.shape[1]
        bias = ops.gather(self.position_bias, _buckets(length, self.buckets, self.distance), 0)  # (L, L, heads)
        bias = bias.transpose((2, 0, 1)).expand_dims(0)
        bias = bias - 1e9 * (1 - ops.cast(mask, mstype.float32).reshape((-1, 1, 1, length)))
        x = ops.gather(self.embedding, ids, 0)
        for block in self.blocks:
            x = block(x, bias)
        return self.norm(x)


def bucket(distance, count, longest):
    """Which of the learned biases a distance between two tokens has (section 2.1): half of the buckets are for those
    behind; of each half the first half is for one distance each, the rest grows logarithmically up to the longest.

    Args:
        distance: position of the key minus that of the query, an array of whole numbers.
        count: buckets.
        longest: distances from it on have the last bucket.

    Returns: int32, in [0, count).
    """
    half = count // 2
    exact, away = half // 2, np.abs(distance)
    with np.errstate(divide="ignore"):
        # float32, as the reference computes: at some distances the logarithm falls on a whole number.
        far = np.log(away.astype(np.float32) / np.float32(exact)) / np.float32(math.log(longest / exact))
    far = exact + np.minimum(np.where(away > 0, far * np.float32(half - exact), 0), half - 1 - exact).astype(np.int32)
    return np.int32(np.where(away < exact, away, far) + half * (distance > 0))


@constexpr
def _buckets(length, count, longest):
    positions = np.arange(length)
    return Tensor(bucket(positions[None] - positions[:, None], count, longest))
