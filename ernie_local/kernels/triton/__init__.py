"""Computes packed weights on NVIDIA GPUs, in Triton; what the kernels mean stands in kernels/reference.py.

Nothing here is imported before a GPU asks for it: kernels/gpu.py says whether it can be. Activations are not
rounded to int8 as on the CPU. No kernel asks the host for anything: pages are found by tables on the GPU.
"""
