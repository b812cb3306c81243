"""Which pairs a list shows and in what order, as it stands in the address: filters, search, sorting and page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlencode

ROWS_A_PAGE = 50
FILTERS = ("verdict", "reason", "source", "strategy", "kind", "labelled", "person_label", "round", "min_length",
           "max_length", "example_id")
# What would tell which side was chosen, or what the executor said of one.
REVEALING = ("verdict", "reason", "person_label", "chosen_length", "rejected_length", "length_difference", "chosen_logp",
             "rejected_logp", "chosen_verdict", "rejected_verdict", "chosen_reason", "rejected_reason")


class Selection(NamedTuple):
    """The state of a list; `page` counts from 0."""

    filters: dict[str, str]
    search: str = ""
    sort: str = ""
    descending: bool = False
    page: int = 0

    @classmethod
    def read(cls, query: Mapping[str, str], blind: bool) -> Selection:
        """The selection of an address. In blind mode filters and sorting that reveal the chosen side are left out."""
        hidden = REVEALING if blind else ()
        filters = {name: query[name].strip() for name in FILTERS if query.get(name, "").strip() and name not in hidden}
        page = query.get("page", "1")
        sort = query.get("sort", "")
        return cls(filters, query.get("search", "").strip()[:500], "" if sort in hidden else sort[:40],
                   query.get("order") == "down", min(int(page), 10**9) - 1 if page.isdecimal() and int(page) > 0 else 0)

    def arguments(self) -> dict:
        """What `Store.page` and `Store.neighbours` take."""
        return {"filters": self.filters, "search": self.search, "sort": self.sort, "descending": self.descending}

    def query(self, **changes: object) -> str:
        """The address's query with some values changed; "" or None takes one out. Another choice starts at page 1."""
        values: dict[str, object] = dict(self.filters)
        if self.search:
            values["search"] = self.search
        if self.sort:
            values["sort"] = self.sort
            if self.descending:
                values["order"] = "down"
        if self.page and not changes.keys() - {"page", "id", "after", "undone"}:
            values["page"] = self.page + 1
        values |= changes
        return urlencode({name: value for name, value in values.items() if value not in ("", None)})

    def sorted_by(self, column: str) -> str:
        """The query that sorts by a column: up, then down, then not at all."""
        if self.sort != column:
            return self.query(sort=column, order=None)
        return self.query(sort=None, order=None) if self.descending else self.query(sort=column, order="down")
