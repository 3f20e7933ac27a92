"""The command: one function for each subcommand, and the tables that a person sees. Nothing is decided here."""
