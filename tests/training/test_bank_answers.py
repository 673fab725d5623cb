"""Answers left on disk index like the array that they stand for, and read no more than asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memberscope.evidence import from_logits
from memberscope.training.bank_answers import BankAnswers

K, A, N, C = 4, 3, 11, 5
WHOLE = np.random.default_rng(0).normal(size=(K, A, N, C)).astype(np.float32)
INDEX = np.array([9, 2, 2, 0, 7, 5])


def sources(models):
    return [lambda answers=answers: answers for answers in models]


one = st.one_of(st.integers(0, 1), st.slices(2))
rows = st.one_of(
    st.integers(0, 5),
    st.slices(6),
    st.lists(st.integers(0, 5), min_size=1).map(np.array),
    st.just(np.arange(6) % 2 == 0),
)


@pytest.mark.parametrize("index", [None, INDEX], ids=["all records", "some records"])
@given(query=one, row=rows, column=one, depth=st.integers(1, 3), k=st.integers(0, K - 1))
@settings(deadline=None, max_examples=150)
def test_a_models_answers_index_like_their_array(index, query, row, column, depth, k):
    models = WHOLE[:, :, :6] if index is None else WHOLE
    whole = models if index is None else WHOLE[:, :, index]
    key = (query, row, column)[:depth]
    found = BankAnswers(sources(models), index)[k][key if depth > 1 else query]
    np.testing.assert_array_equal(found, whole[k][key])


@given(first=rows, second=st.lists(st.integers(0, 2), min_size=1).map(np.array))
@settings(deadline=None)
def test_taking_of_what_was_taken(first, second):
    if np.ndim(np.arange(6)[first]) == 0 or len(np.arange(6)[first]) < 3:
        first = np.array([5, 1, 3])
    answers = BankAnswers(sources(WHOLE), INDEX).take(first)
    again = answers[:, :, second]
    assert isinstance(again, BankAnswers)
    assert again.shape == (K, A, len(second), C)
    np.testing.assert_array_equal(np.asarray(again), WHOLE[:, :, INDEX][:, :, first][:, :, second])


def test_shape_iteration_slices_and_other_keys():
    answers = BankAnswers(sources(WHOLE), INDEX)
    assert (answers.shape, answers.dtype, answers.ndim, len(answers)) == ((K, A, 6, C), np.float32, 4, K)
    np.testing.assert_array_equal(np.stack([np.asarray(a) for a in answers]), WHOLE[:, :, INDEX])
    np.testing.assert_array_equal(np.asarray(answers[:2]), WHOLE[:2, :, INDEX])
    np.testing.assert_array_equal(answers[1, 0], WHOLE[1, 0, INDEX])
    np.testing.assert_array_equal(answers[:, 1], WHOLE[:, 1, INDEX])
    np.testing.assert_array_equal(answers[2][0, ..., 1], WHOLE[2, 0, INDEX, 1])
    np.testing.assert_array_equal(answers[2][np.array([2, 0])], WHOLE[2, [2, 0]][:, INDEX])
    assert np.asarray(answers, np.float64).dtype == np.float64
    assert repr(answers) == "BankAnswers(4 x 3 x 6 x 5 float32, on disk)"


class Watched(np.ndarray):
    """An array that notes how many values each read of it gives."""

    read: list[int]

    def __getitem__(self, key):
        found = super().__getitem__(key)
        if not np.shares_memory(found, self):
            self.read.append(found.size)
        return found


def test_a_block_of_rows_reads_that_block_only():
    watched = WHOLE[0].view(Watched)
    watched.read = Watched.read = []
    BankAnswers([lambda: watched], INDEX)[0][:, 1:3]
    assert watched.read == [A * 2 * C]


def test_evidence_takes_them_as_they_are_and_scores_alike():
    rng = np.random.default_rng(1)
    membership = rng.random((K, N)) < 0.5
    labels = rng.integers(0, C, N)
    lazy, plain = (
        from_logits(WHOLE[0], labels, reference_logits=given, reference_membership=membership)
        for given in (BankAnswers(sources(WHOLE)), WHOLE)
    )
    for evidence in (lazy, lazy.take(INDEX)):
        expected = plain.take(INDEX) if evidence is not lazy else plain
        np.testing.assert_array_equal(evidence.references.phi().values, expected.references.phi().values)
    assert isinstance(lazy.take(INDEX).reference_logits, BankAnswers)
