"""One file for each kind of data set, and what they share; `data.build` knows them by name."""
