"""The rules, one a file: tables in, findings out."""
