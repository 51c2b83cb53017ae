"""Gradients and an optimizer's state spread over the ranks (ZeRO stage 2: Rajbhandari et al. 2020, arXiv 1910.02054).

MindSpore's own `enable_parallel_optimizer` is for its semi-automatic parallel modes; here are plain collectives, which
run on a CPU too.
"""

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from palette_ms import runtime
from palette_ms.training.buffers import Buffers

_PREFIX = "slice."


class Scatter(nn.Cell):
    """Means over the ranks, of which each rank is given its slice.

    Inputs: flat buffers whose sizes the ranks divide. Output: their slices.
    """

    def __init__(self, rank, ranks):
        super().__init__()
        self.rank, self.ranks = rank, ranks
        self.on_cpu = runtime.device() == "CPU"  # which has no ReduceScatter
        self.reduce = ops.AllReduce() if self.on_cpu else ops.ReduceScatter()
        self.map = ops.HyperMap()

    def construct(self, buffers):
        return self.map(self.mean, buffers)

    def mean(self, buffer):
        total = self.reduce(buffer)
        return (_cut(self.rank, self.ranks, total) if self.on_cpu else total) / self.ranks


class ShardedOptimizer(nn.Cell):
    """Each rank updates a slice of all weights, and all gather the slices.

    Weights lie in flat buffers (`Buffers`), which are cut into as many slices as there are ranks. Every rank runs the
    same graph. It holds the optimizer's state of its slices, and a working copy of them.

    Args:
        weights: Parameters.
        create: the optimizer of a list of Parameters. It must treat every value alone, as Adam does.
        rank, ranks: which of how many processes this one is.

    Inputs: this rank's slices of the gradients' buffers.
    """

    def __init__(self, weights, create, rank, ranks):
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(weights)
        self.rank, self.ranks = rank, ranks
        self.layout = Buffers(weights, ranks)
        # By the name of a buffer's first weight.
        firsts = [weights[group[0]].name for group in self.layout.groups]
        self.slices = ParameterTuple([Parameter(Tensor(np.zeros(size // ranks, np.float32)), name=_PREFIX + name)
                                      for name, size in zip(firsts, self.layout.sizes)])
        self.optimizer = create(self.slices)
        self.numbers = {name: number for number, name in enumerate(firsts)}
        self.gather = ops.AllGather()
        self.map = ops.HyperMap()

    def construct(self, grads):
        mine = self.map(ops.partial(_cut, self.rank, self.ranks), self.layout.join(self.parameters))
        done = self.map(ops.assign, self.slices, mine)
        done = self.optimizer(ops.depend(grads, done))
        slices = ops.depend(self.slices, done)
        return self.map(ops.assign, self.parameters, self.layout.part(self.map(self.gather, slices)))

    def number(self, parameter):
        """Of the buffer that an optimizer's parameter belongs to, or None."""
        return self.numbers.get(parameter.name.partition(_PREFIX)[2])

    def weights_of(self, number):
        """Their names, by their places."""
        return {i: self.parameters[i].name for i in self.layout.groups[number]}


def names(optimizer, parameter):
    """The names by which a training state has what a parameter of a training step holds: of an optimizer's state one
    for each weight, as without ranks; none of the working copies.

    Args:
        optimizer: the step's, a `ShardedOptimizer` or one of MindSpore's.
        parameter: Parameter.
    """
    if not isinstance(optimizer, ShardedOptimizer) or optimizer.number(parameter) is None:
        return [parameter.name]
    before = parameter.name.partition(_PREFIX)[0]
    return [before + name for name in optimizer.weights_of(optimizer.number(parameter)).values() if before]


def whole(optimizer, parameter):
    """What a parameter of a training step holds, as arrays by their `names`; all ranks must ask for the same one."""
    if not isinstance(optimizer, ShardedOptimizer) or optimizer.number(parameter) is None:
        return {parameter.name: parameter.asnumpy()}
    number = optimizer.number(parameter)
    arrays = optimizer.layout.arrays(number, runtime.gather(parameter.asnumpy()).reshape(-1))
    return dict(zip(names(optimizer, parameter), arrays.values()))


def own(optimizer, parameter, arrays):
    """What a parameter holds on this rank, of what `whole` gave on any number of ranks: arrays by name."""
    found = [arrays[name] for name in names(optimizer, parameter)]
    if not isinstance(optimizer, ShardedOptimizer) or optimizer.number(parameter) is None:
        return found[0]
    number = optimizer.number(parameter)
    buffer = optimizer.layout.array(number, dict(zip(optimizer.layout.groups[number], found)))
    return _cut(optimizer.rank, optimizer.ranks, buffer)


def _cut(rank, ranks, buffer):
    """The slice of one rank, of a flat Tensor or array whose size the ranks divide."""
    count = buffer.size // ranks
    return buffer[rank * count:(rank + 1) * count]
