"""What an audit gives back in Python: text, a notebook page, a table, a folder."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest

import memberscope
from memberscope import Audit, MemberscopeError


@pytest.fixture(scope="module")
def audit() -> Audit:
    rng = np.random.default_rng(0)
    label, member = rng.integers(0, 3, 400), rng.random(400) < 0.5
    logits = rng.normal(size=(400, 3))
    logits[np.arange(400), label] += 1 + 2 * member
    return memberscope.score(logits=logits, labels=label, member=member, attacks=("loss", "gap"))


def test_text_answers_and_lists_the_attacks(audit: Audit) -> None:
    text = repr(audit)
    assert text.startswith("Of 10,000 members")
    assert "loss" in text
    assert "gap" in text


def test_a_notebook_shows_answer_table_and_plot(audit: Audit) -> None:
    page = audit._repr_html_()
    assert page.startswith("<p>Of 10,000 members")
    assert page.count("<tr>") == 3
    picture = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert picture is not None
    assert base64.b64decode(picture[1]).startswith(b"\x89PNG")
    assert 'alt="ROC' in page


def test_table_has_a_row_an_attack(audit: Audit) -> None:
    frame = audit.to_frame()
    assert list(frame["attack"]) == [r.name for r in audit.results]
    assert np.allclose(frame["attack_roc_auc"], [r.evaluation.auc.value for r in audit.results if r.evaluation])


def test_scores_are_those_of_the_attacks_that_ran(audit: Audit) -> None:
    assert set(audit.scores) == {"loss", "gap"}
    assert all(scores.shape == (400,) and scores.dtype == np.float64 for scores in audit.scores.values())


def test_saving_twice_into_one_folder_is_refused(audit: Audit, tmp_path: Path) -> None:
    folder = audit.save(tmp_path / "run")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(MemberscopeError, match="not empty"):
        audit.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == before
