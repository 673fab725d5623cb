"""Defenses of the answers alone: rounding, the largest classes, the label. They cost nothing and change no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from memberscope.defenses.base import Asked, Card, OutputDefense


class RoundedAnswers(OutputDefense):
    """Probabilities with a few digits."""

    name = "round_answers"
    title = "answer probabilities rounded to this many digits"
    settings = ("round_answers",)
    card = Card(
        "Shokri et al. 2017 (S&P), section VIII-A",
        "round(p, digits)",
        "none",
        "records that were far apart in the last digits tie; those that a label gives away stay exposed",
    )

    def answer(self, probabilities: NDArray[np.float64], asked: Asked) -> NDArray[np.float64]:
        """Rounded."""
        del asked
        rounded: NDArray[np.float64] = np.round(probabilities, self.recipe.round_answers)
        return rounded


class TopAnswers(OutputDefense):
    """The probabilities of the likeliest classes; the adversary spreads what is left over the others evenly."""

    name = "top_answers"
    title = "answer the probabilities of this many classes, the likeliest"
    settings = ("top_answers",)
    card = Card(
        "Shokri et al. 2017 (S&P), section VIII-A",
        "the largest probabilities; the audit spreads what is left over the other classes",
        "none",
        "the largest probabilities are what attacks live on",
    )

    def answer(self, probabilities: NDArray[np.float64], asked: Asked) -> NDArray[np.float64]:
        """The largest as they are, the others equal."""
        del asked
        classes, top = probabilities.shape[1], self.recipe.top_answers
        if top >= classes:
            return probabilities
        order = np.argsort(-probabilities, axis=1, kind="stable")
        kept = np.take_along_axis(probabilities, order[:, :top], axis=1)
        rest = np.maximum(1 - kept.sum(axis=1, keepdims=True), 0) / (classes - top)
        # Rounding may have left the others more than the last one kept: the order is known, and stays.
        answers: NDArray[np.float64] = np.minimum(np.broadcast_to(rest, probabilities.shape), kept[:, -1:]).copy()
        np.put_along_axis(answers, order[:, :top], kept, axis=1)
        return answers


class LabelOnly(OutputDefense):
    """The predicted class."""

    name = "label_only"
    title = "answer the predicted class and no probability"
    settings = ("label_only",)
    labels_only = True
    clashes: ClassVar[Mapping[str, str]] = {
        "round_answers": "a class has no probability to round",
        "top_answers": "a class alone is answered",
        "memguard": "a class has no probability to perturb",
    }
    card = Card(
        "Choquette-Choo et al. 2021 (ICML)",
        "argmax p",
        "none",
        "attacks that ask about altered copies of a record come close to those that see probabilities (same paper): "
        "name noise-robustness, augmentation-robustness and boundary-distance too",
    )

    def answer(self, probabilities: NDArray[np.float64], asked: Asked) -> NDArray[np.float64]:
        """One for the likeliest class, nothing for the others."""
        del asked
        answers: NDArray[np.float64] = np.eye(probabilities.shape[1])[probabilities.argmax(axis=1)]
        return answers
