"""Data sets and their mixture; the conversion of documents to sequences, and of sequences to batches."""
