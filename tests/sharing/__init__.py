"""One socket in the hands of several: threads, copies, processes, programs."""
