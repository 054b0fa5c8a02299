"""Recipes: sections, files and overrides, and the strict reader."""
