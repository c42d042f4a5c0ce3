"""Other libraries' interfaces on top of ours, one module for each library."""
