"""Makes short programs in several languages, and records as JSON, with random names; the code runs."""

from __future__ import annotations

import json
from random import Random

from ernie_calibration.documents.names import DocumentNames
from ernie_calibration.names import of_world
from ernie_calibration.sample import SampleTurn

FIELDS = ("price", "weight", "stock", "age", "score", "length", "rating", "volume")


def make_program(random: Random, names: DocumentNames) -> SampleTurn:
    """One of this world's tasks; comments and texts in the program carry drawn names."""
    return random.choice(of_world(MAKERS, names.held_out))(random, names)


def _identifier(names: DocumentNames) -> str:
    """A name as programs write it, in letters of any script: Python and JavaScript allow them."""
    return names.item().lower().replace("-", "_").replace(" ", "_")


def _filter(random: Random, names: DocumentNames) -> SampleTurn:
    thing, field, limit = _identifier(names), random.choice(FIELDS), random.randint(5, 500)
    question = (
        f"Write a Python function that keeps every {thing} whose {field} is over {limit}, highest first."
    )
    answer = f"""```python
def select_{thing}(records: list[dict[str, float]]) -> list[dict[str, float]]:
    \"\"\"Every {thing} whose {field} is over {limit}, highest first.\"\"\"
    kept = [record for record in records if record["{field}"] > {limit}]
    return sorted(kept, key=lambda record: record["{field}"], reverse=True)
```
The list is filtered first, so that only what is kept has to be sorted."""
    return SampleTurn(question, answer, "text")


def _class(random: Random, names: DocumentNames) -> SampleTurn:
    thing = _identifier(names)
    fields = random.sample(FIELDS, random.randint(2, 4))
    lines = ["```python", "from dataclasses import dataclass", "", "", "@dataclass(frozen=True)"]
    lines += [f"class {thing.capitalize()}:", f'    """A {thing} of {names.company()}."""', ""]
    lines += [f"    {field}: float" for field in fields]
    lines += ["", f"    def is_better_than(self, other: '{thing.capitalize()}') -> bool:"]
    lines += [f"        return self.{fields[0]} > other.{fields[0]}", "```"]
    return SampleTurn(
        f"Write a Python class for a {thing} with {', '.join(fields)}.", "\n".join(lines), "text"
    )


def _query(random: Random, names: DocumentNames) -> SampleTurn:
    table, (first, second) = _identifier(names), random.sample(FIELDS, 2)
    city, limit = names.city(), random.randint(2, 90)
    question = f"Write an SQL query: from the table {table}, the average {first} by city, without {city}, "
    question += f"only where the {second} is at least {limit}."
    answer = f"""```sql
SELECT city, AVG({first}) AS average_{first}, COUNT(*) AS number
FROM {table}
WHERE city <> '{city}' AND {second} >= {limit}
GROUP BY city
ORDER BY average_{first} DESC;
```
Rows are chosen by WHERE before they are grouped."""
    return SampleTurn(question, answer, "text")


def _loop(random: Random, names: DocumentNames) -> SampleTurn:
    thing, field, step = _identifier(names), random.choice(FIELDS), random.randint(2, 9)
    question = f"Write a JavaScript function that adds up the {field} of every {step}th {thing}."
    answer = f"""```javascript
function total_{thing}(records) {{
  let total = 0;
  for (let index = {step - 1}; index < records.length; index += {step}) {{
    total += records[index].{field};
  }}
  return total;
}}
```
Counting begins at {step - 1}, because the first record has the index 0."""
    return SampleTurn(question, answer, "text")


def _record(random: Random, names: DocumentNames) -> SampleTurn:
    person, company, date = names.person(), names.company(), names.date()
    items = [
        {"article": item, "quantity": random.randint(1, 30), "cents": names.cents()}
        for item in names.items(random.randint(1, 4))
    ]
    told = "; ".join(f"{item['quantity']} x {item['article']} at {item['cents']} cents" for item in items)
    question = (
        f"Turn this order into JSON. {person} of {company}, {names.phone()}, orders: {told}. Date: {date}. "
        "Leave the telephone number out."
    )
    record = {"name": person, "company": company, "items": items, "date": date}
    return SampleTurn(question, json.dumps(record, ensure_ascii=False, indent=2), "text")


MAKERS = (_filter, _class, _query, _loop, _record)
