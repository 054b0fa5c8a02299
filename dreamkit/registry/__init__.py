"""Plug-ins: found, loaded apart from each other, and asked for components by name."""
