"""The servers that artifacts go to: what loads where, and the configs that serve it. No server is started here."""
