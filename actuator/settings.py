"""Settings of the actuator and of its guard."""

from __future__ import annotations

from typing import Literal

from trimtab.agent.settings import Port, PortOrNone, Positive, Ratio, Section


class GuardSettings(Section, frozen=True):
    """The bounds that no policy can cross."""

    weight_min: Ratio = 0.005
    """Smallest share of its neutral weight that an instance keeps, so that its recovery can be seen."""
    step_down_max: Ratio = 0.5
    """Most that a weight may fall in one second."""
    step_up_max: Ratio = 0.05
    """Most that a weight may rise in one second."""
    drained_share_max: Ratio = 0.5
    """Most that may be taken away of a model's neutral shares where it is not known what each instance can carry; its instances count
    alike, whatever their configured weights."""
    drained_share_max_spare: Ratio = 1.0
    """The same where it is known, and what is left carries the load."""
    capacity_margin: Ratio = 0.25
    """How much more than the present load what is left must carry, before more is taken away."""
    stale_seconds: Positive = 10.0
    """Age of the collector's word, and of an instance's telemetry, beyond which weights are neutral."""
    trial_margin: Ratio = 0.02
    """How much dearer than at neutral weights requests may be in the long run; beyond it, once that is sure, steering is suspended."""
    trial_seconds: Positive = 120.0
    """How often steering is compared with neutral weights at first; ever more rarely as long as nothing speaks against it."""
    breaker_margin: Ratio = 0.2
    """How much worse than at neutral weights the fleet may become before the guard falls back to neutral."""
    breaker_seconds: Positive = 60.0
    """How long it then stays neutral; doubled each time in a row."""


class ActuatorSettings(Section, frozen=True):
    """The actuator: what it listens to, what it steers, and within which bounds."""

    listen: Port = "127.0.0.1:7471"
    """Where the routing feed (WatchRouting) is served."""
    collector: Port = "127.0.0.1:7470"
    """Where the collector listens."""
    node: str = ""
    """Name of this host in the fleet; empty: as `agent.node`. Loopback addresses of another node are not this host's."""
    mode: Literal["active", "shadow", "neutral"] = "active"
    """active: steer; shadow: decide and record, but keep weights neutral; neutral: keep weights neutral."""
    policy: str = "split"
    """Which policy wishes for weights (docs/routing.md)."""
    haproxy_sockets: tuple[str, ...] = ("auto",)
    """HAProxy Runtime API sockets; "auto" finds those of the HAProxy processes on this host; [] for none."""
    haproxy_limit: bool = False
    """Whether an instance gets no more requests at once than it has workers; others wait in HAProxy, where any instance can take them
    (docs/routing.md)."""
    haproxy_agent_listen: PortOrNone = ""
    """Where HAProxy's agent checks ask for weights (docs/routing.md), on loopback only, such as 127.0.0.1:7474; empty: nowhere."""
    xds_listen: PortOrNone = ""
    """Where Envoy and xds:/// clients of gRPC ask for endpoints and weights (docs/routing.md), such as 127.0.0.1:7475; empty: nowhere."""
    xds_networks: tuple[str, ...] = ()
    """Networks in which they reach instances, such as "10.0.0.0/8", where an instance has addresses in several."""
    guard: GuardSettings = GuardSettings()
