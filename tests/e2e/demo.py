"""The demo: `python -m tests.e2e.demo`. A real fleet, a real fault, and trimtab, on this machine, in about three minutes."""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from rich.console import Console

from tests.e2e import preflight, report, view
from tests.e2e.faults import FAULTS
from tests.e2e.interruption import Told, attentive, deaf
from tests.e2e.services import NODE
from tests.e2e.stage import INSTANCES, Course, Plan, Stage
from trimtab import Exit, TrimtabError


def run(console: Console, plan: Plan, json_file: Path | None) -> list[str]:
    """Run the demo. What trimtab failed at, one line each."""
    with ExitStack() as stack:
        stage, course = Stage(console, plan, stack), Course()
        try:
            stage.build()
            # The first requests of a fresh fleet are slow by themselves.
            stage.play(0, 5)
            course.start = time.monotonic()
            stage.play(1, plan.baseline_seconds)
            course.fault, course.fault_unix_ns = time.monotonic(), time.time_ns()
            stage.break_instance()
            stage.play(2, plan.fault_seconds)
            course.trimtab = time.monotonic()
            stage.start_service("actuator")
            stage.play(3, plan.trimtab_seconds)
            course.end = time.monotonic()
            return _tell(stage, course, json_file)
        finally:
            deaf()


def _tell(stage: Stage, course: Course, json_file: Path | None) -> list[str]:
    """Print the report, write the JSON; what trimtab failed at."""
    console, plan, observer = stage.console, stage.plan, stage.observer
    requests = stage.load.finish()
    stage.end_picture()
    phases = course.phases(requests, plan.settle_seconds)
    subject = f"{NODE}/{stage.faulty.port}"
    incidents = list(observer.incidents.values())
    failures = report.failures(stage.fault, subject, incidents, course.fault_unix_ns, phases)
    console.rule("report")
    console.print(f"fault: {stage.faulty.name} ({subject}), {stage.fault.description}\n", highlight=False)
    incident = report.named(incidents, subject)
    width, colour = console.width, console.is_terminal
    if incident:
        delay = (incident.opened_unix_ns - course.fault_unix_ns) / 1e9
        console.print(f"incident {incident.id} was opened {delay:.1f} s after the fault began", highlight=False)
        sys.stdout.write(stage.trimtab.command("incidents", "show", incident.id, columns=width, colour=colour))
    sys.stdout.write(stage.trimtab.command("weights", "--history", "20", columns=width, colour=colour))
    sys.stdout.flush()
    console.print(view.weights(observer.weights, course.fault), view.clients(list(phases.values())))
    ends = {name: count for name, count in report.statuses(requests).items() if name != "200"}
    console.print(f"answers that were not good, in all: {ends or 'none'}", highlight=False)
    if json_file:
        json_file.write_text(json.dumps(_record(stage, course, phases, failures), indent=2, default=str) + "\n")
    return failures


def _record(stage: Stage, course: Course, phases: dict[str, report.Phase], failures: list[str]) -> dict[str, Any]:
    incidents = [MessageToDict(i, preserving_proto_field_name=True) for i in stage.observer.incidents.values()]
    known = [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(p).items()}
        for p in phases.values()
    ]
    weights = [{"seconds_since_fault": round(when - course.fault, 1), **row} for when, row in stage.observer.weights]
    subject = f"{NODE}/{stage.faulty.port}"
    plan = {**asdict(stage.plan), "subject": subject, "mechanisms": stage.fault.mechanisms}
    return {
        "plan": plan,
        "fault_unix_ns": course.fault_unix_ns,
        "failures": failures,
        "phases": known,
        "incidents": incidents,
        "weights": weights,
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--fault", type=click.Choice(list(FAULTS)), default="quota", show_default=True, help="What goes wrong.")
@click.option("--instance", type=click.IntRange(0, INSTANCES - 1), default=1, show_default=True, help="Where.")
@click.option("--rate", type=click.FloatRange(1, 1000), help="Requests a second.  [default: what suits the fault]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the arrivals.")
@click.option("--baseline-seconds", type=click.FloatRange(5), default=45.0, show_default=True)
@click.option("--fault-seconds", type=click.FloatRange(5), default=25.0, show_default=True, help="At neutral weights.")
@click.option("--trimtab-seconds", type=click.FloatRange(10), default=35.0, show_default=True, help="With trimtab.")
@click.option("--settle-seconds", type=click.FloatRange(0), default=8.0, show_default=True, help="Also reported apart.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the results here."
)
def main(fault: str, rate: float | None, json_file: Path | None, **options: Any) -> None:
    """Serve a model from three instances, break one, and see what trimtab makes of it."""
    console = view.plain_console()
    plan = Plan(fault=fault, rate=rate or FAULTS[fault].rate, **options)
    if plan.settle_seconds >= plan.trimtab_seconds:
        raise click.UsageError("--settle-seconds must be less than --trimtab-seconds")
    try:
        with attentive():
            preflight.check()
            failures = run(console, plan, json_file)
    except TrimtabError as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(error.exit_code)
    except Told:
        click.echo("demo: interrupted; everything it started is stopped", err=True)
        sys.exit(Exit.INTERRUPTED)
    for failure in failures:
        console.print(f"✘ {failure}", style="red", highlight=False)
    if not failures:
        console.print("✔ trimtab found the instance, named the cause, and moved the traffic", style="green")
    sys.exit(Exit.NO if failures else Exit.OK)


if __name__ == "__main__":
    main()
