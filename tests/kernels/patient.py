"""A plugin of pytest for an emulated processor, on which the eBPF compiler takes a minute."""

from trimtab.agent.bpf import loader

loader.DEADLINE_SECONDS = 300.0
