"""Data sets that dreamkit reads itself, and how several are mixed."""
