"""The parts that `dreamkit new-plugin` starts a package with: each file is copied, `NewPart` renamed."""
