"""Routing measured on a real fleet: balancers by themselves, and with trimtab, on the same requests."""
