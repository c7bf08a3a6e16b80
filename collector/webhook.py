"""Tells of incidents over HTTP, in the words of Prometheus' Alertmanager.

A URL that ends in /api/v2/alerts is an Alertmanager, and gets its alerts; any other gets what an Alertmanager would send to a webhook
receiver (version 4). One message an incident and change; the newest state of an incident takes the place of one that was not sent yet.

While an incident is silenced nothing is told of it, but that it is resolved where it was told of before: else it would fire forever.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from trimtab import __version__
from trimtab.agent.clock import Clock
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.feed import IncidentFeed
from trimtab.collector.vitals import Vitals

log = logging.getLogger(__name__)

PENDING_MAX = 1024
SECONDS_MAX = 5.0
BACKOFF_SECONDS_MIN = 1.0
BACKOFF_SECONDS_MAX = 60.0
REPEAT_SECONDS = 120.0
"""An Alertmanager takes an alert for resolved when it has not heard of it for a while."""
_ALERTS = "/api/v2/alerts"
_REFUSALS = {400, 413, 422}
"""What was said is not taken, and never will be."""
_NEVER = "0001-01-01T00:00:00Z"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        """Whoever is named in the settings answers, and nobody else."""


class Webhook:
    """One thread that follows the feed, and sends; none where `url` is empty."""

    def __init__(self, url: str, feed: IncidentFeed, clock: Clock, vitals: Vitals) -> None:
        self._url = url
        self._feed = feed
        self._clock = clock
        self._vitals = vitals
        self._open = urllib.request.build_opener(_NoRedirect()).open
        self._pending: OrderedDict[str, pb.Incident] = OrderedDict()
        self._firing: dict[str, pb.Incident] = {}
        self._silenced: dict[str, pb.Incident] = {}
        self._failing = False
        self._backoff, self._retry_at = BACKOFF_SECONDS_MIN, clock.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)

    def start(self) -> None:
        if self._url:
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._feed.watch() as (known, watcher):
                self._take_all(known)
                repeat_at = self._clock.monotonic() + REPEAT_SECONDS
                # One that fell behind begins again with what is open.
                while not self._stop.is_set() and not watcher.behind.is_set():
                    changed = watcher.next(0.5)
                    if changed is not None:
                        self._take(changed)
                    self._end_silences()
                    if self._url.endswith(_ALERTS) and self._clock.monotonic() >= repeat_at:
                        repeat_at = self._clock.monotonic() + REPEAT_SECONDS
                        for each in self._firing.values():
                            self._pending.setdefault(each.id, each)
                    self._send_pending()

    def _take(self, incident: pb.Incident) -> None:
        is_open, silenced = incident.status == pb.Incident.STATUS_OPEN, self._is_silenced(incident)
        for known, belongs in ((self._firing, is_open and not silenced), (self._silenced, is_open and silenced)):
            known.pop(incident.id, None)
            if belongs:
                known[incident.id] = incident
        # A silence that is older than the incident has kept all of it back.
        if silenced and (is_open or incident.silence.since_unix_ns <= incident.opened_unix_ns):
            self._pending.pop(incident.id, None)
            return
        self._pending[incident.id] = incident
        if len(self._pending) > PENDING_MAX:
            self._pending.popitem(last=False)
            self._vitals.webhook_failed += 1

    def _take_all(self, known: Sequence[pb.Incident]) -> None:
        """These are open. What was open before, and is not among them, was resolved while this fell behind: nobody would ever say so."""
        still = {incident.id for incident in known}
        firing = [*self._firing.values(), *self._silenced.values()]
        for gone in [incident for incident in firing if incident.id not in still]:
            resolved = pb.Incident()
            resolved.CopyFrom(gone)
            resolved.status, resolved.resolved_unix_ns = pb.Incident.STATUS_RESOLVED, self._clock.unix_ns()
            self._take(resolved)
        for incident in known:
            self._take(incident)

    def _is_silenced(self, incident: pb.Incident) -> bool:
        return incident.HasField("silence") and incident.silence.until_unix_ns > self._clock.unix_ns()

    def _end_silences(self) -> None:
        """What is still open when its silence is over is told now."""
        for incident in [one for one in self._silenced.values() if not self._is_silenced(one)]:
            told = pb.Incident()
            told.CopyFrom(incident)
            told.ClearField("silence")
            self._take(told)

    def _send_pending(self) -> None:
        """As many as are taken; one that is not must keep neither the others nor the feed waiting."""
        while self._pending and not self._stop.is_set() and self._clock.monotonic() >= self._retry_at:
            incident = next(iter(self._pending.values()))
            try:
                self._send(incident)
            except (OSError, ValueError) as error:
                self._vitals.webhook_failed += 1
                if isinstance(error, urllib.error.HTTPError) and error.code in _REFUSALS:
                    log.warning("collector.webhook_url: %s: incident %s is not told of", error, incident.id)
                    del self._pending[incident.id]
                    continue
                if not self._failing:
                    log.warning("collector.webhook_url: %s; incidents are sent when it works again", error)
                self._failing = True
                self._pending.move_to_end(incident.id)
                self._retry_at = self._clock.monotonic() + self._backoff
                self._backoff = min(2 * self._backoff, BACKOFF_SECONDS_MAX)
                return
            self._failing, self._backoff = False, BACKOFF_SECONDS_MIN
            self._vitals.webhook_sent += 1
            del self._pending[incident.id]

    def _send(self, incident: pb.Incident) -> None:
        """Raises OSError (of which urllib's errors are), and ValueError for a URL that is none."""
        body = [alert(incident)] if self._url.endswith(_ALERTS) else message(incident)
        headers = {"Content-Type": "application/json", "User-Agent": f"trimtab/{__version__}"}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)  # noqa: S310 - the settings allow http and https
        with self._open(request, timeout=SECONDS_MAX) as answer:
            answer.read(4096)


