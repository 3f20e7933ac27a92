"""The README, the documents, the workflows and the wheel."""
