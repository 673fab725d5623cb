"""What an adversary may know: the words in which attacks say what they need."""

from __future__ import annotations

import enum


class Knowledge(enum.Enum):
    """What an attack needs; the value says how to get it, for whoever lacks it."""

    LABELS = "the class that the model predicts for each record"
    PROBABILITIES = "the probability vector (or logits) that the model answers for each record"
    TRUE_LABELS = "the true class of each record"
    SOME_MEMBERSHIP = "the membership of some records, from which the attack learns"
    POPULATION = "records known to be non-members, apart from those under audit"
    RECORDS = "the records themselves, as vectors of features"
    QUERIES = "the right to ask the model about altered copies of the records"
    REFERENCES = "reference models trained on known random halves of the pool"
    REFERENCES_IN = "reference models trained on some of the records under audit"
    WORKSHOP = "the means to train models on the answers of the model"
    REFERENCE_WEIGHTS = "the weights of the reference models"
    WEIGHTS = "the weights of the model"
    GLOBAL_MODELS = "the global model of every round of a federation"
    SUMS = "the sum of the clients' updates of every round"
    UPDATES = "every client's own update of every round"
    REFERENCE_FEDERATIONS = "federations like this one, trained on known random halves of the clients' records"
