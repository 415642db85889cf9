"""Report tables: a title, figures by place and measure, sometimes with sums, and a line about them."""

from __future__ import annotations

from random import Random

from ernie_calibration.documents.draft import new_draft
from ernie_calibration.documents.language import Language
from ernie_calibration.documents.sheet import Column
from ernie_calibration.pictures.picture import Picture

KIND = "report table"
MOST_ROWS = 26


def make_report(random: Random, language: Language, held_out: bool) -> Picture:
    """A page with 3 to 5 columns of figures and as many rows as fit, 4 at least; sometimes their sums."""
    draft = new_draft(random, language, held_out, random.choice(("landscape", "landscape", "portrait")))
    sheet, names, asker = draft.sheet, draft.names, draft.asker
    title = names.choose(language.reports)
    author = names.company()
    sheet.put(title, bold=True, scale=1.4, align=random.choice(("left", "middle")))
    author_run = sheet.put(f"{author}, {names.date()}").part(author)
    sheet.skip(0.6)

    measures = random.sample(language.measures, random.randint(3, 5))
    count = draft.count(4, min(MOST_ROWS, sheet.lines_left() - 5))
    places: list[str] = []
    while len(places) < count:
        place = names.city()
        if place not in places:
            places.append(place)
    in_tenths = random.random() < 0.3
    show = language.tenths if in_tenths else language.whole
    top = random.choice((90, 900, 9000, 90_000))
    figures = [[random.randint(top // 20, top) for _ in measures] for _ in places]
    rows = [(place, *map(show, row)) for place, row in zip(places, figures, strict=True)]
    total = draft.label("sum")
    has_sums = random.random() < 0.5
    if has_sums:
        rows.append((total, *(show(sum(column)) for column in zip(*figures, strict=True))))
    columns = [Column(draft.label("branch"), 3), *(Column(measure, 2, "right") for measure in measures)]
    grid = sheet.table(columns, rows)
    sheet.skip(0.5)
    sheet.put(draft.label("page").format(random.randint(1, 4), random.randint(4, 9)), align="right")

    wanted = random.sample([(row, column) for row in range(count) for column in range(len(measures))], 5)
    questions = [asker.cell(places[row], measures[column], grid[row][column + 1]) for row, column in wanted]
    questions += [asker.count(count + has_sums), asker.sender(author_run)]
    if has_sums:
        column = random.randrange(len(measures))
        questions.append(asker.cell(total, measures[column], grid[-1][column + 1]))
    return draft.picture(KIND, questions)
