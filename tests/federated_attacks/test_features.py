"""Features of the rounds: kept round by round, gone on with, refused where they are another federation's."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from memberscope.errors import EvidenceError, ModelError, RunFolderError
from memberscope.federated import features
from memberscope.federated.features import FeatureWriter, Reply, extract, read_features
from memberscope.federated.prober import Prober, named_arrays, staying
from memberscope.rounds import Rounds
from memberscope.signals import logit_scaled_confidence


@pytest.fixture(scope="module")
def tiny(tiny_federation: Any) -> Any:
    return tiny_federation(rounds=3, n_clients=3, per_client=40, population=40, epochs=1)


def test_features_are_what_the_models_say(tiny: Any, tiny_prober: Any, tmp_path: Any) -> None:
    extract(tiny, FeatureWriter(tiny_prober(tiny), tmp_path, {}))
    found, logits = read_features(tmp_path, tiny.y)
    assert found.rounds.tolist() == [1, 2, 3]
    assert (found.n_parts, len(found.clients), len(found.reply_sent)) == (2, 3, 9)
    prober = tiny_prober(tiny)
    prober.take_on(tiny.replies[2][1])
    np.testing.assert_allclose(found.reply_phi[4], prober.phi(), rtol=1e-6)
    prober.take_on(tiny.models[4])
    np.testing.assert_allclose(logits, prober.logits(), rtol=1e-5)
    np.testing.assert_allclose(found.next_phi[2], logit_scaled_confidence(logits, tiny.y), rtol=1e-5)
    np.testing.assert_array_equal(found.next_phi[0], found.sent_phi[1])
    # The loss along an update falls by the product with the gradient, to first order.
    net = prober.module
    prober.take_on(tiny.models[2])
    loss = torch.nn.functional.cross_entropy(net(torch.from_numpy(tiny.x[:1])), torch.from_numpy(tiny.y[:1]))
    gradient = torch.autograd.grad(loss, list(net.parameters()))
    update = [tiny.models[2][n] - tiny.replies[2][0][n] for n, _ in net.named_parameters()]
    product = sum(float((g * torch.from_numpy(u)).sum()) for g, u in zip(gradient, update, strict=True))
    one = Rounds(found, np.array([0]), np.array([0]))
    assert one.own("dot")[1, 0] == pytest.approx(product, rel=1e-3)
    total = [tiny.models[2][n] - tiny.sum(2)[n] for n, _ in net.named_parameters()]
    expected = sum(float((g * torch.from_numpy(u)).sum()) for g, u in zip(gradient, total, strict=True))
    assert one.sum_dot()[1, 0] == pytest.approx(expected, rel=1e-3)


def test_an_extraction_goes_on_where_it_was_killed(tiny: Any, tiny_prober: Any, tmp_path: Any) -> None:
    writer = FeatureWriter(tiny_prober(tiny), tmp_path, {"of": 1})
    extract(tiny, writer)
    whole, _ = read_features(tmp_path, tiny.y)
    (tmp_path / "round_00002.npz").unlink()
    before = (tmp_path / "round_00001.npz").stat().st_mtime_ns
    extract(tiny, FeatureWriter(tiny_prober(tiny), tmp_path, {"of": 1}))
    again, _ = read_features(tmp_path, tiny.y)
    np.testing.assert_array_equal(again.reply_along, whole.reply_along)
    assert (tmp_path / "round_00001.npz").stat().st_mtime_ns == before
    with pytest.raises(RunFolderError, match="other records or of another federation"):
        FeatureWriter(tiny_prober(tiny), tmp_path, {"of": 2})
    (tmp_path / "round_00003.npz").unlink()
    with pytest.raises(RunFolderError, match="not the last round"):
        read_features(tmp_path, tiny.y)
    (tmp_path / "round_00002.npz").write_bytes(b"PK")
    with pytest.raises(RunFolderError, match="round_00002"):
        read_features(tmp_path, tiny.y)


def test_rounds_apart_know_what_came_out_of_them(tiny: Any, tiny_prober: Any, tmp_path: Any) -> None:
    extract(tiny, FeatureWriter(tiny_prober(tiny), tmp_path, {}), rounds=[1, 3])
    found, _ = read_features(tmp_path, tiny.y)
    prober = tiny_prober(tiny)
    prober.take_on(tiny.models[2])
    np.testing.assert_allclose(found.next_phi[0], prober.phi(), rtol=1e-6)


def test_a_reply_that_is_no_model_is_left_out(tiny: Any, tiny_prober: Any, tmp_path: Any) -> None:
    writer = FeatureWriter(tiny_prober(tiny), tmp_path, {})
    broken = {name: np.full_like(value, np.nan) for name, value in tiny.models[1].items()}
    writer.round(1, tiny.models[1], [Reply(0, broken), Reply(1, tiny.replies[1][1])], outcome=tiny.models[2])
    found, _ = read_features(tmp_path, tiny.y)
    assert found.clients.tolist() == [1]
    assert "client 0" in writer.left_out[0]
    wrong = {name: value[:1] for name, value in tiny.models[1].items()}
    with pytest.raises(ModelError, match="shape"):
        writer.round(2, wrong, [], outcome=tiny.models[2])


def test_a_reply_of_another_shape_is_left_out_unless_all_are(tiny: Any, tiny_prober: Any, tmp_path: Any) -> None:
    writer = FeatureWriter(tiny_prober(tiny), tmp_path, {})
    odd = {name: value[:1] for name, value in tiny.replies[1][1].items()}
    replies = [Reply(0, tiny.replies[1][0]), Reply(1, odd), Reply(2, tiny.replies[1][2])]
    writer.round(1, tiny.models[1], replies, outcome=tiny.models[2])
    found, _ = read_features(tmp_path, tiny.y)
    assert found.reply_client is not None
    assert found.reply_client.tolist() == [0, 2]
    assert writer.left_out[0].startswith("round 1, client 1: array '0.weight' came back with shape [1, ")
    with pytest.raises(ModelError, match="came back with shape"):
        writer.round(2, tiny.models[1], [Reply(1, odd)], outcome=tiny.models[2])


def test_clients_that_are_sent_other_models_are_held_against_those(tiny: Any, tiny_prober: Any, tmp_path: Any) -> None:
    """As under a server that isolates a client: its update points along the gradient at what it was sent."""
    writer = FeatureWriter(tiny_prober(tiny), tmp_path, {})
    apart = tiny.replies[1][2]
    writer.round(
        1,
        tiny.models[1],
        [Reply(0, tiny.replies[1][0]), Reply(2, tiny.replies[2][2], sent=apart)],
        outcome=tiny.models[2],
    )
    found, _ = read_features(tmp_path, tiny.y)
    assert found.sent_round.tolist() == [0, 0]
    assert found.reply_sent.tolist() == [0, 1]
    prober = tiny_prober(tiny)
    prober.take_on(apart)
    np.testing.assert_allclose(found.sent_phi[1], prober.phi(), rtol=1e-6)


def test_names_decide_and_a_common_prefix_does_not_matter(tiny: Any, tiny_prober: Any) -> None:
    prober, model = tiny_prober(tiny), tiny.models[2]
    wrapped = {f"model.{name}": model[name] for name in reversed(list(model))}
    prober.take_on(model)
    expected = prober.logits()
    prober.take_on(tiny.models[1])
    prober.take_on(wrapped)
    np.testing.assert_array_equal(prober.logits(), expected)
    inner = named_arrays(model, [f"net.{name}" for name in model])
    assert all(inner[f"net.{name}"] is array for name, array in model.items())
    with pytest.raises(ModelError, match=r"'0.weight', '0.bias', '2.weight' are not among those recorded"):
        prober.take_on(dict(zip(("a", "b", "c", "d"), model.values(), strict=True)))


def test_what_does_not_travel_is_kept_where_all_clients_have_the_same() -> None:
    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    whole = list(made(0).state_dict())
    assert staying(made(0), made(0), whole) == frozenset()
    assert staying(made(0), made(0), whole[2:]) == {"0.weight", "0.bias"}
    with pytest.raises(ModelError, match="draws them anew"):
        staying(made(0), made(1), whole[2:])
    with pytest.raises(ModelError, match="no server knows the whole model"):
        staying(made(0), made(0), [name for name in whole if "running" not in name])
    x, y = np.ones((5, 3), np.float32), np.zeros(5, np.int64)
    kept = frozenset({"0.weight", "0.bias"})
    prober = Prober.of_inputs(made(0), x, y, kept=kept)
    part = {name: a.numpy() for name, a in made(7).state_dict().items() if name not in kept}
    prober.take_on(part)
    assert torch.equal(prober.module[0].weight, made(0)[0].weight)
    assert torch.equal(prober.module[2].weight, made(7)[2].weight)
    update = prober.update(part, {name: a + 1 for name, a in part.items()})
    assert float(update["0.weight"].abs().sum()) == 0
    assert torch.equal(update["2.bias"], -torch.ones(2))


def test_a_federation_that_diverged_is_read_up_to_there(tiny: Any, tiny_prober: Any, tmp_path: Any) -> None:
    broken = replace(tiny, models=dict(tiny.models))
    broken.models[3] = {name: np.full_like(a, np.nan) for name, a in tiny.models[3].items()}
    writer = FeatureWriter(tiny_prober(tiny), tmp_path / "broken", {})
    extract(broken, writer)
    features, _ = read_features(tmp_path / "broken", tiny.y)
    assert features.rounds.tolist() == [1, 2]
    assert writer.left_out == ["round 3 and all later: the global model holds NaN or infinities"]
    broken.models[1] = broken.models[3]
    with pytest.raises(ModelError, match="round 1, the first on record, holds NaN"):
        extract(broken, FeatureWriter(tiny_prober(tiny), tmp_path / "none", {}))


def test_a_client_s_recording_shows_global_models_alone(tiny: Any, tiny_prober: Any, tmp_path: Any) -> None:
    seen = replace(tiny, observer=2, view="client 2")
    extract(seen, FeatureWriter(tiny_prober(tiny), tmp_path, {}))
    features, _ = read_features(tmp_path, tiny.y)
    assert features.reply_client is None
    assert features.sum_along is None


@pytest.mark.parametrize("sent_apart", [False, True])
def test_a_round_of_many_clients_takes_the_memory_of_a_few(
    sent_apart: bool, tiny: Any, tiny_prober: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Updates are read one by one, asked about in groups and forgotten; the figures are those of one large group."""
    sent = tiny.models[1]
    start = tiny.models[2] if sent_apart else None

    def replies(number: int) -> Iterator[Reply]:
        for k in range(number):
            model = {name: value + np.float32(0.01 * k) for name, value in tiny.replies[1][k % 3].items()}
            yield Reply(k, model, 1.0 + k, sent=start if k % 4 == 3 else sent)

    prober = tiny_prober(tiny)
    FeatureWriter(prober, tmp_path / "one", {}).round(1, sent, replies(11), outcome=tiny.models[2])
    monkeypatch.setattr(features, "DIRECTION_BYTES", 2 * sum(a.nbytes for a in sent.values()))
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    seen, groups = [], []
    update, align = prober.update, prober.align

    def counted(*models: Any) -> Any:
        found = update(*models)
        alive.add(found["0.weight"])
        seen.append(len(alive))
        return found

    def grouped(directions: Any) -> Any:
        groups.append(len(directions))
        return align(directions)

    monkeypatch.setattr(prober, "update", counted)
    monkeypatch.setattr(prober, "align", grouped)
    FeatureWriter(prober, tmp_path / "few", {}).round(1, sent, replies(11), outcome=tiny.models[2])
    assert len(seen) == 11
    assert max(seen) <= 3
    assert max(groups) == 2
    assert sum(groups) == (11 if sent_apart else 12)  # the mean of the round is the last
    (one, _), (few, _) = (read_features(tmp_path / name, tiny.y) for name in ("one", "few"))
    np.testing.assert_array_equal(few.reply_sent, one.reply_sent)
    assert (one.sum_along is None) == sent_apart
    for name in ("sent_phi", "sent_log_norm", "reply_phi", "reply_length", "reply_along", "sum_along", "sum_length"):
        if getattr(one, name) is not None:
            np.testing.assert_allclose(getattr(few, name), getattr(one, name), rtol=1e-4, atol=1e-6, err_msg=name)
    own = Rounds(one, np.array([4]), np.array([0])).own("dot")  # group by group, each reply keeps its place
    alone = FeatureWriter(tiny_prober(tiny), tmp_path / "alone", {})
    alone.round(1, sent, [list(replies(11))[4]], outcome=tiny.models[2])
    found, _ = read_features(tmp_path / "alone", tiny.y)
    np.testing.assert_allclose(own, Rounds(found, np.array([4]), np.array([0])).own("dot"), rtol=1e-4)


