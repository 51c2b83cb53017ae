"""Many tensors in a few flat buffers, for what is done to each value alike."""

import numpy as np
from mindspore import mint, nn, ops

from palette_ms import runtime

# Values of a buffer, unless a single weight has more. One is reduced over the ranks and let go while others are still
# made.
_VALUES = 2**23


class Buffers(nn.Cell):
    """Where the device wants few kernels, weights after each other in flat buffers; else each weight by itself.

    Args:
        weights: Parameters.
        ranks: for more than one, buffers are flat in any case, and filled up with zeros to a multiple of their number.

    Attributes:
        groups: for each buffer, its weights' places among all.
        sizes: values of each buffer, with what fills it up.
    """

    def __init__(self, weights, ranks=1):
        super().__init__()
        self.shapes = [weight.shape for weight in weights]
        self.counts = [weight.size for weight in weights]
        self.joins = runtime.wants_few_kernels()
        self.groups = [[0]]
        for i, count in enumerate(self.counts[1:], 1):
            if self.joins and count + sum(self.counts[j] for j in self.groups[-1]) <= _VALUES:
                self.groups[-1].append(i)
            else:
                self.groups.append([i])
        self.flat = self.joins or ranks > 1
        filled = [sum(self.counts[i] for i in group) for group in self.groups]
        self.sizes = [-(-count // ranks) * ranks for count in filled]
        self.fills = [size - count for size, count in zip(self.sizes, filled)]

    def join(self, tensors):
        """A tensor of each weight, in their order → the buffers."""
        if not self.flat:
            return tensors
        buffers = ()
        for group, fill in zip(self.groups, self.fills):
            parts = [tensors[i].reshape((-1,)) for i in group]
            if fill:
                parts = parts + [ops.zeros((fill,), parts[0].dtype)]
            buffers = buffers + (ops.concat(parts) if len(parts) > 1 else parts[0],)
        return buffers

    def part(self, buffers):
        """The reverse of `join`."""
        if not self.flat:
            return buffers
        tensors = ()
        for group, fill, buffer in zip(self.groups, self.fills, buffers):
            counts = [self.counts[i] for i in group] + ([fill] if fill else [])
            parts = mint.split(buffer, counts) if self.joins else _cut_up(buffer, counts)
            for i, part in zip(group, parts):
                tensors = tensors + (part.reshape(self.shapes[i]),)
        return tensors

    def arrays(self, number, buffer):
        """What `part` makes of the buffer of that number, as arrays by the weights' places."""
        group = self.groups[number]
        parts = np.split(buffer, np.cumsum([self.counts[i] for i in group]))
        return {i: part.reshape(self.shapes[i]) for i, part in zip(group, parts)}

    def array(self, number, arrays):
        """The buffer of that number, of the arrays of all weights, or of just its own by their places."""
        parts = [np.reshape(arrays[i], -1) for i in self.groups[number]]
        return np.concatenate([*parts, np.zeros(self.fills[number], parts[0].dtype)])


def _cut_up(buffer, counts):
    parts, begin = [], 0
    for count in counts:
        parts.append(buffer[begin:begin + count])
        begin += count
    return parts
