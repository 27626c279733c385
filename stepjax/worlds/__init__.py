"""Worlds that need no data from outside: the built-in task of the quickstart."""
