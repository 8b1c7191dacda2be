"""Record: rows in, frames out; in memory or in a folder of Parquet files. Loads nothing heavy until it is used."""

from gradscope.record.memory import MemoryStore
from gradscope.record.parquet import ParquetStore
from gradscope.record.run import Joined, Run, Source, load
from gradscope.record.schema import SCHEMA_VERSION, TABLES, Table

__all__ = ["SCHEMA_VERSION", "TABLES", "Joined", "MemoryStore", "ParquetStore", "Run", "Source", "Table", "load"]
