"""The command line of federations: ``memberscope federate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from memberscope.federated.config import FederationConfig

app = App(
    name="federate",
    help="Train a federation on Flower, see what each party sees, attack it from each seat.",
    help_format="plaintext",
    help_epilogue="",
    default_parameter=Parameter(negative_iterable=(), consume_multiple=True),
)


@app.default
def federate(
    *,
    config: Annotated[FederationConfig | None, Parameter(name="*")] = None,
    resume: Path | None = None,
    superlink: str | None = None,
    root_certificates: Path | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False,
) -> int:
    """Train a federation on Flower, in this process, and write a run folder.

    For example:
        memberscope federate --dataset digits --clients 5 --rounds 10
        memberscope federate --dataset cifar10 --partition dirichlet:0.5 --rounds 30 --local-epochs 2
        memberscope federate --dataset cifar10 --strategy fedprox --strategy-options proximal_mu=0.1
        memberscope federate --dataset cifar10 --clients 1000 --fraction 0.1 --record nothing
        memberscope federate --resume outputs/RUN
        memberscope federate --dataset cifar10 --clients 2 --superlink 127.0.0.1:8000

    Parameters
    ----------
    resume
        Go on with the federation in this run folder after its last finished round; its settings are in the folder.
    superlink
        Run it on the SuperNodes of this SuperLink (host:port) instead of in this process; see docs.
    root_certificates
        PEM file to check the SuperLink's certificate with; without it the connection is not encrypted.
    json
        Print the summary as one JSON document on standard output.
    quiet
        No progress.
    """
    from memberscope.federated.console import run_federation

    return run_federation(
        config,
        resume=resume,
        superlink=superlink,
        root_certificates=root_certificates,
        as_json=json,
        quiet=quiet,
    )


@app.command(help_epilogue="")
def study(
    file: Path,
    *,
    out: Path | None = None,
    data_dir: Path | None = None,
    unverified_data: bool | None = None,
    device: str | None = None,
    threads: int | None = None,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False,
) -> int:
    """Train and audit a federation for each defense of a grid, and show what each keeps and what it gives away.

    For example:
        memberscope federate study study.toml

    Parameters
    ----------
    file
        The study: TOML with [base], [rows.NAME] and [axes]; docs/federated.md shows one.
    out
        Folder for the study's folder; default: $MEMBERSCOPE_OUTPUT_DIR, else ./outputs.
    data_dir
        Folder of the dataset's files.
    unverified_data
        Take files whose checksum is not the official one: you vouch for them.
    device
        auto, cpu, cuda, cuda:1, mps.
    threads
        CPU threads; default: all cores.
    quiet
        No progress.
    """
    from memberscope.federated.console import run_study

    return run_study(
        file,
        quiet=quiet,
        out=out,
        data_dir=data_dir,
        unverified_data=unverified_data,
        device=device,
        threads=threads,
    )
