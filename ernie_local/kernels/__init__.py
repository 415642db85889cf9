"""Computes operators: compiled code on the CPU, Triton on a GPU, plain torch where neither runs."""
