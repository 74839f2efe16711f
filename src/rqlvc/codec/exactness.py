"""The export check: from the weights alone, no accumulator of the integer networks can reach 2^24."""

from rqlvc.codec.integer import ACTIVATION_LIMIT, COMPANDED_LIMIT, EXACT_LIMIT, IntegerConv
from rqlvc.codec.model import VideoModel
from rqlvc.codec.prior import SHIFT, HyperPrior, HyperSynthesis, LatentPrior
from rqlvc.codec.quality import IntegerQualityTable
from rqlvc.errors import RqlvcError

_UNIT = 2**SHIFT
_ROUNDING = _UNIT // 2  # requantisation adds half a unit before it divides


def _table(table: IntegerQualityTable | None) -> int:
    """Bound of a table's contribution to an accumulator."""
    return 0 if table is None else (int(table.largest_entry()) + 1) * _UNIT


def _conv(conv: IntegerConv | None, input_limit: int) -> int:
    return 0 if conv is None else conv.largest_accumulator(input_limit)


def _hyper_prior(prior: HyperPrior) -> dict[str, int]:
    return {"past": _conv(prior.past, COMPANDED_LIMIT)}


def _hyper_synthesis(synthesis: HyperSynthesis) -> dict[str, int]:
    return {
        "inner": _conv(synthesis.inner, COMPANDED_LIMIT),
        "up": _conv(synthesis.up, ACTIVATION_LIMIT),
        "out": _conv(synthesis.out, ACTIVATION_LIMIT),
    }


def _latent_prior(prior: LatentPrior, side: int) -> dict[str, int]:
    known = side + _table(prior.level) + _conv(prior.past, COMPANDED_LIMIT) + _table(prior.past_level)
    return {
        "known": known,
        "known + context": known + _conv(prior.context, COMPANDED_LIMIT),
        "first": _conv(prior.first, ACTIVATION_LIMIT),
        "first_out": _conv(prior.first_out, ACTIVATION_LIMIT),
        "second": _conv(prior.second, ACTIVATION_LIMIT),
        "second_out": _conv(prior.second_out, ACTIVATION_LIMIT),
    }


def accumulator_bounds(model: VideoModel) -> dict[str, int]:
    """The largest magnitude that each accumulator (sums over branches included) can take, by name."""
    motion_side = _conv(model.motion_side, COMPANDED_LIMIT)
    groups = {
        "intra.hyper_prior": _hyper_prior(model.intra.hyper_prior),
        "intra.hyper_synthesis": _hyper_synthesis(model.intra.hyper_synthesis),
        "intra.prior": _latent_prior(model.intra.prior, _conv(model.intra.hyper_synthesis.out, ACTIVATION_LIMIT)),
        "motion.prior": _latent_prior(model.motion.prior, 0),
        "inter.hyper_prior": _hyper_prior(model.inter.hyper_prior),
        "inter.hyper_synthesis": _hyper_synthesis(model.inter.hyper_synthesis),
        "inter.prior": _latent_prior(
            model.inter.prior, _conv(model.inter.hyper_synthesis.out, ACTIVATION_LIMIT) + motion_side
        ),
    }
    return {f"{group}.{name}": bound + _ROUNDING for group, bounds in groups.items() for name, bound in bounds.items()}


def check_exactness(model: VideoModel) -> None:
    """Raises :class:`RqlvcError` if an accumulator might not be exact in float32."""
    for name, bound in accumulator_bounds(model).items():
        if bound >= EXACT_LIMIT:
            raise RqlvcError(f"{name} may reach {bound}, past 2^24: such a model is not decodable everywhere.")
