"""Makes exercises: sums told in words and solved step by step, short programs, records as JSON.

The code of an answer runs. Each maker returns a question and its answer.
"""

from __future__ import annotations

import json
from random import Random

from ernie_calibration.documents.names import DocumentNames
from ernie_calibration.names import of_world

ASK = ("Show each step.", "Work it out step by step.", "Explain how you get there.", "Show your working.")
FIELDS = ("price", "weight", "stock", "age", "score", "length", "rating", "volume")


def make_sum(random: Random, names: DocumentNames) -> tuple[str, str]:
    """One of this world's kinds of sums, always in English."""
    question, answer = random.choice(of_world(SUMS, names.held_out))(random, names)
    return f"{question} {names.choose(ASK)}", answer


def _purchase(random: Random, names: DocumentNames) -> tuple[str, str]:
    items = names.items(random.randint(2, 5))
    bought = [(item, random.randint(2, 19), random.randint(3, 95)) for item in items]
    listing = ", ".join(f"{count} of {item} at {price} euros each" for item, count, price in bought)
    lines = [f"{item}: {count} * {price} = {count * price}" for item, count, price in bought]
    sums = [count * price for _, count, price in bought]
    lines.append(f"Together: {' + '.join(map(str, sums))} = {sum(sums)}")
    buyer = names.person()
    lines.append(f"{buyer} pays {sum(sums)} euros.")
    return f"{buyer} buys {listing}. How much is it in all?", "\n".join(lines)


def _discount(random: Random, names: DocumentNames) -> tuple[str, str]:
    price, percent = random.randint(3, 90) * 20, random.choice((5, 10, 15, 20, 25, 30, 40))
    off = price * percent // 100
    item, shop = names.item(), names.company()
    question = (
        f"At {shop} the article {item} costs {price} euros and is reduced by {percent} percent. What is left?"
    )
    answer = (
        f"One percent of {price} is {price / 100:g}.\n"
        f"{percent} percent are {percent} * {price / 100:g} = {off}.\n"
        f"{price} - {off} = {price - off}.\nThe article {item} now costs {price - off} euros."
    )
    return question, answer


def _average(random: Random, names: DocumentNames) -> tuple[str, str]:
    count = random.randint(3, 7)
    values = [random.randint(4, 180) for _ in range(count - 1)]
    values.append(count * random.randint(1, 30) + -sum(values) % count)  # so that the average is whole
    total = sum(values)
    lines = [f"There are {count} numbers.", f"Their sum: {' + '.join(map(str, values))} = {total}"]
    lines += [f"Divided: {total} / {count} = {total // count}", f"The average is {total // count}."]
    places = ", ".join(f"{names.city()} {value}" for value in values)
    return f"Visitors by town: {places}. What is the average?", "\n".join(lines)


def _journey(random: Random, names: DocumentNames) -> tuple[str, str]:
    speed, hours, extra = random.randint(4, 22) * 5, random.randint(2, 9), random.randint(1, 3) * 15
    first, second = names.city(), names.city()
    part = speed * extra / 60
    question = (
        f"A train runs from {first} to {second} at {speed} kilometres an hour and takes {hours} hours and "
        f"{extra} minutes. How long is the way?"
    )
    answer = (
        f"In {hours} hours: {hours} * {speed} = {hours * speed} km.\n"
        f"{extra} minutes are {extra / 60:g} of an hour: {extra / 60:g} * {speed} = {part:g} km.\n"
        f"{hours * speed} + {part:g} = {hours * speed + part:g}.\n"
        f"The way is {hours * speed + part:g} km long."
    )
    return question, answer


def _boxes(random: Random, names: DocumentNames) -> tuple[str, str]:
    total, size = random.randint(150, 990), random.randint(7, 24)
    full, rest = divmod(total, size)
    item = names.item()
    answer = (
        f"{total} / {size} is {full} with a remainder.\n{full} * {size} = {full * size}.\n"
        f"{total} - {full * size} = {rest}.\nSo {full} boxes are full and {rest} pieces are left."
    )
    question = f"{total} pieces of {item} go into boxes of {size}. How many are filled? What is left?"
    return question, answer


SUMS = (_purchase, _discount, _average, _journey, _boxes)


def make_program(random: Random, names: DocumentNames) -> tuple[str, str]:
    """One of this world's tasks; comments and texts in the program carry drawn names."""
    return random.choice(of_world(PROGRAMS, names.held_out))(random, names)


def _identifier(names: DocumentNames) -> str:
    """A name as programs write it, in letters of any script: Python and JavaScript allow them."""
    return names.item().lower().replace("-", "_").replace(" ", "_")


def _filter(random: Random, names: DocumentNames) -> tuple[str, str]:
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
    return question, answer


def _class(random: Random, names: DocumentNames) -> tuple[str, str]:
    thing = _identifier(names)
    fields = random.sample(FIELDS, random.randint(2, 4))
    lines = ["```python", "from dataclasses import dataclass", "", "", "@dataclass(frozen=True)"]
    lines += [f"class {thing.capitalize()}:", f'    """A {thing} of {names.company()}."""', ""]
    lines += [f"    {field}: float" for field in fields]
    lines += ["", f"    def is_better_than(self, other: '{thing.capitalize()}') -> bool:"]
    lines += [f"        return self.{fields[0]} > other.{fields[0]}", "```"]
    return f"Write a Python class for a {thing} with {', '.join(fields)}.", "\n".join(lines)


def _query(random: Random, names: DocumentNames) -> tuple[str, str]:
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
    return question, answer


def _loop(random: Random, names: DocumentNames) -> tuple[str, str]:
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
    return question, answer


def _record(random: Random, names: DocumentNames) -> tuple[str, str]:
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
    return question, json.dumps(record, ensure_ascii=False, indent=2)


PROGRAMS = (_filter, _class, _query, _loop, _record)