def test_the_mean_of_a_round_is_weighted_and_needs_a_weight(tiny: Any, tiny_prober: Any, tmp_path: Any) -> None:
    for name, weights in (("weighted", (1.0, 3.0)), ("none", (0.0, 0.0))):
        replies = [Reply(k, tiny.replies[1][k], weight) for k, weight in enumerate(weights)]
        FeatureWriter(tiny_prober(tiny), tmp_path / name, {}).round(1, tiny.models[1], replies, outcome=tiny.models[2])
    found, _ = read_features(tmp_path / "weighted", tiny.y)
    assert found.sum_along is not None
    assert found.reply_along is not None
    expected = (found.reply_along[0] + 3 * found.reply_along[1]) / 4
    np.testing.assert_allclose(found.sum_along[0], expected, rtol=1e-4, atol=1e-6)
    assert read_features(tmp_path / "none", tiny.y)[0].sum_along is None


def test_lists_of_arrays_are_taken_in_order(tiny: Any, tiny_prober: Any) -> None:
    prober = tiny_prober(tiny)
    prober.take_on(tiny.models[2])
    expected = prober.phi()
    prober.take_on({str(i): value for i, value in enumerate(tiny.models[2].values())})
    np.testing.assert_array_equal(prober.phi(), expected)
    with pytest.raises(ModelError, match="1 arrays without names and this one 4"):
        prober.take_on({"0": tiny.models[2]["0.weight"]})


def test_records_go_where_the_model_is() -> None:
    """The meta device plays the GPU: a model on it takes no input from elsewhere."""
    net = torch.nn.Linear(4, 2)
    prober = Prober.of_inputs(net, np.zeros((3, 4), np.float32), np.zeros(3, np.int64))
    assert prober.batches(0, 2).device.type == "cpu"
    net.to("meta")
    assert net(prober.batches(0, 2)).shape == (2, 2)


def test_seats_that_do_not_see_updates_say_so(tiny: Any, tiny_prober: Any, tmp_path: Any) -> None:
    tiny.only_sums = True
    try:
        extract(tiny, FeatureWriter(tiny_prober(tiny), tmp_path, {}))
    finally:
        tiny.only_sums = False
    found, _ = read_features(tmp_path, tiny.y)
    assert found.reply_client is None
    assert found.sum_along is not None
    pair = Rounds(found, np.array([0]), np.array([0]))
    with pytest.raises(EvidenceError, match="seat"):
        pair.own("phi")
    with pytest.raises(EvidenceError, match="seat"):
        Rounds(found.only(sums=False, replies=False), np.array([0]), np.array([0])).sum_cosine()
