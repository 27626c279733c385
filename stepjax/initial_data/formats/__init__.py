"""Public formats to records and back; `sources` lists them by name."""
