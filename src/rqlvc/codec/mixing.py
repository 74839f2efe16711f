"""Probabilities mixed from several contexts: what motion and coefficients code their decisions with.

Each context that a decision falls into has a probability of its own, which follows what was coded. Their logarithms of
odds are added up with weights that learn which contexts to believe (logistic mixing, as in the PAQ family of
compressors); a weight is the sum of those of several sets, each chosen by something else about the decision. Integers
and tables only, so every machine decodes the same.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rqlvc.codec.binary import ONE, PRICE, BinaryCoder, code, mode
from rqlvc.compiled import inner_loop

INPUTS = 6
"""Contexts that a decision falls into."""
_ODDS_UNIT = 256
_ODDS_LIMIT = 2047  # +-8 in units of 1/256
_PROBABILITY_SHIFT = 4
_WEIGHT_SHIFT = 16  # weights are in units of 1/65536
_LEARNING_SHIFT = 17  # with the units above, a rate of 0.002
FIRST_WEIGHT = int(0.3 * 2**_WEIGHT_SHIFT)
_WEIGHT_LIMIT = 16 * 2**_WEIGHT_SHIFT
"""Far beyond what is ever learnt, so that no sum overflows."""
SLOWEST = 1 / 160
"""A context's n-th decision moves it by 1 / (n + 1.5) of the way, and by this at least."""


def _tables() -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Log-odds by probability, probability by log-odds, and rate of adaptation (1/65536) by decisions seen."""
    probability = (np.arange(ONE >> _PROBABILITY_SHIFT) + 0.5) * 2**_PROBABILITY_SHIFT / ONE
    odds = np.floor(_ODDS_UNIT * np.log(probability / (1 - probability)) + 0.5).clip(-_ODDS_LIMIT, _ODDS_LIMIT)
    x = np.arange(-_ODDS_LIMIT, _ODDS_LIMIT + 1) / _ODDS_UNIT
    inverse = np.floor(ONE / (1 + np.exp(-x)) + 0.5)
    rates = np.maximum(1 / (np.arange(round(1 / SLOWEST)) + 1.5), SLOWEST)
    return odds.astype(np.int32), inverse.astype(np.int32), np.floor(rates * ONE + 0.5).astype(np.int32)


_ODDS, _PROBABILITIES, _RATES = _tables()


class Mixer(NamedTuple):
    """Contexts and weights; both adapt in place."""

    contexts: npt.NDArray[np.int32]
    """(contexts, 2): probability of a one in 1/65536, and decisions seen."""
    weights: npt.NDArray[np.int32]
    """(sets, INPUTS): which sets a decision takes is its own business."""

    def copy(self) -> "Mixer":
        return Mixer(self.contexts.copy(), self.weights.copy())

    def sound(self) -> bool:
        """Whether all is within the range that :func:`learn` keeps it in."""
        known, seen = self.contexts.T
        return bool(
            (known > 0).all()
            and (known < ONE).all()
            and (seen >= 0).all()
            and (seen < len(_RATES)).all()
            and (np.abs(self.weights) <= _WEIGHT_LIMIT).all()
        )

    def rested(self, trusted: int) -> "Mixer":
        """As a group of pictures starts with, ready to learn: contexts have seen ``trusted`` decisions at most."""
        contexts = self.contexts.copy()
        contexts[:, 1] = np.minimum(contexts[:, 1], trusted)
        return Mixer(contexts, self.weights.copy())


def fresh_mixer(contexts: int, sets: int, further: int = 0) -> Mixer:
    """One that knows nothing. Each decision takes one of the first ``sets`` of weights; the ``further`` ones add to
    these."""
    known = np.zeros((contexts, 2), np.int32)
    known[:, 0] = ONE // 2
    weights = np.zeros((sets + further, INPUTS), np.int32)
    weights[:sets] = FIRST_WEIGHT
    return Mixer(known, weights)


class Decision(NamedTuple):
    """Where a decision falls: work space that is filled anew for each."""

    places: npt.NDArray[np.int64]
    """(INPUTS,): its contexts."""
    odds: npt.NDArray[np.int64]
    """(INPUTS,): what :func:`predict` found there."""
    sets: npt.NDArray[np.int64]
    """The sets of weights that it takes."""


def blank_decision(sets: int) -> Decision:
    """Work space for decisions that take ``sets`` sets of weights each."""
    return Decision(np.zeros(INPUTS, np.int64), np.zeros(INPUTS, np.int64), np.zeros(sets, np.int64))


class MixedCoder(NamedTuple):
    """A coder with what tells it the probabilities."""

    coder: BinaryCoder
    mixer: Mixer
    decision: Decision
    """The one in hand."""


@inner_loop
def predict(mixer: Any, decision: Any) -> int:
    """The probability of a one, in 1/65536."""
    total = 0
    for k in range(INPUTS):
        odds = _ODDS[mixer.contexts[decision.places[k], 0] >> _PROBABILITY_SHIFT]
        decision.odds[k] = odds
        weight = np.int64(0)
        for i in range(len(decision.sets)):
            weight += mixer.weights[decision.sets[i], k]
        total += weight * odds
    return _PROBABILITIES[min(max(total >> _WEIGHT_SHIFT, -_ODDS_LIMIT), _ODDS_LIMIT) + _ODDS_LIMIT]


@inner_loop
def learn(mixer: Any, decision: Any, probability: int, one: bool) -> None:
    """Let contexts and weights follow a decision whose :func:`predict` said ``probability``."""
    goal = ONE if one else 0
    error = goal - probability
    for k in range(INPUTS):
        step = (decision.odds[k] * error + (1 << (_LEARNING_SHIFT - 1))) >> _LEARNING_SHIFT
        for i in range(len(decision.sets)):
            weight = mixer.weights[decision.sets[i], k] + step
            mixer.weights[decision.sets[i], k] = min(max(weight, -_WEIGHT_LIMIT), _WEIGHT_LIMIT)
        place = decision.places[k]
        seen = mixer.contexts[place, 1]
        known = mixer.contexts[place, 0]
        known += ((goal - known) * np.int64(_RATES[seen])) >> 16
        mixer.contexts[place, 0] = min(max(known, 1), ONE - 1)
        mixer.contexts[place, 1] = min(seen + 1, len(_RATES) - 1)


@inner_loop
def decide(mixed: Any, one: bool) -> bool:
    """Code the decision in hand as ``one``, or decode it; returns it. ``mixed`` (:class:`MixedCoder`) learns from it,
    unless only the price is asked for."""
    probability = predict(mixed.mixer, mixed.decision)
    one = code(mixed.coder, probability, one)
    if mode(mixed.coder) != PRICE:
        learn(mixed.mixer, mixed.decision, probability, one)
    return one
