"""A run directory and what its stages share."""
