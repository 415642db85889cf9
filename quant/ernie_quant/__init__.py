"""The quantizer: from a float checkpoint to a compact one. So far: rounding of one matrix (rtn.py)."""
