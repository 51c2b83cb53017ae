"""Many tensors in a few flat buffers, for what is done to each value alike."""

import numpy as np
from mindspore import mint, nn, ops

from palette_ms import runtime

# Values of a buffer, unless a single weight has more. One is reduced over the ranks and let go while others are still
# made.
_VALUES = 2**23
# Weights of a buffer. MindSpore compiles calls within each other to a depth of 1000, and its `split` takes three for
# each size that it is given.
_WEIGHTS = 200

_each = ops.Map()


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
        self.shapes = tuple(weight.shape for weight in weights)
        self.counts = tuple(weight.size for weight in weights)
        self.joins = runtime.wants_few_kernels()
        self.groups = [[0]]
        for i, count in enumerate(self.counts[1:], 1):
            last = self.groups[-1]
            if self.joins and len(last) < _WEIGHTS and count + sum(self.counts[j] for j in last) <= _VALUES:
                last.append(i)
            else:
                self.groups.append([i])
        self.flat = self.joins or ranks > 1
        filled = [sum(self.counts[i] for i in group) for group in self.groups]
        self.sizes = [-(-count // ranks) * ranks for count in filled]
        self.fills = tuple(size - count for size, count in zip(self.sizes, filled))
        # What graphs map functions over. Each round of a loop would be a call within the one before: too many for the
        # weights of a large network.
        self.begins = tuple(group[0] for group in self.groups)
        self.ends = tuple(group[-1] + 1 for group in self.groups)
        self.parts = tuple(tuple(self.counts[i] for i in group) + (fill,) * (fill > 0)
                           for group, fill in zip(self.groups, self.fills))
        self.shapes_of = tuple(tuple(self.shapes[i] for i in group) for group in self.groups)

    def join(self, tensors):
        """A tensor of each weight, in their order → the buffers."""
        if not self.flat:
            return tensors
        flat = _each(_flattened, tensors)
        if not self.joins:  # each weight by itself
            return _each(_filled_up, flat, self.fills)
        return _each(ops.partial(_joined, flat), self.begins, self.ends, self.fills)

    def part(self, buffers):
        """The reverse of `join`."""
        if not self.flat:
            return buffers
        if not self.joins:
            return _each(_cut_down, buffers, self.counts, self.shapes)
        tensors = ()
        for parts in _each(_parted, buffers, self.parts, self.shapes_of):
            tensors = tensors + parts
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


def _flattened(tensor):
    return tensor.reshape((-1,))


def _filled_up(tensor, fill):
    return ops.concat((tensor, ops.zeros((fill,), tensor.dtype))) if fill else tensor


def _joined(flat, begin, end, fill):
    parts = flat[begin:end]
    if fill:  # at once, rather than by a copy of the whole
        parts = parts + (ops.zeros((fill,), parts[0].dtype),)
    return ops.concat(parts) if len(parts) > 1 else parts[0]


def _parted(buffer, counts, shapes):
    return _each(_shaped, mint.split(buffer, counts)[:len(shapes)], shapes)


def _shaped(part, shape):
    return part.reshape(shape)


def _cut_down(buffer, count, shape):
    return buffer[:count].reshape(shape)
