"""One compiled training step: forward, backward, clipping, Adam, EMA."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.nn.learning_rate_schedule import LearningRateSchedule

from palette_ms import runtime
from palette_ms.training.buffers import Buffers
from palette_ms.training.sharding import Scatter, ShardedOptimizer

# Loss scale in float16: doubled after so many good steps, halved after a step that overflowed.
_FIRST_SCALE = 2.0**16
_MAX_SCALE = 2.0**24
_GROWTH_INTERVAL = 2000

_descend = ops.ApplyGradientDescent()


class Trapezoid(LearningRateSchedule):
    """A learning rate that rises linearly, stays, and falls linearly to 0: as good as a cosine, and a run can be made
    longer until the fall begins (Hägele et al. 2024, arXiv 2405.18392).

    Args:
        learning_rate: its height.
        warmup: steps of the rise; the first step has 1/warmup of the height.
        steps: after which it is 0.
        decay: of these, the last so many fall; the last step has 1/decay of the height. 0: none do.
    """

    def __init__(self, learning_rate, warmup, steps=0, decay=0):
        super().__init__()
        self.learning_rate = learning_rate
        self.warmup = max(1, warmup)
        self.steps = steps
        self.decay = decay

    def construct(self, global_step):
        done = ops.cast(global_step, mstype.float32)
        share = ops.minimum((done + 1) / self.warmup, Tensor(1.0, mstype.float32))
        if self.decay:
            share = ops.minimum(share, ops.maximum((self.steps - done) / self.decay, Tensor(0.0, mstype.float32)))
        return self.learning_rate * share


class TrainStep(nn.TrainOneStepCell):
    """Forward, backward, clipping by global norm, Adam and the moving average of the weights, in one graph.

    From the backward pass to the optimizer gradients lie in `Buffers`, as does the moving average: see `take_average`.
    With a `ShardedOptimizer` each rank has its slices of the gradients alone.

    Args:
        loss: a cell whose output is the scalar loss, such as `DiffusionLoss`.
        optimizer: over the weights of the denoiser.
        ema_weights: Parameters in the order of the optimizer's: their moving average, updated in place with
            decay min(ema_decay, (1 + t)/(10 + t)) at step t, so that the first values do not linger; where it lies in
            flat buffers, by `give_average`.
        ema_decay: in [0, 1).
        max_grad_norm: gradients are scaled down to this global L2 norm; 0: never.
        accumulation: calls of the cell that make one step; the gradients are averaged.
        loss_scaling: multiply the loss by a scale that halves on overflow and doubles after 2000 good steps.
        ranks: processes that train together, each with a batch of its own; the gradients are averaged over them.

    Inputs: those of `loss`.
    Output: (loss, gradient norm before clipping, whether the gradients were finite), scalars. The norm is that of
    the accumulated gradients, of what has been gathered so far where the call does not complete a step. Gradients
    that are not finite are dropped: neither weights nor average nor step count change.
    """

    def __init__(self, loss, optimizer, ema_weights, ema_decay=0.9999, max_grad_norm=1.0, accumulation=1,
                 loss_scaling=False, ranks=1):
        super().__init__(loss, optimizer)
        self.ema_weights = ParameterTuple(ema_weights)
        self.ema_decay = ema_decay
        self.max_grad_norm = max_grad_norm
        self.accumulation = accumulation
        self.loss_scaling = loss_scaling
        self.loss_scale = Parameter(Tensor(_FIRST_SCALE if loss_scaling else 1.0, mstype.float32), name="loss_scale")
        self.good_steps = Parameter(Tensor(0, mstype.int32), name="good_steps")
        self.updates = Parameter(Tensor(0, mstype.int32), name="updates")
        self.calls = Parameter(Tensor(0, mstype.int32), name="calls")
        self.layout = Buffers(self.weights)
        self.averages = self.ema_weights
        if self.layout.flat:
            self.averages = ParameterTuple([Parameter(Tensor(np.zeros(size, np.float32)), name=f"average{i}")
                                            for i, size in enumerate(self.layout.sizes)])
            self.take_average()
        self.of_grads, summed = self.layout, self.averages if self.layout.flat else self.weights
        self.shards = isinstance(optimizer, ShardedOptimizer)
        if self.shards:
            self.of_grads, summed = optimizer.layout, optimizer.slices
            self.scatter, self.sum = Scatter(optimizer.rank, optimizer.ranks), ops.AllReduce()
        self.gathered = summed.clone("gathered", init="zeros") if accumulation > 1 else ()
        self.value_and_grad = ms.value_and_grad(self.scaled_loss, None, self.weights)
        self.map = ops.HyperMap()
        self.on_cpu = runtime.device() == "CPU"
        if ranks > 1 and not self.shards:
            self.grad_reducer = nn.DistributedGradReducer(summed, mean=True, degree=ranks)

    def take_average(self):
        """Begin from what `ema_weights` hold, once they were set."""
        if self.layout.flat:
            arrays = [weight.asnumpy() for weight in self.ema_weights]
            for i, average in enumerate(self.averages):
                average.set_data(Tensor(self.layout.array(i, arrays)))

    def give_average(self):
        """Set `ema_weights`, before they are looked at."""
        if self.layout.flat:
            for i, average in enumerate(self.averages):
                for place, array in self.layout.arrays(i, average.asnumpy()).items():
                    ops.assign(self.ema_weights[place], Tensor(array))  # set_data is not seen by compiled graphs

    def scaled_loss(self, *inputs):
        return self.network(*inputs) * (self.loss_scale / self.accumulation)

    def construct(self, *inputs):
        loss, grads = self.value_and_grad(*inputs)
        scale = self.loss_scale.value()
        grads = self.of_grads.join(grads)
        if self.shards:
            grads = self.scatter(grads)
        loss = loss * (self.accumulation / scale)
        if self.accumulation == 1:
            norm, finite = self.step(grads, scale)
            return loss, norm, finite
        grads = self.map(_add, self.gathered, grads)
        calls = (self.calls + 1) % self.accumulation
        loss = ops.depend(loss, ops.assign(self.calls, calls))
        norm, finite = ops.zeros((), mstype.float32), ops.ones((), mstype.bool_)
        if calls == 0:
            norm, finite = self.step(grads, scale)
            loss = ops.depend(loss, self.map(_zero, self.gathered))
        else:
            loss = ops.depend(loss, self.map(ops.assign, self.gathered, grads))
        return loss, norm, finite

    def step(self, grads, scale):
        if not self.shards:
            grads = self.grad_reducer(grads)
        # One norm serves clipping and the check for overflow: it is finite just where all gradients are.
        squares = ops.addn(self.map(ops.partial(_sum_of_squares, self.on_cpu), grads))
        if self.shards:
            squares = self.sum(squares.reshape((1,))).reshape(())
        norm = ops.sqrt(squares) / scale
        finite = ops.isfinite(norm)
        # Before the branch: on Ascend, what is read in it and assigned after it does not compile.
        factor = 1 / scale
        if self.max_grad_norm > 0:
            factor = factor * ops.minimum(self.max_grad_norm / (norm + 1e-6), ops.ones_like(norm))
        if finite:
            grads = self.map(ops.partial(_times, factor), grads)
            done = self.optimizer(grads if self.shards else self.of_grads.part(grads))
            done = ops.depend(self.update_ema(), done)
            norm = ops.depend(norm, done)
        if self.loss_scaling:
            norm = ops.depend(norm, self.update_scale(finite, scale))
        return norm, finite

    def update_ema(self):
        updates = ops.cast(ops.assign_add(self.updates, 1), mstype.float32)
        share = ops.maximum(9 / (9 + updates), Tensor(1 - self.ema_decay, mstype.float32))
        return self.map(ops.partial(_average, share), self.averages, self.layout.join(self.weights))

    def update_scale(self, finite, scale):
        good = ops.select(finite, self.good_steps + 1, ops.zeros_like(self.good_steps))
        grown = good >= _GROWTH_INTERVAL
        bigger = ops.minimum(scale * 2, Tensor(_MAX_SCALE, mstype.float32))
        smaller = ops.maximum(scale / 2, Tensor(1.0, mstype.float32))
        new_scale = ops.select(finite, ops.select(grown, bigger, scale), smaller)
        done = ops.assign(self.loss_scale, new_scale)
        return ops.depend(done, ops.assign(self.good_steps, ops.select(grown, ops.zeros_like(good), good)))


def _add(total, grad):
    return total + grad


def _zero(total):
    return ops.assign(total, ops.zeros_like(total))


def _sum_of_squares(on_cpu, grad):
    grad = ops.cast(grad, mstype.float32)
    if on_cpu:
        # Row by row as products of matrices: four times faster there than the squares and their sum. An NPU's matrix
        # unit would round them to a shorter type. (ops.L2Loss is as fast, but 4 % off over 20 M values.)
        count = grad.shape[0]
        return ops.sum(ops.bmm(grad.reshape((count, 1, -1)), grad.reshape((count, -1, 1))))
    return ops.sum(grad * grad)


def _times(factor, grad):
    return grad * factor


def _average(share, average, weight):
    """average + share · (weight − average), as an optimizer descends: in place."""
    return _descend(average, share, average - weight)
