"""From kernel calls to one canonical layout."""
