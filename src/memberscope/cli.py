"""The command line. Everything heavy is imported inside a command, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from memberscope.commands import help as headings
from memberscope.commands.bound import bound
from memberscope.commands.study import study
from memberscope.config import AuditConfig, default_output_dir
from memberscope.errors import ConfigError, MemberscopeError
from memberscope.listing import What
from memberscope.training.recipe import Recipe

EXIT_FAILED = 3
EXIT_INTERRUPTED = 130

app = App(
    name="memberscope",
    help="""Who could tell that a record was in a model's training set, and how surely?

Without a command it asks three questions (dataset, epochs, train or load) and runs the audit.""",
    help_epilogue="""Examples:

    memberscope audit --dataset digits --epochs 30
    memberscope audit --dataset cifar10 --epochs 50 --data-dir ~/data
    memberscope federate --dataset cifar10 --clients 10 --rounds 30
    memberscope score answers.npz
    memberscope compare outputs/run-a outputs/run-b
    memberscope COMMAND --help

Exit codes: 0 done (or within the policy), 1 exceeds the policy, 2 cannot tell, 3 failed.""",
    help_format="plaintext",
    help_formatter=headings.Wrapped(),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says what is kept and how to go on
    default_parameter=Parameter(negative_iterable=(), consume_multiple=True),
)


Parameter(name="*")(Recipe)  # the recipe's settings are flags beside the others: --epochs, not --recipe.epochs
headings.under_headings(
    Recipe,
    {
        headings.MODEL: "model",
        headings.TRAINING: "epochs batch_size optimizer learning_rate momentum nesterov schedule warmup_epochs "
        "precision",
    },
    otherwise=headings.DEFENSES,
)
headings.under_headings(
    AuditConfig,
    {
        headings.DATA: "dataset data_dir unverified_data subset protocol validation_fraction",
        headings.MODEL: "weights membership mean std load",
        headings.REFERENCES: "shadows preset bank workers canaries kind targets",
        headings.ATTACKS: "attacks folds confidence prior ignore policy pictures",
    },
    otherwise=headings.RUNNING,
)


@app.default
def interactive() -> int:
    """Ask the three questions."""
    from memberscope.prompts import interact

    return interact()


@app.command(help_epilogue="")
def audit(
    *,
    config: Annotated[AuditConfig, Parameter(name="*")],
    json: Annotated[bool, Parameter(negative=(), group=headings.RUNNING)] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=(), group=headings.RUNNING)] = False,
) -> int:
    """Train (or load, or bring) a model, attack it, and write a run folder with a report.

    For example:
        memberscope audit --dataset digits --epochs 30
        memberscope audit --dataset svhn --epochs 20 --dropout 0.5 --seed 1
        memberscope audit --dataset cifar10 --protocol random-half --epochs 50 --preset standard
        memberscope audit --dataset digits --protocol random-half --shadows 32 --targets 3
        memberscope audit --dataset cifar10 --epochs 50 --load
        memberscope audit --dataset npz:mine.npz --model mlp --protocol random-half
        memberscope audit --dataset cifar10 --model mypackage.nets:make --weights w.safetensors --membership mask.npy
        memberscope audit --config outputs/RUN/config.toml

    Parameters
    ----------
    json
        Print the figures as one JSON document on standard output.
    quiet
        No progress.
    """
    from memberscope.console import run_audit

    return run_audit(config, as_json=json, quiet=quiet)


@app.command(help_epilogue="")
def score(
    file: Path,
    *,
    out: Path | None = None,
    target: int | None = None,
    attacks: tuple[str, ...] = ("auto",),
    folds: int = 5,
    confidence: float = 0.95,
    prior: float = 0.5,
    seed: int = 0,
    ignore: tuple[str, ...] = (),
    policy: Path | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False,
) -> int:
    """Audit answers that were computed elsewhere, in any framework, without training.

    For example:
        memberscope score answers.npz
        memberscope score answers.csv --out runs/mine --policy policy.toml
        memberscope score exp/cifar10 --target 3

    Parameters
    ----------
    file
        .npz with logits or probabilities [N, C], labels [N], member 0/1 [N] (and reference_logits [K, N, C] with
        reference_membership [K, N], where there are reference models); or .csv with columns z0... or p0..., label,
        member; or a folder of models that the LiRA code of Carlini et al. or ML Privacy Meter left.
    out
        Run folder to write; default: a new one in ./outputs.
    target
        Of a folder: which model plays the target, from 0. Default: the last experiment of the LiRA code, the first
        model of Privacy Meter.
    attacks
        Names (`memberscope list attacks`); auto: all that the answers allow.
    folds
        Folds of the cross-fitting.
    confidence
        Level of every interval.
    prior
        Share of members among those judged, for the probability of each record that it is one.
    seed
        Seed of folds and intervals.
    ignore
        Codes of checks to mute.
    policy
        TOML file with the exposure that you accept; sets the exit code.
    json
        Print the figures as one JSON document on standard output.
    quiet
        No progress.
    """
    from memberscope.console import Console, show
    from memberscope.report.run_folder import new_folder
    from memberscope.score import score as score_answers

    console = Console(quiet=quiet or json)
    result = score_answers(
        file,
        target=target,
        attacks=attacks,
        folds=folds,
        confidence=confidence,
        prior=prior,
        seed=seed,
        ignore=ignore,
        policy=policy,
        events=console,
    )
    folder = result.save(out or new_folder(default_output_dir(), f"{result.document['dataset']['name']}_score"))
    show(result, folder, as_json=json)
    return result.exit_code


app.command(bound, help_epilogue="")
app.command(study, help_epilogue="")


@app.command(help_epilogue="")
def report(run: Path) -> int:
    """Render report.html of a run folder again, from the folder alone.

    For example:
        memberscope report outputs/digits_epoch30_2026-11-23_10-00-00

    Parameters
    ----------
    run
        Its folder.
    """
    from memberscope.report.run_folder import rerender

    sys.stdout.write(f"{rerender(run).resolve()}\n")
    return 0


@app.command(help_epilogue="")
def compare(*runs: Path, out: Path = Path("comparison"), attack: str | None = None) -> int:
    """Compare runs by one attack each: a table, and one log-log ROC.

    For example:
        memberscope compare outputs/digits_epoch5_* outputs/digits_epoch50_*
        memberscope compare outputs/RUN1 outputs/RUN2 --attack loss

    Parameters
    ----------
    runs
        Two or more run folders.
    out
        Folder for the picture and the HTML page.
    attack
        Judge every run by this attack; default: each by the one that its own answer is given for.
    """
    from memberscope.files import write_text
    from memberscope.report.compare import compare as compare_runs
    from memberscope.report.run_folder import read
    from memberscope.summary import aligned

    if len(runs) < 2:
        raise ConfigError(f"{len(runs)} run folder given", "a comparison needs at least two")
    comparison = compare_runs([read(run) for run in runs], attack=attack)
    write_text(out / "comparison.html", comparison.html())
    comparison.png(out / "roc_curve_loglog.png")
    lines = [*aligned([comparison.header, *comparison.rows]), *comparison.notes]
    sys.stdout.write("\n".join([*lines, str((out / "comparison.html").resolve())]) + "\n")
    return 0


@app.command(name="list", help_epilogue="")
def list_(what: What, *names: str, cards: bool = False) -> int:
    """List what can be named: datasets, models, attacks, defenses, partitions or strategies.

    For example:
        memberscope list attacks
        memberscope list attacks lira-online-eb rmia-offline
        memberscope list defenses dp_sgd

    Parameters
    ----------
    what
        What to list.
    names
        Attacks or defenses whose cards to show: paper, formula, cost, known traps.
    cards
        Show all cards, of the attacks or of the defenses.
    """
    from memberscope.listing import listing

    if cards and not names:
        from memberscope.attacks.registry import all_attacks
        from memberscope.defenses.registry import all_defenses

        names = tuple(all_attacks()) if what == "attacks" else tuple(all_defenses()) if what == "defenses" else ()
    sys.stdout.write(listing(what, names) + "\n")
    return 0


app.command(
    "memberscope.federated.commands:app",
    name="federate",
    help="Train a federation on Flower, see what each party sees, attack it from each seat.",
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with the command's code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _read_config(tokens)
        _refuse_unknown_command(tokens)
        code: Any = app(tokens, result_action="return_value", exit_on_error=False)
    except CycloptsError:  # told already; 1 and 2 are verdicts on a policy, which a mistyped flag must not look like
        sys.exit(EXIT_FAILED)
    except MemberscopeError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt as stop:
        told = str(stop) or "interrupted; a training goes on from its last epoch if --resume is added to this command"
        sys.stderr.write(f"\n{told[0].upper()}{told[1:]}.\n")
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _read_config(tokens: list[str]) -> None:
    """Take ``--config FILE`` out of the tokens: its keys are the flags' names, and flags win over it."""
    app.config = ()
    for position, word in enumerate(tokens):
        if word != "--config" and not word.startswith("--config="):
            continue
        taken = 1 if "=" in word else 2
        value = word.partition("=")[2] if taken == 1 else "".join(tokens[position + 1 : position + 2])
        if not Path(value).is_file():
            raise ConfigError(f"no config file {value!r}", "--config takes the path of a TOML file")
        from cyclopts.config import Toml

        app.config = (Toml(value, must_exist=True, use_commands_as_keys=False),)
        del tokens[position : position + taken]
        return


def _refuse_unknown_command(tokens: list[str]) -> None:
    import difflib

    if not tokens or tokens[0].startswith("-"):
        return
    known = [name for name in app if not name.startswith("-")]
    if tokens[0] not in known:
        near = difflib.get_close_matches(tokens[0], known, n=1)
        hint = f"did you mean `memberscope {near[0]}`?" if near else f"commands: {', '.join(known)}"
        raise ConfigError(f"unknown command {tokens[0]!r}", hint)
