"""The export check: from the weights alone, no accumulator of the integer networks can reach 2^24."""

from rqlvc.codec.integer import ACTIVATION_LIMIT, COMPANDED_LIMIT, EXACT_LIMIT, IntegerConv
from rqlvc.codec.model import VideoModel
from rqlvc.codec.prior import SHIFT, LatentCodec, Step
from rqlvc.codec.quality import IntegerQualityTable
from rqlvc.errors import RqlvcError

_UNIT = 2**SHIFT
_ROUNDING = _UNIT // 2  # requantisation adds half a unit before it divides


def _table(table: IntegerQualityTable | None) -> int:
    """Bound of a table's contribution to an accumulator."""
    return 0 if table is None else (int(table.largest_entry()) + 1) * _UNIT


def _conv(conv: IntegerConv | None, input_limit: int) -> int:
    return 0 if conv is None else conv.largest_accumulator(input_limit)


def _latent_codec(codec: LatentCodec, side: int) -> dict[str, int]:
    """``side``: bound of what is added to the prior's sum from outside."""
    hyper, prior = codec.hyper_synthesis, codec.prior
    known = side + _conv(hyper.out, ACTIVATION_LIMIT) + _table(prior.level)
    known += _conv(prior.past, COMPANDED_LIMIT) + _table(prior.past_level)
    bounds = {
        "hyper_prior.past": _conv(codec.hyper_prior.past, COMPANDED_LIMIT),
        "hyper_synthesis.inner": _conv(hyper.inner, COMPANDED_LIMIT),
        "hyper_synthesis.up": _conv(hyper.up, ACTIVATION_LIMIT),
    }
    for name, mean in (("across", prior.across), ("beside", prior.beside)):
        if mean is not None:
            bounds[f"prior.{name}"] = mean.COARSER * _conv(mean, mean.LIMIT)
    for index, step in enumerate(prior.steps):
        assert isinstance(step, Step)
        bounds[f"prior.{index}.known"] = known + _conv(step.context, COMPANDED_LIMIT)
        bounds[f"prior.{index}.inner"] = _conv(step.inner, ACTIVATION_LIMIT)
    for name, heads in (("low", prior.low_heads), ("rest", prior.rest_heads)):
        for index, head in enumerate(heads):
            assert isinstance(head, IntegerConv)
            bounds[f"prior.{name}.{index}"] = _conv(head, ACTIVATION_LIMIT)
    return bounds


def accumulator_bounds(model: VideoModel) -> dict[str, int]:
    """The largest magnitude that each accumulator (sums over branches included) can take, by name."""
    groups = {
        "intra": _latent_codec(model.intra.latents, 0),
        "inter": _latent_codec(model.inter.latents, _conv(model.motion_side, COMPANDED_LIMIT)),
    }
    return {f"{group}.{name}": bound + _ROUNDING for group, bounds in groups.items() for name, bound in bounds.items()}


def check_exactness(model: VideoModel) -> None:
    """Raises :class:`RqlvcError` if an accumulator might not be exact in float32, or a weight is not finite."""
    for name, value in model.named_parameters():
        if not value.isfinite().all():
            raise RqlvcError(f"{name} holds numbers that are not finite: the training failed, go back to a checkpoint.")
    for name, bound in accumulator_bounds(model).items():
        if bound >= EXACT_LIMIT:
            raise RqlvcError(f"{name} may reach {bound}, past 2^24: such a model is not decodable everywhere.")
