"""The quantizer: a float checkpoint in, one in our own format out. So far by rounding to nearest."""
