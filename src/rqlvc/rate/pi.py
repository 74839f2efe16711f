"""``pi``: proportional-integral feedback on ln lambda (Xu et al., arXiv 2604.20104)."""

from rqlvc.rate.allocation import BitBudget
from rqlvc.rate.initial import initial_model
from rqlvc.rate.models import LOG_LAMBDA_SPAN, LogarithmicModel, log_bits
from rqlvc.rate.protocol import QUALITY_MAX, Decision, FrameInfo, FrameResult, QualityRange

PROPORTIONAL = 0.9
INTEGRAL = 0.05
"""Stated by the authors, who leave the derivative term at 0."""
INTEGRAL_LIMIT = 2.0
STEP_LIMIT = 1.0
"""Of the summed error, and of one step in ln lambda (a factor e of lambda). The authors' limits are not public."""

QUALITY_PER_LOG_LAMBDA = QUALITY_MAX / LOG_LAMBDA_SPAN


class ProportionalIntegral:
    """After each frame, ln lambda moves against the log error of its rate: -(0.9 * e + 0.05 * sum of e).

    The steps move the intercept of a logarithmic model of fixed slope, so that changes of the target itself (the
    weights of a miniGOP) are fed forward and the loop sees only what the model got wrong.
    """

    def __init__(self, budget: BitBudget, pixels: int, limits: QualityRange) -> None:
        self.budget = budget
        self.limits = limits
        self._models = {intra: initial_model(intra, pixels) for intra in (False, True)}
        self._sums = {False: 0.0, True: 0.0}

    def decide(self, info: FrameInfo) -> Decision:
        target = self.budget.target(info)
        model = self._models[info.intra]
        return Decision(self.limits.clip(model.quality(target)), target, model.alpha, model.beta)

    def update(self, result: FrameResult) -> None:
        self.budget.spend(result)
        intra = result.info.intra
        model = self._models[intra]
        # The rate expected at the level used is the target, unless the level was clipped: then nothing winds up.
        error = log_bits(result.bits) - (result.quality - model.beta) / model.alpha
        self._sums[intra] = min(max(self._sums[intra] + error, -INTEGRAL_LIMIT), INTEGRAL_LIMIT)
        step = -(PROPORTIONAL * error + INTEGRAL * self._sums[intra])
        step = min(max(step, -STEP_LIMIT), STEP_LIMIT)
        self._models[intra] = LogarithmicModel(model.alpha, model.beta + step * QUALITY_PER_LOG_LAMBDA)

    def set_rates(self, bitrate: float, framerate: float) -> None:
        self.budget.set_rates(bitrate, framerate)
