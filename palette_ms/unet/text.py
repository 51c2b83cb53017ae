"""How a network is told a text (Imagen: Saharia et al. 2022, arXiv 2205.11487, section 2.1 and appendix D.3.1).

A frozen encoder's tokens come in. Positions of the picture look at them in attention layers of their own, and their
mean is added to the time embedding. Imagen puts the text's keys and values beside the picture's own in one softmax
where there is self-attention, and has layers of its own for the text where there is none. Here they are layers of
their own everywhere: one way for all networks, whatever their self-attention; and a text of ten tokens counts the same
in a large picture as in a small one, whose positions it would otherwise have to outweigh.

Tokens of zeros are padding. A text of zeros alone is none: then a learned token stands alone, which else stands before
the others, so that a position to which the text says nothing can look there.
"""

import numpy as np
from mindspore import Parameter, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import Normal, initializer

from palette_ms.unet.layers import DotProductAttention, GroupNorm, Swish, conv
from palette_ms.unet.plan import heads, text_width


class LayerNorm(nn.Cell):
    """Layer normalisation (Ba et al. 2016, arXiv 1607.06450) over the last axis, in float32.

    Input: x (…, C). Output: as x, float32.
    """

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = Parameter(np.ones(channels, np.float32))
        self.bias = Parameter(np.zeros(channels, np.float32))

    def construct(self, x):
        x = ops.cast(x, mstype.float32)
        x = x - ops.mean(x, -1, True)
        return x * ops.rsqrt(ops.mean(x * x, -1, True) + self.eps) * self.weight + self.bias


class CrossAttention(nn.Cell):
    """Each position of a map looks at the tokens of a text; what it sees is added to the map.

    Args:
        channels: C of the map.
        text_channels: W of the tokens.
        num_heads, num_head_channels, norm_groups: as of `palette_ms.unet.blocks.AttentionBlock`.

    Inputs: x (N, C, H, W); tokens (N, L, W); outside (N, L), True for padding. Output: as x.
    """

    def __init__(self, channels, text_channels, num_heads=1, num_head_channels=None, norm_groups=32):
        super().__init__()
        self.num_heads = heads(channels, num_heads, num_head_channels)
        self.norm = GroupNorm(channels, norm_groups)
        self.q = conv(channels, channels, 1)
        self.norm_text = LayerNorm(text_channels)
        self.kv = nn.Dense(text_channels, 2 * channels)
        self.attend = DotProductAttention()
        self.proj = conv(channels, channels, 1, zero=True)

    def construct(self, x, tokens, outside):
        n, c, h, w = x.shape
        q = self.q(self.norm(x)).reshape((n, self.num_heads, c // self.num_heads, h * w))
        kv = self.kv(self.norm_text(tokens)).reshape((n, -1, 2, self.num_heads, c // self.num_heads))
        kv = kv.transpose((0, 2, 3, 4, 1))
        return x + self.proj(self.attend(q, kv[:, 0], kv[:, 1], outside).reshape((n, c, h, w)))


class TextBlock(nn.Cell):
    """A block of the transformer that learns beside the frozen encoder: self-attention and a perceptron of four times
    the width, each normalised before (GLIDE: Nichol et al. 2021, arXiv 2112.10741, section 4).

    Inputs: x (N, L, W); outside (N, L), True for padding. Output: as x, float32.
    """

    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = LayerNorm(width)
        self.qkv = nn.Dense(width, 3 * width)
        self.attend = DotProductAttention()
        self.proj = nn.Dense(width, width)
        self.norm2 = LayerNorm(width)
        self.dense1 = nn.Dense(width, 4 * width)
        self.dense2 = nn.Dense(4 * width, width)

    def construct(self, x, outside):
        n, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape((n, length, 3, self.num_heads, width // self.num_heads))
        qkv = qkv.transpose((0, 2, 3, 4, 1))
        y = self.attend(qkv[:, 0], qkv[:, 1], qkv[:, 2], outside).reshape((n, width, length)).swapaxes(1, 2)
        x = x + ops.cast(self.proj(y), mstype.float32)
        return x + ops.cast(self.dense2(ops.gelu(self.dense1(self.norm2(x)), "tanh")), mstype.float32)


class TextEmbedding(nn.Cell):
    """What a network makes of a text, once for all of its layers.

    Args:
        config: `ModelConfig` of a network that takes texts.
        time_channels: E, width of the time embedding.

    Input: text (N, L, text_channels), the frozen encoder's tokens; those of zeros are padding.
    Outputs: tokens (N, 1 + L, W), float32, the learned one first; outside (N, 1 + L), True for padding; and what is
        added to the time embedding (N, E).
    """

    def __init__(self, config, time_channels):
        super().__init__()
        width = text_width(config)
        self.null = Parameter(initializer(Normal(1.0), (1, 1, width)))
        self.is_deep = config.text_blocks > 0
        if self.is_deep:
            count = heads(width, config.num_heads, config.num_head_channels)
            self.dense = nn.Dense(config.text_channels, width)
            self.positions = Parameter(initializer(Normal(0.1), (1, config.text_length, width)))
            self.blocks = nn.CellList([TextBlock(width, count) for _ in range(config.text_blocks)])
        self.norm = LayerNorm(width)
        self.dense1 = nn.Dense(width, time_channels)
        self.act = Swish()
        self.dense2 = nn.Dense(time_channels, time_channels)

    def construct(self, text):
        text = ops.cast(text, mstype.float32)
        shown = ops.cast(ops.sum(ops.abs(text), -1) > 0, mstype.float32)
        shown = ops.concat((ops.ones_like(shown[:, :1]), shown), 1)
        outside = shown == 0
        if self.is_deep:
            text = ops.cast(self.dense(text), mstype.float32) + self.positions
        tokens = ops.concat((ops.broadcast_to(self.null, (text.shape[0], 1, text.shape[2])), text), 1)
        if self.is_deep:
            for block in self.blocks:
                tokens = block(tokens, outside)
        share = (shown / ops.sum(shown, 1, keepdim=True)).expand_dims(2)
        mean = ops.sum(self.norm(tokens) * share, 1)
        return tokens, outside, self.dense2(self.act(self.dense1(mean)))
