"""Sends the spool's windows to the collector, again and again until it has stored them."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path

import grpc

from trimtab import TrimtabError
from trimtab.agent.clock import Clock
from trimtab.agent.collectors.own import Vitals
from trimtab.agent.session import Broken, Session
from trimtab.agent.settings import Tls
from trimtab.agent.spool import Spool
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.channel import Dialer

log = logging.getLogger(__name__)

FINAL_SECONDS = 30.0
REFUSED_MAX = 100
_SAY_AGAIN_SECONDS = 60.0
_BACKOFF_SECONDS = 0.2
_BACKOFF_SECONDS_MAX = 5.0
_SEQ_MAX = 1 << 63
_RENEWED = "new certificates"
# The collector refuses this agent, and will until a person mends something.
_FINAL = {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.INVALID_ARGUMENT}


class Publisher:
    """Connects, sends, forgets what is acknowledged, and comes back after every failure. Two threads, and gRPC's own.

    `hello` makes the first message of each stream, as it carries the time. Windows that the collector refuses go to `refused`.
    Raises TrimtabError when the settings do not allow to reach `target`.
    """

    def __init__(
        self,
        *,
        target: str,
        tls: Tls,
        spool: Spool,
        hello: Callable[[], pb.Hello],
        refused: Path,
        clock: Clock,
        rng: random.Random,
        vitals: Vitals,
    ) -> None:
        # What the settings lack is better said now than in the thread.
        self._dialer = Dialer(target, tls, "agent.collector")
        self._target = target
        self._spool = spool
        self._hello = hello
        self._refused = refused
        self._clock = clock
        self._rng = rng
        self._vitals = vitals
        self._stop = threading.Event()
        self._session: Session | None = None
        self._welcomed = False
        self._away = ""
        self._failures = 0
        self._refusal_said_at = -_SAY_AGAIN_SECONDS
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Send what is there, for at most `seconds` and only where the collector answers; then end."""
        if self._welcomed:
            self._spool.wait_acknowledged(seconds)
        self._stop.set()
        if self._session is not None:
            self._session.end()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.is_set():
            reason, final = self._stream()
            if self._stop.is_set():
                return
            if reason == _RENEWED:
                log.info("collector %s is called again with new certificates", self._target)
                continue
            # A reason that only a person can mend is worth a line of its own.
            if not self._away or (final and reason != self._away):
                self._away = reason
                log.warning("collector %s is away: %s; windows are kept in the spool", self._target, reason)
            self._failures += 1
            backoff_seconds = min(_BACKOFF_SECONDS * 2 ** min(self._failures - 1, 10), _BACKOFF_SECONDS_MAX)
            seconds = FINAL_SECONDS if final else backoff_seconds * self._rng.uniform(0.5, 1.0)
            self._clock.wait(self._stop, seconds)

    def _stream(self) -> tuple[str, bool]:
        """One stream from start to end: why it ended, and whether for good."""
        try:
            # Each with a channel of its own: one that failed would wait by gRPC's clock, up to two minutes.
            with self._dialer.open() as link:
                self._session = Session(self._spool, self._hello(), self._clock, self._vitals, self._renewed)
                if self._stop.is_set():  # `close` may have looked for a session just before this one
                    self._session.end()
                for message in self._session.messages(link):
                    self._take(message, self._session)
                if self._session.leaving:
                    return _RENEWED, False
        except grpc.RpcError as error:
            return _reason(error), error.code() in _FINAL
        except (Broken, TrimtabError) as error:
            return str(error), False
        except Exception as error:  # noqa: BLE001 - the top of the loop: delivery goes on, whatever it was
            return f"internal error: {type(error).__name__}: {error}", False
        finally:
            self._welcomed = self._vitals.connected = False
        return "it closed the stream", False

    def _take(self, message: pb.CollectorMessage, session: Session) -> None:
        content = message.WhichOneof("content")
        if content == "welcome":
            mark = message.welcome.high_water_mark
            if mark >= _SEQ_MAX:
                raise Broken(f"its high-water mark is {mark}")
            self._spool.resume(mark)
            self._welcomed = self._vitals.connected = True
            self._vitals.streams += 1
            session.welcome(mark)
        elif content == "ack":
            session.answer(message.ack.seq)
            self._settle(message.ack.seq)
        elif content == "refusal":
            seq, reason = message.refusal.seq, message.refusal.reason
            self._set_aside(seq, session.answer(seq), reason)
            self._settle(seq)

    def _renewed(self) -> bool:
        renewed = self._dialer.renewed()
        self._vitals.certificates_renewed, self._vitals.certificates_refused = self._dialer.renewals
        return renewed

    def _settle(self, seq: int) -> None:
        # Only now is the collector back: one that welcomes and then fails would else be greeted five times a second.
        if self._away:
            log.info("collector %s is back; windows waiting: %d", self._target, self._spool.waiting)
        self._away, self._failures = "", 0
        self._spool.acknowledge(seq)

    def _set_aside(self, seq: int, window: bytes, reason: str) -> None:
        self._vitals.windows_refused += 1
        # A collector that refuses one may refuse them all.
        say = self._clock.monotonic() - self._refusal_said_at >= _SAY_AGAIN_SECONDS
        if say:
            self._refusal_said_at = self._clock.monotonic()
            what = "the collector refused window %d: %s; it is set aside in %s; refused since the start: %d"
            log.warning(what, seq, reason[:500], self._refused, self._vitals.windows_refused)
        try:
            self._refused.mkdir(mode=0o750, exist_ok=True)
            (self._refused / f"{seq}.window").write_bytes(window)
            kept = sorted(self._refused.glob("*.window"), key=lambda path: path.stat().st_mtime_ns)
            for old in kept[:-REFUSED_MAX]:
                old.unlink()
        except OSError as error:
            if say:
                log.warning("window %d cannot be set aside: %s", seq, error)


def _reason(error: grpc.RpcError) -> str:
    """The part of gRPC's text that names the cause."""
    return (error.details() or error.code().name).rpartition("last error: ")[2]
