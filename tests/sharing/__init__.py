"""One socket used by several: threads, duplicated descriptors, processes, programs."""
