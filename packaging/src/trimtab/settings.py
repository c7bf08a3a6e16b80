"""The whole settings file: one section a service."""

from __future__ import annotations

from trimtab.actuator.settings import ActuatorSettings
from trimtab.agent.settings import AgentSettings, Section, Tls
from trimtab.collector.settings import CollectorSettings
from trimtab.detector.settings import DetectorSettings
from trimtab.rootcause.settings import RootcauseSettings


class Settings(Section, frozen=True):
    """/etc/trimtab/trimtab.toml"""

    agent: AgentSettings = AgentSettings()
    collector: CollectorSettings = CollectorSettings()
    detector: DetectorSettings = DetectorSettings()
    rootcause: RootcauseSettings = RootcauseSettings()
    actuator: ActuatorSettings = ActuatorSettings()
    tls: Tls = Tls()
