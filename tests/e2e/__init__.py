"""A real fleet on one machine: TorchServe behind HAProxy, under load, with faults that can be undone."""
