"""The parts and the data set that `dreamkit new-plugin` copies into a package; it renames `NewPart`."""
