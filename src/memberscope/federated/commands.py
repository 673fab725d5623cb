"""The command line of federations: ``memberscope federate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from memberscope.commands import help as headings
from memberscope.federated.config import FederationConfig

headings.under_headings(
    FederationConfig,
    {
        headings.DATA: "dataset data_dir unverified_data",
        headings.CLIENTS: "clients partition held_fraction rounds local_epochs fraction strategy strategy_options "
        "drop_out stragglers late timeout",
        headings.SEEN: "secure_aggregation secagg_plus record record_every record_precision record_candidates "
        "record_megabytes",
        headings.FEDERATED_DEFENSES: "central_noise central_clip clip_at local_epsilon local_delta local_clip "
        "keep_largest quantise_bits",
        headings.ADVERSARIES: "malicious canary_clients canary_length references partition_seed",
    },
    otherwise=headings.RUNNING,
)
app = App(
    name="federate",
    help_format="plaintext",
    help_formatter=headings.Wrapped(),
    help_epilogue="""Examples:

    memberscope federate --dataset digits --clients 5 --rounds 10
    memberscope federate --dataset cifar10 --partition dirichlet:0.5
    memberscope federate --dataset cifar10 --strategy fedadam --local-epochs 2
    memberscope federate --dataset cifar10 --clients 1000 --fraction 0.1
    memberscope federate --resume outputs/RUN
    memberscope federate --dataset digits --superlink 127.0.0.1:8000""",
    default_parameter=Parameter(negative_iterable=(), consume_multiple=True),
)


@app.default
def federate(
    *,
    config: Annotated[FederationConfig | None, Parameter(name="*")] = None,
    resume: Annotated[Path | None, Parameter(group=headings.RUNNING)] = None,
    superlink: Annotated[str | None, Parameter(group=headings.RUNNING)] = None,
    root_certificates: Annotated[Path | None, Parameter(group=headings.RUNNING)] = None,
    json: Annotated[bool, Parameter(negative=(), group=headings.RUNNING)] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=(), group=headings.RUNNING)] = False,
) -> int:
    """Train a federation on Flower, in this process or on a SuperLink, and write a run folder.

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
    table: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
    data_dir: Path | None = None,
    unverified_data: bool | None = None,
    device: str | None = None,
    threads: int | None = None,
    workers: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False,
) -> int:
    """Train and audit a federation for each defense of a grid, and show what each keeps and what it gives away.

    For example:
        memberscope federate study study.toml
        memberscope federate study study.toml --workers 4
        memberscope federate study study.toml --workers ray://head:10001
        memberscope federate study study.toml --table

    A federation that is there is not made again, one that was interrupted goes on.

    Exit codes: 0 done; 2 other processes are still at some federations; 3 some failed.

    Parameters
    ----------
    file
        The study: TOML with [base], [rows.NAME] and [axes]; docs/federated.md shows one.
    table
        Write tables and pictures of what is there; run nothing.
    out
        Folder for the study's folder; default: $MEMBERSCOPE_OUTPUT_DIR, else ./outputs.
    data_dir
        Folder of the dataset's files.
    unverified_data
        Take files whose checksum is not the official one: you vouch for them.
    device
        auto, cpu, cuda, cuda:1, mps.
    threads
        CPU threads of each federation; default: all cores, or 1 where several are made at once.
    workers
        Federations at once: a number of processes of this machine, ray (a Ray of this machine, or RAY_ADDRESS), or the
        address of a Ray cluster (ray://HOST:10001, HOST:6379). Default: 1.
    json
        Print one JSON document on standard output: a line for each federation and seat.
    quiet
        No progress.
    """
    from memberscope.federated.console import run_study

    return run_study(
        file,
        table=table,
        as_json=json,
        quiet=quiet,
        out=out,
        data_dir=data_dir,
        unverified_data=unverified_data,
        device=device,
        threads=threads,
        workers=workers,
    )


