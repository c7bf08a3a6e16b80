"""trimtab's services as processes of their own, on ports of their own, with their state below one directory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.e2e.processes import free_ports, stop_group
from trimtab import Exit, TrimtabError

NODE = "demo"
_CONFIG = """\
[agent]
node = "{node}"
collector = "127.0.0.1:{port}"

[collector]
listen = "127.0.0.1:{port}"

[actuator]
listen = "127.0.0.1:{feed}"
collector = "127.0.0.1:{port}"
haproxy_sockets = [{sockets}]
"""


@dataclass(frozen=True, slots=True)
class Installation:
    """One trimtab: its settings file, its state, and where its collector listens."""

    config: Path
    state: Path
    collector: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of its services, besides this process's own."""
    xds: str = ""
    """Where its actuator tells endpoints and weights to who asks; empty: nowhere."""

    def idle(self) -> Installation:
        """The same, but that its actuator leaves every weight neutral."""
        config = self.config.with_suffix(".idle.toml")
        # The section of the actuator is the last.
        config.write_text(self.config.read_text() + 'mode = "neutral"\n')
        return replace(self, config=config)

    @contextmanager
    def run(self, service: str, ready_seconds: float = 30) -> Iterator[subprocess.Popen[bytes]]:
        """`trimtab agent`, `collector` or `actuator`, once it says that it is ready; stopped on the way out.

        Raises TrimtabError with the service's own last line when it ends or is not ready in time.
        """
        log = self.state / f"{service}.log"
        with _Notified(self.state / f"{service}.notify") as notified, log.open("wb") as out:
            process = subprocess.Popen(
                [*self._command(), service, "--state", str(self.state)],
                env={**os.environ, **self.environment, "NOTIFY_SOCKET": str(notified.path)},
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                deadline = time.monotonic() + ready_seconds
                while not notified.ready():
                    self.check(service, process)
                    if time.monotonic() > deadline:
                        raise TrimtabError(
                            f"trimtab {service} is not ready after {ready_seconds:.0f} s: {_last_line(log)}"
                        )
                yield process
            finally:
                stop_group(process, 12)

    def check(self, service: str, process: subprocess.Popen[bytes]) -> None:
        """Raises TrimtabError when the service has ended."""
        if process.poll() is not None:
            message = f"trimtab {service} ended with exit code {process.returncode}: {_last_line(self.state / f'{service}.log')}"
            raise TrimtabError(message, Exit.INTERNAL)

    def command(self, *arguments: str, columns: int, colour: bool) -> str:
        """What `trimtab ARGUMENTS` prints."""
        environment = {**os.environ, "COLUMNS": str(columns), **({"FORCE_COLOR": "1"} if colour else {"NO_COLOR": "1"})}
        done = subprocess.run(
            [*self._command(), *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout if done.returncode == 0 else f"trimtab {' '.join(arguments)}: {done.stderr.strip()}\n"

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "trimtab", "--config", str(self.config)]


def install(
    directory: Path, haproxy_socket: Path | None, policy: str | None = None, limit: bool = False
) -> Installation:
    """Settings for a trimtab of this machine that steers one HAProxy, by the policy and the lever that are named; all else is the default.

    Without a socket it steers who asks at `xds`.
    """
    state, config, port = directory / "trimtab", directory / "trimtab.toml", free_ports(3)
    state.mkdir()
    xds = "" if haproxy_socket else f"127.0.0.1:{port + 2}"
    sockets = f'"{haproxy_socket}"' if haproxy_socket else ""
    settings = _CONFIG.format(node=NODE, port=port, feed=port + 1, sockets=sockets)
    more = {"policy": policy, "xds_listen": xds}
    lines = [f'{name} = "{value}"\n' for name, value in more.items() if value]
    lines += ["haproxy_limit = true\n"] if limit else []
    config.write_text(settings + "".join(lines))
    return Installation(config, state, f"127.0.0.1:{port}", xds=xds)


class _Notified:
    """The receiving end of sd_notify(3)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _Notified:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.settimeout(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self.path.unlink()

    def ready(self) -> bool:
        """Whether the service has said so; waits a moment."""
        try:
            return b"READY=1" in self._socket.recv(4096)
        except TimeoutError:
            return False


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it logged nothing"
