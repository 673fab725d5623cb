"""A guarantee in words: an upper bound is never rounded down."""

import pytest

from memberscope.defenses.accountant import Guarantee
from memberscope.report.wording import guarantee


@pytest.mark.parametrize(
    ("epsilon", "told"), [(8.0, "8.00"), (7.991, "8.00"), (8.004, "8.01"), (0.1234, "0.124"), (1234.5, "1,240")]
)
def test_the_bound_is_rounded_up(epsilon, told):
    text = guarantee(Guarantee(epsilon, 1e-5, 1.1, 1.0, 0.01, 3920).to_dict())
    assert text.startswith(f"epsilon at most {told} at delta 1e-05, to add or remove one record")
    assert "3,920 steps" in text


def test_without_noise_there_is_none():
    text = guarantee(Guarantee(float("inf"), 1e-5, 0.0, 1.0, 0.01, 10).to_dict())
    assert text.startswith("no guarantee: gradients are clipped and no noise is added")
