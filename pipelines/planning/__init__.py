"""The plan for a recipe and a checkpoint, made or refused before any weight is read. Nothing here holds a weight."""
