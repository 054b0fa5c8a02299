"""Parts that fit each other, and the model that is built of them."""
