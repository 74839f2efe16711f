"""``tip14``: R-lambda control (Li et al., TIP 2014) recast on the R-Q logarithm by the RQ-LVC paper (Eqs. 11 to 14)."""

import math

from rqlvc.rate.allocation import BitBudget
from rqlvc.rate.initial import initial_model
from rqlvc.rate.models import LogarithmicModel, log_bits
from rqlvc.rate.protocol import Decision, FrameInfo, FrameResult, QualityRange

LEARNING_RATE = 0.01
"""Of alpha and of beta; stated in the paper."""


class Tip14:
    """Least mean squares on (alpha, beta): one step after each frame.

    ``unit`` is the number of bits in which rates are counted: 1 for bits, a frame's luma pixels for bits per pixel. It
    changes the controller: a step corrects a share 0.01 * (ln(R)^2 + 1) of the error, which is near 1 in bits (and
    overshoots above ln R = 14) and a few hundredths in bits per pixel. Inter frames share one model; intra frames have
    another.
    """

    def __init__(self, budget: BitBudget, pixels: int, limits: QualityRange, *, unit: float) -> None:
        self.budget = budget
        self.limits = limits
        self.log_unit = math.log(unit)
        self._models = {intra: self._rebased(initial_model(intra, pixels), self.log_unit) for intra in (False, True)}

    @staticmethod
    def _rebased(model: LogarithmicModel, log_unit: float) -> LogarithmicModel:
        """A model of bits as one of bits / unit."""
        return LogarithmicModel(model.alpha, model.beta + model.alpha * log_unit)

    def decide(self, info: FrameInfo) -> Decision:
        target = self.budget.target(info)
        model = self._rebased(self._models[info.intra], -self.log_unit)
        return Decision(self.limits.clip(model.quality(target)), target, model.alpha, model.beta)

    def update(self, result: FrameResult) -> None:
        self.budget.spend(result)
        model = self._models[result.info.intra]
        x = log_bits(result.bits) - self.log_unit
        error = result.quality - (model.alpha * x + model.beta)
        self._models[result.info.intra] = LogarithmicModel(
            model.alpha + LEARNING_RATE * error * x, model.beta + LEARNING_RATE * error
        )

    def set_rates(self, bitrate: float, framerate: float) -> None:
        self.budget.set_rates(bitrate, framerate)
