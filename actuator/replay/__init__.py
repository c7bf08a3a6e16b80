"""An incident of the past in a simulated fleet: what would each policy have done to the users (docs/replay.md)?

`record` reads what happened, `scene` makes a scenario of it and names what it had to assume, `run` plays it under each policy, and `cli`
tells. The actuator never imports this folder: it needs numba, which a load balancer's host has not.
"""
