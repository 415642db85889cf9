"""Routed experts: where their weights lie and how tokens are brought to them."""
