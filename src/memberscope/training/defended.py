"""What a user of a model gets to see where a defense acts on its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memberscope.defenses.base import Asked, OutputDefense
from memberscope.defenses.registry import outputs

if TYPE_CHECKING:
    from memberscope.training.trained_model import TrainedModel

_LEAST = np.finfo(np.float32).smallest_subnormal


def defended(
    model: TrainedModel,
    defenses: Sequence[OutputDefense],
    logits: NDArray[np.float32],
    records: NDArray[Any],
    ask: Callable[[NDArray[Any]], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Give the logarithms of the probabilities that are answered, in place of the logits.

    A probability of 0 stands as the smallest positive float32: what is rounded to 0 ties with others, and no attack can
    undo that.

    Parameters
    ----------
    model
        Whose answers these are; what its defenses draw once is kept in its `drawn`.
    defenses
        In the order in which they act.
    logits
        float32 [n, classes].
    records
        The n records, as they came.
    ask
        From records to the model's logits.

    Returns
    -------
    float32 [n, classes].
    """
    asked = Asked(
        records=records,
        ask=lambda x: probabilities_of(ask(x)),
        seed=model.seed or 0,
        guard=model.guard,
        drawn=model.drawn,
        random=lambda n, rng: _random(model, n, rng),
    )
    answers = probabilities_of(logits)
    for defense in defenses:
        answers = defense.answer(answers, asked)
    return np.log(np.maximum(answers, _LEAST)).astype(np.float32)


def taught_guards(
    model: TrainedModel, x: NDArray[Any], member: NDArray[np.bool_], validation: NDArray[np.bool_] | None
) -> dict[str, NDArray[Any]]:
    """What the defenses of a model's answers learn after its training, by name."""
    guard: dict[str, NDArray[Any]] = {}
    for defense in outputs(model.recipe):
        if defense.needs_validation and validation is not None:
            members, others = (probabilities_of(model.query(x[rows], raw=True)[0]) for rows in (member, validation))
            guard |= defense.learn(members, others, model.seed or 0)
    return guard


def probabilities_of(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Softmax in float64."""
    z = logits.astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    np.exp(z, out=z)
    return np.asarray(z / z.sum(axis=-1, keepdims=True))


def _random(model: TrainedModel, n: int, rng: np.random.Generator) -> NDArray[Any]:
    """Random inputs: uniform pixels, or features normal around the mean of the training records."""
    if len(model.input_shape) == 3:
        return rng.integers(0, 256, size=(n, *model.input_shape), dtype=np.uint8)
    rows = model.mean + model.std * rng.standard_normal((n, *model.input_shape), np.float32)
    return rows.astype(np.float32)
