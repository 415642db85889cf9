"""Turns a folder of documents into records: one JSON line for each page, with confidence and checks."""
