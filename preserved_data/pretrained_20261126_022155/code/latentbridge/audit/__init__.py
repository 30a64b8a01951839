"""Reads finished and unfinished runs, never trains: evaluation files, tables, verdicts and figures."""
