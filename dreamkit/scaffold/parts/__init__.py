"""The parts that `dreamkit new-plugin` copies into a package; it renames `NewPart`."""