def alert(incident: pb.Incident) -> dict[str, Any]:
    """An incident as an alert of Alertmanager's API, version 2."""
    cause = incident.causes[0] if incident.causes else pb.Cause(mechanism="unknown")
    # What identifies an alert must not change with what is found out about it.
    labels = {"alertname": "trimtab_incident", "incident": incident.id, "subject": incident.subject}
    labels.update({name: value for name, value in (("node", incident.node), ("model", incident.model)) if value})
    confidence = "" if math.isnan(cause.confidence) else f" ({cause.confidence:.0%})"
    return {
        "labels": labels,
        "annotations": {
            "summary": f"{incident.subject}: {incident.symptom}",
            "description": f"{cause.mechanism}{confidence}: {cause.summary}".removesuffix(": "),
            "mechanism": cause.mechanism,
            "remedy": cause.remedy,
            **({"acknowledged": _said(incident.acknowledgements[-1])} if incident.acknowledgements else {}),
        },
        "startsAt": _time(incident.since_unix_ns),
        **({"endsAt": _time(incident.resolved_unix_ns)} if incident.status == pb.Incident.STATUS_RESOLVED else {}),
    }


def message(incident: pb.Incident) -> dict[str, Any]:
    """An incident as Alertmanager would tell a webhook receiver of it."""
    told = alert(incident)
    status = "resolved" if "endsAt" in told else "firing"
    told = {"status": status, "endsAt": _NEVER, **told, "generatorURL": "", "fingerprint": incident.id}
    return {
        "version": "4",
        "groupKey": f'{{}}:{{incident="{incident.id}"}}',
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "trimtab",
        "groupLabels": {"incident": incident.id},
        "commonLabels": told["labels"],
        "commonAnnotations": told["annotations"],
        "externalURL": "",
        "alerts": [told],
    }


def _said(acknowledgement: pb.Acknowledgement) -> str:
    return f"{acknowledgement.who}: {acknowledgement.note}".removesuffix(": ")


def _time(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
