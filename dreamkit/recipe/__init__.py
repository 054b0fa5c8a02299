"""Recipes: their files, their sections, and how the one becomes the other."""
