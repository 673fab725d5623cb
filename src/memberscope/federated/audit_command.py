"""What ``memberscope federate audit`` does: finds out what it was given, audits it, writes the run folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from memberscope.config import default_output_dir
from memberscope.console import Console, show
from memberscope.errors import ConfigError
from memberscope.federated.foreign_audit import ForeignSettings, of_app, of_recording
from memberscope.federated.references import finished
from memberscope.report.run_folder import new_folder, refuse_occupied

if TYPE_CHECKING:
    from memberscope.federated.audit import Asked
    from memberscope.federated.subject import Subject


def run(
    source: Path | None,
    transcript: Path | None,
    foreign: ForeignSettings | None,
    asked: Asked,
    *,
    tampered: tuple[Path, ...] = (),
    references: tuple[Path, ...] = (),
    device: str | None = None,
    out: Path | None = None,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Audit a run folder of ours, an app directory, or a recording; returns the exit code.

    Raises
    ------
    ConfigError
        Nothing that can be audited was named, or what must be known of it was not given.
    """
    from memberscope.federated.audit import audit_federation
    from memberscope.federated.federation import going_on, quiet_flower
    from memberscope.federated.recorder import say_nothing_but_warnings

    console = Console(quiet=quiet or as_json)
    if out is not None:
        refuse_occupied(out)  # now, and not when all is computed
    if quiet or as_json:
        say_nothing_but_warnings()
    kept: Path | None = None
    about: Path | Subject
    more: list[Path | Subject] = list(tampered)
    if references and foreign is not None:
        raise ConfigError(
            "--references are runs of `memberscope federate`", "for other federations: audit_federation in Python"
        )
    if transcript is None and source is not None and (source / "federation.json").is_file():
        if foreign is not None:
            raise ConfigError(f"{source} holds a federation of ours", "its model and records are known: leave them out")
        about, name = source, f"{source.resolve().name}_audit"
        references = references or tuple(finished(source))
    elif foreign is None:
        what = transcript or source
        raise ConfigError(
            "nothing to audit was named" if what is None else f"{what} alone is not enough",
            "give --model package.module:factory and --records package.module:load_data with a Flower app directory "
            "or --transcript; or the folder of a finished run of `memberscope federate`",
        )
    elif transcript is not None:
        about = of_recording(transcript, foreign, app=source)
        name = f"{about.name}_audit"
    elif source is not None:
        recorded = new_folder(
            out.resolve().parent if out else default_output_dir(), f"{source.resolve().name}_recorded"
        )
        console.note(f"Recording to {recorded}")
        again = f"memberscope federate audit {source} --transcript {recorded / 'transcript'} {foreign.flags}"
        with _kept(recorded), going_on(again), quiet_flower() if quiet or as_json else contextlib.nullcontext():
            about, malicious = of_app(source, foreign, recorded, events=console)
        kept = recorded
        more += malicious
        name = f"{about.name}_federated"
    else:
        raise ConfigError("nothing to audit was named", "give a Flower app directory, or --transcript DIR")
    with going_on("the same command" if kept is None else again):
        result = audit_federation(about, asked, tampered=more, references=references, device=device, events=console)
    console.stage("Writing the run folder")
    folder = result.save(out or new_folder(default_output_dir(), name))
    if kept is not None:
        for part in sorted(kept.iterdir()):
            shutil.move(part, folder / part.name)
        kept.rmdir()
    show(result, folder, as_json=as_json)
    return result.exit_code


@contextlib.contextmanager
def _kept(recorded: Path) -> Iterator[None]:
    """Leave no empty folder where an app ends before anything is recorded."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # something is in it
            recorded.rmdir()