@app.command(help_epilogue="")
def audit(
    source: Path | None = None,
    *,
    transcript: Path | None = None,
    model: str | None = None,
    records: str | None = None,
    clients: int | None = None,
    run_config: str = "",
    classes: int | None = None,
    learning_rate: float | None = None,
    nodes: tuple[str, ...] = (),
    malicious: str = "",
    tampered: tuple[Path, ...] = (),
    references: tuple[Path, ...] = (),
    record_every: int = 1,
    record_precision: Literal["float32", "float16"] = "float32",
    record_megabytes: int = 20_000,
    sums_only: Annotated[bool, Parameter(negative=())] = False,
    candidates: int = 1000,
    every: int = 1,
    attacks: tuple[str, ...] = ("auto",),
    folds: int = 5,
    confidence: float = 0.95,
    seed: int = 0,
    ignore: tuple[str, ...] = (),
    policy: Path | None = None,
    device: str | None = None,
    out: Path | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False,
) -> int:
    """Audit a federation from every seat: one of ours, anybody's Flower app, or what a tap recorded.

    For example:
        memberscope federate audit outputs/RUN
        memberscope federate audit outputs/RUN --references outputs/RUN2 outputs/RUN3
        memberscope federate audit ./my-app --model my_app.task:Net --records my_app.task:load_data
        memberscope federate audit ./my-app --model my_app.task:Net --records my_app.task:load_data --clients 10
        memberscope federate audit --transcript runs/a --model simplecnn --records records.npz
        memberscope federate audit ./my-app --model my_app.task:Net --records records.npz --malicious isolate:0

    Parameters
    ----------
    source
        Run folder of a finished `memberscope federate`, or directory of a Flower app, which is run here as it is.
    transcript
        Folder that a tap recorded; model and records are then imported from `source` or the current folder.
    model
        Of an app or a recording: package.module:factory of the PyTorch module that it trains, or a model of ours.
    records
        Of an app or a recording: package.module:load_data(partition_id, num_partitions) -> (training, test data), or
        package.module:function() -> (x, y, owner, member), or an .npz file with these.
    clients
        How many there are; default: as the app or the recording says.
    run_config
        Changes to the app's config, as for `flwr run`: 'num-server-rounds=5 lr=0.1'.
    classes
        How many there are, where the records do not show all.
    learning_rate
        Of the clients' optimiser; default: the app's setting of that name.
    nodes
        Of a recording: which node is which client, as ID=K.
    malicious
        Run the app once more with a malicious server, reported apart: isolate:K.
    tampered
        Run folders of the same federation with a malicious party, reported apart.
    references
        Run folders of federations with the same partition and other coins; default: those of `--references K` beside a
        run of ours.
    record_every
        Record one round in so many.
    record_precision
        float16 records updates in half the space.
    record_megabytes
        Size at which recording stops; the app goes on.
    sums_only
        Record what a server behind secure aggregation sees.
    candidates
        Pairs of client and record that are asked about, a client at most, half members.
    every
        Look at one recorded round in so many.
    attacks
        Names (`memberscope list attacks`); auto: all that the recording allows.
    folds
        Folds of the cross-fitting.
    confidence
        Level of every interval.
    seed
        Seed of the app's own draws, of the candidates, folds and intervals.
    ignore
        Codes of checks to mute.
    policy
        TOML file with the exposure that you accept; sets the exit code.
    device
        auto, cpu, cuda, cuda:1, mps: where models are asked. Default: where a run of ours was trained, else auto.
    out
        Run folder to write; default: a new one in ./outputs.
    json
        Print the figures as one JSON document on standard output.
    quiet
        No progress.
    """
    from memberscope.errors import ConfigError
    from memberscope.federated.audit import Asked
    from memberscope.federated.audit_command import run
    from memberscope.federated.foreign_audit import ForeignSettings

    if (model is None) != (records is None):
        raise ConfigError("--model and --records go together", "a Flower app or a recording needs both")
    foreign = None
    if model is not None and records is not None:
        foreign = ForeignSettings(
            model=model,
            records=records,
            clients=clients,
            run_config=run_config,
            classes=classes,
            learning_rate=learning_rate,
            malicious=malicious,
            record_every=record_every,
            record_precision=record_precision,
            record_megabytes=record_megabytes,
            sums_only=sums_only,
            nodes=nodes,
            seed=seed,
            device=device or "auto",
        )
    asked = Asked(
        records=candidates,
        every=every,
        attacks=attacks,
        folds=folds,
        confidence=confidence,
        seed=seed,
        ignore=ignore,
        policy=policy,
    )
    return run(
        source,
        transcript,
        foreign,
        asked,
        tampered=tampered,
        references=references,
        device=device,
        out=out,
        as_json=json,
        quiet=quiet,
    )
