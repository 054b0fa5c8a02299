"""Folders, paths and pretrained files on disk. No file here loads torch."""
