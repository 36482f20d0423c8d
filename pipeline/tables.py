"""The tables that the job writes, each declared once.

A new table needs an entry here and its files in templates/bigquery: `<name>.json`, and `<view>.sql` if it
has a view. Whatever lists tables reads this registry.
"""

from typing import NamedTuple


class Table(NamedTuple):
    """A table: `key` are the columns that identify a row across its versions.

    `view` shows the current rows; None if readers need no view.
    """

    name: str
    key: tuple[str, ...]
    view: str | None


TABLES = {
    table.name: table
    for table in (
        Table("adherence", ("patient_id", "week_start"), "adherence_current"),
        Table("quality", ("patient_id", "exercise_id"), "quality_current"),
        Table("work_queue", ("patient_id", "item_id"), "work_queue_current"),
        Table("consents", ("patient_id",), None),
        Table("dead_letters", ("dead_letter_id",), "dead_letters_current"),
    )
}
