"""One module for each command or small family of commands. What does the work is imported when a command runs."""
