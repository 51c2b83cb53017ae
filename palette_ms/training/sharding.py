"""An optimizer whose state is spread over the ranks (ZeRO stage 1: Rajbhandari et al. 2020, arXiv 1910.02054).

MindSpore's own `enable_parallel_optimizer` is for its semi-automatic parallel modes; here are plain collectives, which
run on a CPU too.
"""

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from palette_ms import runtime

_PREFIX = "slice."


class ShardedOptimizer(nn.Cell):
    """Each rank updates a slice of every weight, and all gather the slices.

    A weight is flattened, filled up with zeros and cut into as many slices as there are ranks. Every rank runs the same
    graph. It holds the optimizer's state of its slices, and a working copy of them.

    Args:
        weights: Parameters.
        create: the optimizer of a list of Parameters. It must treat every value alone, as Adam does.
        rank, ranks: which of how many processes this one is.

    Inputs: gradients in the order of `weights`, the same on all ranks.
    """

    def __init__(self, weights, create, rank, ranks):
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(weights)
        self.rank, self.ranks = rank, ranks
        self.slices = ParameterTuple([
            Parameter(Tensor(cut(np.zeros(weight.shape, np.float32), rank, ranks)), name=_PREFIX + weight.name)
            for weight in weights])
        self.optimizer = create(self.slices)
        weights = {weight.name: weight for weight in weights}
        self.sliced = {parameter.name: weights[parameter.name.partition(_PREFIX)[2]]
                       for parameter in self.optimizer.get_parameters() if _PREFIX in parameter.name}
        self.gather = ops.AllGather()
        self.map = ops.HyperMap()

    def construct(self, grads):
        mine = ops.partial(_cut, self.rank, self.ranks)
        done = self.map(ops.assign, self.slices, self.map(mine, self.parameters))
        grads = ops.depend(self.map(mine, grads), done)
        done = self.optimizer(grads)
        slices = ops.depend(self.slices, done)
        return self.map(ops.partial(_put_together, self.gather), self.parameters, slices)


def whole(optimizer, parameter):
    """A parameter of a training step as it is without ranks, an array; all ranks must ask for the same one.

    Args:
        optimizer: the step's, a `ShardedOptimizer` or one of MindSpore's.
        parameter: Parameter.
    """
    weight = getattr(optimizer, "sliced", {}).get(parameter.name)
    if weight is None:
        return parameter.asnumpy()
    return runtime.gather(parameter.asnumpy()).reshape(-1)[:weight.size].reshape(weight.shape)


def own(optimizer, parameter, array):
    """What `whole` gave, on any number of ranks, as what the parameter holds on this one."""
    if parameter.name not in getattr(optimizer, "sliced", {}):
        return array
    return cut(array, optimizer.rank, optimizer.ranks)


def whole_name(parameter):
    """The name that a parameter of an optimizer's state has without ranks; None for the working copies."""
    before, found, after = parameter.name.partition(_PREFIX)
    return None if found and not before else before + after


def cut(whole, rank, ranks):
    """The slice of one rank, (⌈values / ranks⌉,), of an array of any shape."""
    count = -(-whole.size // ranks)
    flat = np.zeros(count * ranks, whole.dtype)
    flat[:whole.size] = whole.reshape(-1)
    return flat[rank * count:(rank + 1) * count]


def _cut(rank, ranks, whole):
    count = (whole.size + ranks - 1) // ranks
    flat = whole.reshape((-1,))
    if count * ranks != whole.size:
        flat = ops.concat((flat, ops.zeros((count * ranks - whole.size,), whole.dtype)))
    return flat[rank * count:(rank + 1) * count]


def _put_together(gather, whole, piece):
    return ops.assign(whole, gather(piece)[:whole.size].reshape(whole.shape))
