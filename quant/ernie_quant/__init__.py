"""The quantizer: what turns a float checkpoint into a 4-bit or 2-bit one. Holds no code in this version."""
