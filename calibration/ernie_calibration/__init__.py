"""What models are tried and calibrated with: documents and charts from a seed, and questions on them."""
