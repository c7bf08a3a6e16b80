"""The fleet simulator measured: its speed, and its figures beside those of real balancers (docs/fleetsim.md)."""
