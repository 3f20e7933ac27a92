"""The things that all packages need: errors, cache, progress, processes, devices. Nothing here quantizes."""
