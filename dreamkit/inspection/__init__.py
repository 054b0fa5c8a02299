"""The data of a recipe as its model sees it, without weights."""
