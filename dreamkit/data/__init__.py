"""Data sets and their mixture; a document becomes a sequence, and sequences become a batch."""
