"""NVIDIA GPUs, through NVIDIA's management library and the driver's lines in the kernel log (docs/gpu.md)."""
