"""The two lines in a real deployment: SuperLink and SuperNodes as processes of their own, on loopback."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")

from sklearn.datasets import load_digits
from superlink import deployment

from memberscope.federated.transcript import Transcript

APP = Path(__file__).parent / "apps" / "message_api"
IMPORT = "from flwr.serverapp.strategy import FedAvg\n"
STRATEGY = 'strategy = FedAvg(fraction_train=context.run_config["fraction-train"])\n'


def with_two_lines(app: Path, transcript: Path) -> None:
    """Add to the app what the documentation says."""
    server = app / "digits_app" / "server_app.py"
    text = server.read_text()
    assert text.count(IMPORT) == text.count(STRATEGY) == 1
    text = text.replace(IMPORT, IMPORT + "from memberscope.federated import tap\n")
    text = text.replace(STRATEGY, STRATEGY + f'    strategy = tap.watch(strategy, "{transcript}")\n')
    server.write_text(text)
    client = app / "digits_app" / "client_app.py"  # so that the partition of each node is known
    text = client.read_text()
    text = text.replace('"train_loss": train_loss', '"partition-id": context.node_config["partition-id"]', 1)
    client.write_text(text)


@pytest.mark.slow
def test_two_lines_tape_a_superlink_with_two_supernodes(tmp_path: Path) -> None:
    app, data, out = tmp_path / "app", tmp_path / "data", tmp_path / "transcript"
    shutil.copytree(APP, app)
    data.mkdir()
    x, y = load_digits(return_X_y=True)
    np.savez(data / "digits.npz", x=x[:200].astype(np.uint8), y=y[:200])
    with_two_lines(app, out)
    with deployment(tmp_path, nodes=2) as environment:
        done = subprocess.run(
            ["flwr", "run", str(app), "lo", "--stream",
             "--run-config", f'num-server-rounds=2 local-epochs=1 data-dir="{data}"'],
            env=environment, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    t = Transcript.open(out)
    assert t.problems == ()
    assert t.strategy == "FedAvg"
    assert t.rounds == [1, 2]
    assert t.clients == [0, 1]
    assert t.clients_reported
    assert len({t.node(0), t.node(1)}) == 2
    for r in t.rounds:
        assert t.clients_of(r) == [0, 1]
        assert [t.num_examples(r, k) for k in (0, 1)] == [50, 50]
        mean = np.mean([t.received(r, k)["fc1.weight"] for k in (0, 1)], axis=0)
        after = t.aggregate(r)
        assert after is not None
        np.testing.assert_allclose(after["fc1.weight"], mean, atol=1e-6)
