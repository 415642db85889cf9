"""Where computing meets the machine: which kernels are installed. Knows no model and no checkpoint."""
