"""One thin script a stage: parse the name, load, call, save."""
