"""Where a TorchServe listens and what its management API wants to see: from its command, its environment and its files."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import msgspec

from trimtab.agent.runtimes.process import ProcessInfo

DEFAULTS = {
    "inference": "http://127.0.0.1:8080",
    "management": "http://127.0.0.1:8081",
    "metrics": "http://127.0.0.1:8082",
}
GRPC_PORT = 7070
PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
PROPERTY = re.compile(r"((?:\\.|[^#!=:\s\\])(?:\\.|[^=:\s\\])*)\s*[=:\s]\s*(.*)")
ESCAPED = re.compile(r"\\(.)")
TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


def read(process: ProcessInfo) -> dict[str, str]:
    """Its settings file, which TorchServe looks for in this order; empty where there is none."""
    path = process.environment("TS_CONFIG_FILE") or process.option("-f", "--ts-config-file") or "config.properties"
    try:
        return properties(process.text(path))
    except FileNotFoundError:
        return {}


def grpc_port(process: ProcessInfo, settings: dict[str, str]) -> int:
    """Where it takes requests by gRPC; 0 for nowhere."""
    text = settings.get("grpc_inference_port") or str(GRPC_PORT)
    if settings.get("enable_envvars_config") == "true":
        text = process.environment("TS_GRPC_INFERENCE_PORT") or text
    return int(text) if PORT.fullmatch(text) else 0


def urls(process: ProcessInfo, settings: dict[str, str]) -> dict[str, str]:
    """The configured address of each role."""
    found = {role: settings.get(f"{role}_address") or url for role, url in DEFAULTS.items()}
    if settings.get("enable_envvars_config") == "true":
        found = {role: process.environment(f"TS_{role.upper()}_ADDRESS") or url for role, url in found.items()}
    return found


def port(url: str) -> int:
    """0 where the URL has none, as with a Unix socket."""
    try:
        parts = urlsplit(url)
        return parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        return 0


def properties(text: str) -> dict[str, str]:
    """A .properties file of Java."""
    matches = (PROPERTY.fullmatch(line.strip()) for line in text.splitlines())
    return {ESCAPED.sub(r"\1", m[1]): ESCAPED.sub(r"\1", m[2]) for m in matches if m}


def headers(process: ProcessInfo) -> dict[str, str]:
    """The management token, from the file that TorchServe writes into its working directory unless that is switched off."""
    try:
        keys = msgspec.json.decode(process.text("key_file.json", follow=False), type=dict[str, dict[str, str]])
    except (OSError, msgspec.MsgspecError, RecursionError):
        return {}
    token = keys.get("management", {}).get("key", "")
    return {"Authorization": f"Bearer {token}"} if TOKEN.fullmatch(token) else {}
