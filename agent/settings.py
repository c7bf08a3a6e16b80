"""The settings file: TOML, one section a service, every key known, every error named."""

from __future__ import annotations

import errno
import os
import socket
import tomllib
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from trimtab import Exit, TrimtabError

Ratio = Annotated[float, msgspec.Meta(ge=0, le=1)]
# The upper bound keeps infinity out: nothing that trimtab waits for or counts is that large.
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
PositiveInt = Annotated[int, msgspec.Meta(gt=0)]
_PORT = r"(\d{1,4}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])"
Port = Annotated[str, msgspec.Meta(pattern=rf"^.+:{_PORT}$")]
UrlOrNone = Annotated[str, msgspec.Meta(pattern=r"^(https?://[^\s]+)?$")]
PortOrNone = Annotated[str, msgspec.Meta(pattern=rf"^(.+:{_PORT})?$")]

DISK_TROUBLE = {errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO}
"""What befalls a disk; the other errors are mistakes in how it is used."""

S = TypeVar("S")


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A section of the settings file. The comment below a field is its documentation (docs/settings.md is made from it)."""


class Tls(Section, frozen=True):
    """Certificates of this host, for every connection that leaves it. Without them trimtab keeps to loopback."""

    ca: str = ""
    """PEM file of the authority that signs every trimtab certificate."""
    certificate: str = ""
    """PEM file of this host's certificate; clients show theirs too."""
    key: str = ""
    """PEM file of its key."""


class AgentSettings(Section, frozen=True):
    """The agent: what it samples, how often, and where it sends it."""

    node: str = ""
    """Name of this node in the fleet; empty: the host name."""
    labels: dict[str, str] = {}
    """Free labels of the node. `rack` and `switch` say what it shares with others: what most of a rack suffers from is one incident."""
    collector: Port = "127.0.0.1:7470"
    """Where the collector listens."""
    window_seconds: Annotated[float, msgspec.Meta(ge=0.1, le=60)] = 1.0
    """Length of a window."""
    disable: tuple[str, ...] = ()
    """Names of collectors (docs/signals.md) to leave out."""
    talkers: bool = True
    """Whether addresses of the clients that send most requests leave this host (docs/talkers.md); they can be personal data."""
    sampling_probability: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Probability with which a request is sampled in the kernel; the agent lowers it to stay within its budget."""
    budget_cores: Annotated[float, msgspec.Meta(gt=0, le=1024)] = 0.01
    """CPU time that the agent may use with its probes, in cores; docs/overhead.md says what it gives up for that."""
    spool_bytes_max: Annotated[int, msgspec.Meta(ge=1 << 20)] = 256 << 20
    """Size of the on-disk spool; beyond it the oldest windows are dropped, and counted."""
    spool_age_seconds_max: Annotated[float, msgspec.Meta(ge=60, le=1e9)] = 7 * 86400.0
    """Age of a window in the spool; what is older is dropped, and counted."""
    metrics_listen: PortOrNone = "127.0.0.1:7472"
    """Where the agent's own metrics are served (docs/metrics.md), on loopback only; empty: nowhere."""


def default_node() -> str:
    """The node name where the settings give none."""
    return socket.gethostname()


def state_dir(argument: Path | None, required: bool = True) -> Path:
    """Where trimtab keeps its files: the argument, else systemd's, else /var/lib/trimtab for root and ~/.local/state for others.

    Raises TrimtabError when it cannot be written; where it is not `required`, a disk that is broken, full or read-only will do.
    """
    if argument is None:
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        by_system = os.environ.get("STATE_DIRECTORY") or ("/var/lib/trimtab" if os.geteuid() == 0 else "")
        argument = Path(by_system) if by_system else home / "trimtab"
    try:
        argument.mkdir(mode=0o750, parents=True, exist_ok=True)
        probe = argument / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        if not required and error.errno in DISK_TROUBLE:
            return argument
        message = f"state directory {argument}: {error.strerror}; give another one with --state"
        raise TrimtabError(message, Exit.STATE) from error
    return argument


def read(path: Path | None, into: type[S]) -> S:
    """The settings in `path`, or the defaults when it is None. Raises TrimtabError that names the file, the key and the remedy."""
    if path is None:
        return into()
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), into)
    except OSError as error:
        raise TrimtabError(f"settings file {path}: {error.strerror}", Exit.SETTINGS) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrimtabError(f"settings file {path}: not valid TOML: {error}", Exit.SETTINGS) from error
    except msgspec.ValidationError as error:
        what = str(error).replace(" - at `$.", " in `").replace(" - at `$`", "")
        for regex, words in ((f"^.+:{_PORT}$", "host:port"), (f"^(.+:{_PORT})?$", "host:port, or nothing")):
            what = what.replace(f"`str` matching regex '{regex}'".replace("\\", "\\\\"), words)
        raise TrimtabError(
            f"settings file {path}: {what}; every key is listed in docs/settings.md", Exit.SETTINGS
        ) from error
