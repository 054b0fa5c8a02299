"""Folders, paths and pretrained files on disk. Nothing here loads torch."""
