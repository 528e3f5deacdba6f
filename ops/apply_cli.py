"""`warren apply`: the table's topology, new passwords and new certificates, into a running deployment."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ops import session
from ops.definitions import OPERATOR
from ops.errors import OpsError
from queues.environment import Reader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ops.apply import Step
    from ops.management import Management

#: Seconds that the broker may take to import definitions.
TIMEOUT = 120.0
AFTER = {
    "passwords": "now restart workers, beat, exporter and flower, give producers their folder anew, and run `apply` "
    "once more: until then Valkey takes the password before, too",
    "certificates": "RabbitMQ shows its new certificate within two minutes, Valkey at once; clients read theirs when "
    "they connect again",
}


@click.command()
@click.option("--secrets", type=click.Path(path_type=Path), help="The folder that ops.provision fills, in Compose.")
@click.option("--definitions", type=click.Path(path_type=Path), help="The file that the broker imports at its start.")
@click.option("--rotate", multiple=True, type=click.Choice(list(AFTER)), help="Make all of them anew.")
@click.option("--yes", is_flag=True, help="Do it without asking.")
def apply(secrets: Path | None, definitions: Path | None, rotate: tuple[str, ...], *, yes: bool) -> None:
    """Bring a running broker to the table: the plan first, the definitions file before the broker.

    What would lose messages is refused, with exit code 1. Without a file, it is the embedded stack's.
    """
    from ops.apply import Step, carry_out, counter, plan
    from ops.check import differences
    from ops.definitionsfile import DefinitionsFile, SecretsFolder

    if rotate and not secrets:
        raise click.UsageError("--rotate needs --secrets: elsewhere passwords and certificates are not Warren's")
    file = SecretsFolder(secrets, rotate) if secrets else DefinitionsFile(definitions or embedded())
    environ = session.environment(OPERATOR)
    before = file.read()
    with contextlib.closing(management_of(environ)) as management, session.app(OPERATOR) as app:
        present = management.definitions()
        wanted = file.wanted(management.version(), management.vhost)
        steps = plan(wanted, present, before, counter(app))
        if steps and rotate:
            raise OpsError("the table has changes of its own: apply them first, without --rotate")
        remedy = "it has no password in the file: add it there, or start the embedded stack again, which does"
        steps += [Step("refused", f"user {role}", remedy) for role in file.unknown()]
        steps += [Step("change", kind, "new ones for every service") for kind in rotate]
        show(steps)
        if refused := [step for step in steps if step.action == "refused"]:
            raise OpsError(f"nothing was changed: {len(refused)} of {len(steps)} changes are refused")
        if steps and not (yes or agreed()):
            click.echo("nothing was changed: --yes carries it out")
            return
        if steps or secrets:
            carry_out(management, app, file, present=present, before=before)
            file.finish()
    if found := differences(session.environment(OPERATOR)):
        raise OpsError("\n".join(found))
    for kind in rotate:
        click.echo(AFTER[kind])


def embedded() -> Path:
    """The definitions file of the stack that runs here."""
    return session.home() / "broker" / "definitions.json"


def management_of(environ: Mapping[str, str]) -> Management:
    """The management API, with time for an import."""
    from ops.management import Management, ManagementSettings

    reader = Reader(environ)
    settings = ManagementSettings.read(reader)
    reader.check()
    return Management(settings, timeout=TIMEOUT)


def show(steps: list[Step]) -> None:
    """The plan, a line for each change."""
    for step in steps:
        click.echo(f"{step.action:9}{step.what}" + (f": {step.detail}" if step.detail else ""))
    if not steps:
        click.echo("broker and table agree")


def agreed() -> bool:
    """Ask, where somebody can answer."""
    return sys.stdin.isatty() and click.confirm("carry it out?")
