"""The sources of signals, one a file; `trimtab.agent.registry` finds them."""
