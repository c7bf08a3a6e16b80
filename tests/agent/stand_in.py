"""Small real processes whose command lines are those of Triton and vLLM, and which say what such servers say."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
EXPOSITIONS = HERE / "expositions"
SCRIPT = HERE / "serve_exposition.py"


@dataclass
class StandIn:
    """A server that says what is in its file."""

    pid: int
    ports: list[int]
    file: Path

    def say(self, exposition: str | bytes) -> None:
        """The name of a recorded exposition, or one itself."""
        text = (EXPOSITIONS / exposition).read_bytes() if isinstance(exposition, str) else exposition
        self.file.write_bytes(text)


@contextmanager
def stand_in(
    tmp: Path,
    count: int,
    command: Callable[[list[int]], list[str]],
    exposition: str,
    host: str = "127.0.0.1",
    **more: str,
) -> Iterator[StandIn]:
    """Runs this very Python under the name `command(ports)[0]`, with sockets that it gets from us: no port is taken twice."""
    file = tmp / "exposition"
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((host, 0))) for _ in range(count)]
        ports = [each.getsockname()[1] for each in sockets]
        descriptors = [each.fileno() for each in sockets]
        # Under another name, Python does not find its library by itself.
        env = os.environ | {"PYTHONHOME": sys.base_prefix, "EXPOSITION": str(file)} | more
        process = subprocess.Popen(
            command(ports),
            executable=sys.executable,
            env=env | {"SOCKETS": ",".join(map(str, descriptors))},
            cwd=tmp,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=descriptors,
        )
    with process:
        try:
            server = StandIn(process.pid, ports, file)
            server.say(exposition)
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield server
        finally:
            process.kill()


@contextmanager
def triton(tmp: Path, exposition: str = "triton_25.12_loaded.txt", *flags: str) -> Iterator[StandIn]:
    """Its ports: HTTP, gRPC, metrics."""

    def command(ports: list[int]) -> list[str]:
        given = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
        return ["/opt/tritonserver/bin/tritonserver", str(SCRIPT), "--model-repository", "/models", *given, *flags]

    with stand_in(tmp, 3, command, exposition) as server:
        yield server


@contextmanager
def vllm(
    tmp: Path, exposition: str = "vllm_0.28_full_cache.txt", *flags: str, host: str = "127.0.0.1", **more: str
) -> Iterator[StandIn]:
    """`vllm` is a script that Python is given."""
    script = tmp / "vllm"
    shutil.copy(SCRIPT, script)

    def command(ports: list[int]) -> list[str]:
        return [sys.executable, str(script), "serve", "facebook/opt-125m", "--port", str(ports[0]), *flags]

    with stand_in(tmp, 1, command, exposition, host, CHUNKED="1", **more) as server:
        yield server
