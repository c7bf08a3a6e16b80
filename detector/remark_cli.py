"""`trimtab incidents acknowledge`, `accept`, `silence` and `unsilence`: an operator's hand on incidents."""

from __future__ import annotations

import click

from trimtab import Exit, TrimtabError
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector import options
from trimtab.collector.client import DEADLINE_SECONDS, ClientSettings, stub, who
from trimtab.collector.node_tables import printable
from trimtab.detector.drift_cause import is_drift
from trimtab.detector.when import clock


@click.command()
@click.argument("incident_id", metavar="ID")
@click.option("--note", default="", help="What others should know.")
@options.collector
@click.pass_obj
def acknowledge(settings: ClientSettings, incident_id: str, note: str, collector: str | None) -> None:
    """Say that you are looking after an incident. Others see who, when and the note."""
    request = pb.AcknowledgeRequest(id=incident_id, note=note)
    _remark(settings, collector, pb.RemarkRequest(who=who(), acknowledge=request))
    click.echo(f"{printable(incident_id)} is acknowledged")


@click.command()
@click.argument("incident_id", metavar="ID")
@click.option("--note", default="meant to be so", show_default=True, help="What others should know.")
@options.collector
@click.pass_obj
def accept(settings: ClientSettings, incident_id: str, note: str, collector: str | None) -> None:
    """Say that what a model predicts now is meant to be so.

    The incident is over, and what is usual is learnt anew. Only a model drift needs that: others end when their cause is gone.
    """
    with stub(settings, collector) as query:
        found = query.Incidents(pb.IncidentsRequest(id=incident_id), timeout=DEADLINE_SECONDS).incidents
    if found and not is_drift(found[0].subject):
        message = f"{printable(incident_id)} is no model drift: it ends when its cause is gone"
        raise TrimtabError(message, Exit.USAGE)
    request = pb.AcceptRequest(id=incident_id, note=note)
    _remark(settings, collector, pb.RemarkRequest(who=who(), accept=request))
    click.echo(f"{printable(incident_id)} is accepted: what is usual is learnt anew")


@click.command()
@click.argument("target", metavar="SUBJECT_OR_ID")
@click.option(
    "--for", "seconds", type=options.Duration(), required=True, metavar="DURATION", help="How long: 90s, 10m, 2h, 1d."
)
@click.option("--reason", default="", help="Why.")
@options.collector
@click.pass_obj
def silence(settings: ClientSettings, target: str, seconds: float, reason: str, collector: str | None) -> None:
    """Have the webhook tell nothing of an incident, an instance, a node or a "model NAME" for a while.

    What is silenced is still found, recorded and shown. The silence of a node or of a model is that of everything on it.
    """
    request = pb.SilenceRequest(target=target, seconds=seconds, reason=reason)
    reply = _remark(settings, collector, pb.RemarkRequest(who=who(), silence=request))
    until = clock(reply.silence.until_unix_ns)
    click.echo(f"{printable(target)} is silenced until {until}; open incidents that it is about: {_ids(reply)}")


@click.command()
@click.argument("target", metavar="SUBJECT_OR_ID")
@options.collector
@click.pass_obj
def unsilence(settings: ClientSettings, target: str, collector: str | None) -> None:
    """End a silence now."""
    request = pb.RemarkRequest(who=who(), unsilence=pb.UnsilenceRequest(target=target))
    reply = _remark(settings, collector, request)
    click.echo(f"{printable(target)} is no longer silenced; open incidents that it was about: {_ids(reply)}")


COMMANDS = (acknowledge, accept, silence, unsilence)


def _remark(settings: ClientSettings, collector: str | None, request: pb.RemarkRequest) -> pb.RemarkReply:
    with stub(settings, collector) as query:
        reply: pb.RemarkReply = query.Remark(request, timeout=DEADLINE_SECONDS)
    return reply


def _ids(reply: pb.RemarkReply) -> str:
    return ", ".join(printable(incident.id) for incident in reply.incidents) or "none"
