"""gradscope in other people's frameworks: one module for each, loaded only when it is imported."""
