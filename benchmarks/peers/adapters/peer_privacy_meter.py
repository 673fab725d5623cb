"""privacy-meter 1.0.1 (privacytrustlab/ml_privacy_meter; its version 2, with RMIA, is not on PyPI).

Its models and data sets are played by stored answers: the input of a record is its number. Its metrics decide at 100
false-positive rates from 1e-5 to 1; a record's score is the share of rates at which it is called a member. The
reference metric takes its models as OUT: for each record it is given the answers of the OUT models of the bank. Its
model module imports TensorFlow and Opacus, which stored answers do not need: empty modules stand in for them.
"""

# ruff: noqa: E402 (the stand-ins come before the import that asks for them)

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from contest import Case, main, stand_in

stand_in("tensorflow", "opacus")

from privacy_meter.dataset import Dataset
from privacy_meter.hypothesis_test import linear_itp_threshold_func
from privacy_meter.information_source import InformationSource
from privacy_meter.information_source_signal import ModelLoss
from privacy_meter.metric import PopulationMetric, ReferenceMetric
from privacy_meter.model import Model


class Stored(Model):
    """Losses [N] that were computed before."""

    def __init__(self, loss: np.ndarray) -> None:
        self._loss = loss

    def get_loss(self, batch_samples, batch_labels, per_point=True):
        """Of the records of these numbers."""
        return self._loss[batch_samples]

    def get_logits(self, batch_samples):
        """Not asked for by these metrics."""
        raise NotImplementedError

    def get_grad(self, batch_samples, batch_labels):
        """Not asked for by these metrics."""
        raise NotImplementedError

    def get_intermediate_outputs(self, layers, batch_samples, forward_pass=True):
        """Not asked for by these metrics."""
        raise NotImplementedError


def _records(case: Case) -> Dataset:
    inside, outside = np.flatnonzero(case.member), np.flatnonzero(~case.member)
    parts = {name: {"x": rows, "y": case.labels[rows]} for name, rows in (("train", inside), ("test", outside))}
    return Dataset(parts, "x", "y", preprocessed=True)


def _loss(p: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(p, np.finfo(np.float64).tiny))


def _scores(case: Case, metric) -> np.ndarray:
    metric.prepare_metric()
    (result,) = metric.run_metric()
    called = np.asarray(result.predicted_labels).mean(axis=0)
    scores = np.empty(len(case.labels))
    scores[case.member], scores[~case.member] = np.split(called, [int(case.member.sum())])
    return scores


def _reference(case: Case) -> np.ndarray:
    records = _records(case)
    # Row by row the OUT models of a record: as many for each in a balanced bank.
    order = np.argsort(case.reference_membership, axis=0, kind="stable")
    count = int((~case.reference_membership).sum(axis=0).min())
    outside = np.take_along_axis(_loss(case.reference_probabilities), order, axis=0)[:count]
    own = _loss(case.own_probability)
    metric = ReferenceMetric(
        InformationSource([Stored(own)], [records]),
        InformationSource([Stored(row) for row in outside], [records]),
        [ModelLoss()],
        linear_itp_threshold_func,
    )
    return _scores(case, metric)


def _population(case: Case) -> np.ndarray:
    """Its population is scored like the other records too."""
    records, chosen = _records(case), case.population_rows
    population = Dataset({"train": {"x": chosen, "y": case.labels[chosen]}}, "x", "y", preprocessed=True)
    model = Stored(_loss(case.own_probability))
    metric = PopulationMetric(
        InformationSource([model], [records]),
        InformationSource([model], [population]),
        [ModelLoss()],
        linear_itp_threshold_func,
    )
    return _scores(case, metric)


if __name__ == "__main__":
    main({"population": _population, "reference": _reference}, version("privacy-meter"))
