"""How often ADWIN looks for a change. Apart from its kernel, since numba takes 0.1 GB of memory, and not every fleet needs it."""

CLOCK = 32
"""After this many values of a stream."""
