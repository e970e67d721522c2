"""What aime24.yaml needs of Python."""

from ets.tasks.aime24 import process_docs, process_results

__all__ = ["process_docs", "process_results"]
