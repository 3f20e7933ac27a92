"""The order of the stages, runs of several recipes and models, and what follows a refusal. No stage is done here."""
