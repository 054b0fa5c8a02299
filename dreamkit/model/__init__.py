"""The model: four parts composed, its losses, its adapters, and the documents it writes."""
