"""What every room needs and no room owns: errors, cache, progress, processes, devices. Nothing here quantizes."""
