"""Agreement with what TensorFlow Privacy's own functions answered on the same logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memberscope.signals import Signals

pytestmark = pytest.mark.shared


def test_signals_agree_with_tensorflow_privacy(shared_dir: Path) -> None:
    inputs = np.load(shared_dir / "reference" / "inputs_balanced.npz")
    published = np.load(shared_dir / "reference" / "signals.npz")
    member = inputs["keep"][0]
    signals = Signals(inputs["logits"][0, :, 0], inputs["y"])
    assert member.sum() == 1000
    pairs = {
        "tfp_stat_conf_with_prob": signals.true_probability,
        "tfp_stat_xe": signals.loss,
        "tfp_stat_logit": signals.phi,
        "tfp_stat_hinge": signals.hinge,
        "tfp_entropy_plain": signals.entropy,
    }
    for name, ours in pairs.items():
        np.testing.assert_allclose(ours, published[name], rtol=0, atol=4e-15, err_msg=name)
    for group, name in ((member, "train"), (~member, "test")):
        np.testing.assert_allclose(signals.modified_entropy[group], published[f"tfp_mentr_{name}"], rtol=0, atol=4e-15)
        np.testing.assert_allclose(signals.loss[group], published[f"tfp_loss_{name}"], rtol=0, atol=4e-15)


def test_published_logits_times_ten_do_not_tie(shared_dir: Path) -> None:
    inputs = np.load(shared_dir / "reference" / "inputs_balanced.npz")
    signals = Signals(10 * inputs["logits"][0, :, 0], inputs["y"])
    assert np.mean(signals.true_probability == 1) > 0.2
    for name in ("true_log_probability", "phi", "hinge", "log_max_odds", "entropy", "modified_entropy"):
        assert len(np.unique(getattr(signals, name))) == 2000, name
