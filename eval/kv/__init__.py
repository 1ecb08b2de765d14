"""What cutting the cache, or reading a part of it, changes in answers of the bundled pair."""
