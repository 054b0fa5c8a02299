"""Plug-ins: found by their entry points, loaded in isolation, and looked up by name."""
