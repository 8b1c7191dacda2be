"""Record: rows in, frames out; in memory or in a folder of Parquet files. Loads nothing heavy until it is used."""

from gradscope.record.find import load
from gradscope.record.fleet import Fleet
from gradscope.record.memory import MemoryStore
from gradscope.record.parquet import ParquetStore
from gradscope.record.run import Joined, Run, Source
from gradscope.record.schema import SCHEMA_VERSION, TABLES, Table

__all__ = [
    "SCHEMA_VERSION",
    "TABLES",
    "Fleet",
    "Joined",
    "MemoryStore",
    "ParquetStore",
    "Run",
    "Source",
    "Table",
    "load",
]
