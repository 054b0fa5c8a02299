"""The model: four parts composed, its losses, its adapters, and its generation of documents."""
