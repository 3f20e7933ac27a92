"""An artifact with its proof as one folder, and the places it goes to. Only what passed the gate comes in."""
