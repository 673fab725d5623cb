"""mia 0.1.2 (spring-epfl/mia, 2018): a classifier for each class, taught with the answers of shadow models.

It takes any classifier whose `predict` gives a probability, as those of Keras do; here scikit-learn's gradient boosting
on histograms, in that dress, and the answers of all reference models.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from mia.estimators import AttackModelBundle
from sklearn.ensemble import HistGradientBoostingClassifier

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from contest import Case, main, softmax


class _Boosted(HistGradientBoostingClassifier):
    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.predict_proba(X)[:, 1]


def _shadow(case: Case) -> np.ndarray:
    models, classes = len(case.reference_membership), case.logits.shape[1]
    answers = softmax(case.reference_logits).astype(np.float32).reshape(-1, classes)
    taught = np.column_stack([answers, np.tile(case.labels, models)])
    attack = AttackModelBundle(lambda: _Boosted(random_state=0), classes, class_one_hot_coded=False)
    attack.fit(taught, case.reference_membership.ravel().astype(np.float32))
    return attack.predict_proba(np.column_stack([case.probabilities, case.labels]))[:, 1]


if __name__ == "__main__":
    main({"shadow classifier by class": _shadow}, version("mia"))
