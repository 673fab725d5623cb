"""The same apps on a SuperLink with SuperNodes: what is handed in and refused, and the same model as in process."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")

from federation_settings import settings
from flwr.app import Array
from superlink import deployment

from memberscope.errors import ConfigError, MemberscopeError
from memberscope.federated import config as configs
from memberscope.federated import standing
from memberscope.federated.deploy import SuperLink, deploy, write_app
from memberscope.federated.federation import federate, read
from memberscope.federated.transcript import Transcript
from memberscope.records.pool import Dataset


def test_the_app_is_a_flower_app_with_all_settings(tmp_path: Path) -> None:
    config = settings(clients=2, data_dir=tmp_path, dropout=0.25, strategy="fedprox", out=tmp_path)
    app = write_app(config, tmp_path / 'a "folder"', resume=True)
    about = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert about["config"] == {"run-folder": str(tmp_path / 'a "folder"'), "resume": True}
    package, _, name = about["components"]["clientapp"].partition(":")
    assert (app / f"{package.replace('.', '/')}.py").is_file()
    assert name == "app"
    travels = configs.read(app / "memberscope_federation" / "federation.toml")
    assert (travels.recipe, travels.strategy, travels.data_dir) == (config.recipe, "fedprox", None)
    for file in app.rglob("*.py"):
        compile(file.read_text(), str(file), "exec")


@pytest.mark.parametrize("address", ["localhost", ":8000", "host:port"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        SuperLink(address)
    with pytest.raises(ConfigError, match="no file of root certificates"):
        SuperLink("127.0.0.1:8000", Path("nowhere.pem"))


def test_where_no_superlink_is_flower_s_last_words_are_told(tmp_path: Path) -> None:
    with pytest.raises(MemberscopeError, match=r"did not finish; Flower's last words:\n +\S"):
        deploy(settings(clients=2), SuperLink("127.0.0.1:9"), folder=tmp_path / "run")
    assert (tmp_path / "run" / "flower.log").is_file()
    assert configs.read(tmp_path / "run" / "config.toml") == settings(clients=2)
    with pytest.raises(ConfigError, match="malicious parties act in this process alone"):
        deploy(settings(malicious="isolate:0"), SuperLink("127.0.0.1:9"), folder=tmp_path / "other")


def test_a_model_that_goes_on_travels_as_flower_has_it(tmp_path: Path, digits: Dataset) -> None:
    """Flower finds the other end's class by its name: one of ours would not be known there."""
    federate(settings(rounds=1), dataset=digits, folder=tmp_path / "run")
    kept = standing.read(tmp_path / "run", resident=False)
    assert kept is not None
    assert {type(array) for array in kept.arrays.values()} == {Array}


@pytest.mark.slow
def test_both_engines_give_the_same_model(tmp_path: Path, digits: Dataset) -> None:
    config = settings(clients=2, rounds=2, record="updates", local_epsilon=5000.0, local_clip=2.0)
    here = federate(config, dataset=digits, folder=tmp_path / "here")
    (tmp_path / "deployment").mkdir()
    with deployment(tmp_path / "deployment", nodes=2) as environment:
        there = deploy(config, SuperLink(environment["SUPERLINK"]), folder=tmp_path / "there")
    mine, yours = here.model.module.state_dict(), there.model.module.state_dict()
    for name, value in mine.items():  # the order of two replies may change the last bit of their mean
        np.testing.assert_allclose(value.numpy(), yours[name].numpy(), atol=2e-6, err_msg=name)
    strip = [[{k: v for k, v in c.items() if k != "seconds"} for c in r["clients"]] for r in there.history]
    assert [[c["client"] for c in r] for r in strip] == [[0, 1], [0, 1]]
    tape = Transcript.open(there.transcript)
    assert (tape.rounds, tape.clients) == ([1, 2], [0, 1])
    assert read(tmp_path / "there", dataset=digits).summary["accuracy"] == there.summary["accuracy"]
