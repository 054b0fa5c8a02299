"""The check that a recipe's parts fit each other, and the model built of them."""
