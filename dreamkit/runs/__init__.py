"""The folder of a run: its files, what they say, and pages that show it. No module here loads torch."""
