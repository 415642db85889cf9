"""Replays recorded routing through the paging policy, without weights: for people who study the policy."""
