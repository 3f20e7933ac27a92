"""What a recipe makes of a checkpoint, decided and refused before any weight is read. Nothing here holds a weight."""
