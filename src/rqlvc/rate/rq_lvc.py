"""``rq-lvc``, its ablations ``rqnet-only`` and ``no-rqnet``, and ``four-pass`` (arXiv 2505.02720, section 2)."""

from rqlvc.errors import RqlvcError
from rqlvc.rate.allocation import BitBudget
from rqlvc.rate.estimation import PointSums, estimate
from rqlvc.rate.initial import initial_model
from rqlvc.rate.protocol import Decision, FrameInfo, FrameResult, QualityRange, RatePoint


class RqLvc:
    """Least squares over the frame's own points and the frames coded so far in the group of pictures (Eq. 6).

    ``network`` and ``history`` switch the two sums of Eq. (6). With points from real encodes, ``network`` alone is the
    paper's four-pass bound. Where neither sum has a point yet, the last group's model, and before that the initial one,
    stands in; intra frames have a model of their own.
    """

    def __init__(
        self, budget: BitBudget, pixels: int, limits: QualityRange, *, network: bool = True, history: bool = True
    ) -> None:
        self.budget = budget
        self.limits = limits
        self.network = network
        self.history = history
        self._models = {intra: initial_model(intra, pixels) for intra in (False, True)}
        self._coded = PointSums()

    def decide(self, info: FrameInfo) -> Decision:
        """Raises :class:`RqlvcError` when the frame's points are needed and missing."""
        if self.network and not info.points:
            raise RqlvcError(
                "this controller needs R-Q points of every frame: load RQNet, or choose no-rqnet or adaptive."
            )
        target = self.budget.target(info)
        if info.intra:
            self._coded = PointSums()
        points = self._coded + (PointSums.of(info.points) if self.network else PointSums())
        model = estimate(points, self._models[info.intra])
        self._models[info.intra] = model
        return Decision(self.limits.clip(model.quality(target)), target, model.alpha, model.beta)

    def update(self, result: FrameResult) -> None:
        self.budget.spend(result)
        point = RatePoint(result.quality, result.bits)
        if result.info.intra:
            self._models[True] = self._models[True].through(point)
        elif self.history:
            self._coded += PointSums.of([point])

    def set_rates(self, bitrate: float, framerate: float) -> None:
        self.budget.set_rates(bitrate, framerate)
