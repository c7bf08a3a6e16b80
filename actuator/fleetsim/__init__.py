"""A fleet of model-serving instances behind load balancers, simulated request by request (docs/fleetsim.md).

`scenario` says what happens, `fleet` lets it happen a second at a time under somebody's weights, `state` shows a second to policies and
the guard as they see a real fleet, and `env` is the same for reinforcement learning. The actuator never imports this folder: it
needs numba, which a load balancer's host has not.
"""
