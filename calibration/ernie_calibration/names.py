"""Draws names, places, dates and amounts, each from one of two worlds: calibration or held out.

A name belongs to a world by a hash of its letters, so that one that stands in two lists belongs to the same
world. No name printed on a held-out image is printed on any other image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar
from zlib import crc32

HELD_OUT_SHARE = 8  # one name in eight
HELD_OUT_EVERY = 4  # one choice of a list in four
TRAINING_INVENTED_SHARE = 0.75

Choice = TypeVar("Choice")

ITEMS = (
    "Apple Banana Bread Butter Cable Candle Carpet Chair Cheese Clock Coffee Cotton Cup Curtain Desk Door "
    "Drill Egg Engine Eraser Fan Fence Filter Flour Folder Fork Frame Garlic Glass Glove Glue Grape Hammer "
    "Handle Hat Helmet Honey Hose Ink Iron Jacket Jam Jar Kettle Key Knife Ladder Lamp Laptop Lemon Light "
    "Lock Magnet Mango Marker Mat Milk Mirror Monitor Motor Mouse Mug Nail Needle Notebook Nut Oil Olive "
    "Onion Orange Oven Paint Pan Paper Pasta Pear Pen Pencil Pepper Phone Pillow Pipe Plate Plug Pot Printer "
    "Pump Radio Rice Ring Rope Ruler Salt Sauce Scale Scarf Screen Screw Shelf Shirt Shoe Soap Sock Sofa "
    "Spoon Stamp Stapler Stool Stove String Sugar Switch Table Tape Tea Tent Tile Timer Toner Tool Towel "
    "Tray Tube Valve Vase Wheel Wire Wood Wool Yarn Zipper Basket Battery Bench Bolt Bottle Bowl Box Brush "
    "Bucket Button Camera Card Chain Charger Cloth Coat Comb Cooker Cork"
).split()
SURNAMES = (
    "Adler Baker Barnes Becker Bell Berg Blake Bond Brandt Brook Burke Carter Chen Clark Cohen Cole Cruz "
    "Dahl Davis Diaz Dunn Egan Ellis Evans Fischer Flynn Ford Fox Frank Garcia Gibson Grant Gray Haas Hahn "
    "Hall Hansen Harris Hart Hayes Hill Hoffman Horn Hughes Ivanov Jensen Jones Kaiser Kane Keller Kelly "
    "Khan Kim King Klein Koch Kumar Lang Larsen Lee Lewis Lopez Lynch Maier Marsh Martin Mason Meyer Miller "
    "Moore Moreno Morgan Nash Nelson Nolan Novak Olsen Ortiz Owens Park Patel Perez Peters Price Quinn Ramos "
    "Reed Reyes Rice Rivera Roth Ruiz Russo Sato Schmidt Scott Silva Simon Singh Smith Stone Suzuki Tanaka "
    "Taylor Torres Turner Vance Vega Vogel Wagner Walker Wang Ward Weber West White Wolf Wong Wood Wright "
    "Young Zhang Ziegler"
).split()
FIRST_NAMES = (
    "Ada Alan Alice Amir Anna Ben Boris Carla Carl Clara Dan Dora Elena Emil Emma Eric Eva Felix Fiona Frida "
    "Gina Greta Hana Hans Helen Hugo Ida Igor Ines Ivan Jack James Jana Jane Jonas Julia Karen Kenji Lara "
    "Leo Lena Liam Lily Lina Louis Lucas Lucy Luis Maria Marco Mark Mary Max Maya Mia Milan Mona Nadia Nick "
    "Nina Nora Olga Omar Oscar Otto Paul Pedro Peter Petra Rita Robert Rosa Ruth Sam Sara Simon Sofia Tanja "
    "Tara Theo Tim Tina Tom Vera Victor Wendy Yuki Zoe"
).split()
CITIES = (
    "Athens Austin Basel Berlin Bern Bonn Boston Bremen Cairo Calgary Chicago Dallas Delhi Denver Dublin "
    "Essen Geneva Ghent Graz Hamburg Hanoi Helsinki Kiel Kyoto Leeds Leipzig Lima Lisbon London Lyon Madrid "
    "Malmo Manila Miami Milan Munich Nairobi Naples Nice Osaka Oslo Oxford Paris Perth Porto Prague Quito "
    "Riga Rome Seoul Seville Sofia Sydney Tampa Tokyo Toronto Turin Utrecht Venice Vienna Warsaw York Zagreb "
    "Zurich"
).split()
COMPANY_ENDINGS = ("Ltd", "Inc", "GmbH", "Co", "& Sons", "Group", "Shop", "Trade", "Supply", "Works")
MONTHS = "January February March April May June July August September October November December".split()
SHORT_MONTHS = tuple(month[:3] for month in MONTHS)
_ONSETS = "b c d f g h j k l m n p r s t v w z br ch cl cr dr fl gr kr pl pr sh sk sl st th tr".split()
_VOWELS = "a e i o u a e i o ai ea ee ie oa oo ou".split()
_CODAS = " l m n r s t x ck ld lt mp nd ng nt rd rk rn st".split(" ")


def is_held_out(name: str) -> bool:
    """Whether `name` belongs to the held-out world."""
    return crc32(name.lower().encode()) % HELD_OUT_SHARE == 0


class NameSource:
    """Draws names of one world. `random` decides everything, so equal seeds draw equal names."""

    def __init__(self, random: Random, held_out: bool) -> None:
        self.random = random
        self.held_out = held_out

    def _of(self, words: list[str], invented_share: float) -> str:
        # A model that has learnt the word list by heart reads no word that is not on it.
        share = invented_share if self.held_out else max(invented_share, TRAINING_INVENTED_SHARE)
        while True:
            invented = self.random.random() < share
            name = self.invented_word() if invented else self.random.choice(words)
            if is_held_out(name) == self.held_out:
                return name

    def invented_word(self) -> str:
        """A pronounceable word of two syllables, of either world."""
        choice = self.random.choice
        word = choice(_ONSETS) + choice(_VOWELS) + choice(_ONSETS) + choice(_VOWELS) + choice(_CODAS)
        return word[:8].capitalize()

    def item(self) -> str:
        """A thing that is sold."""
        return self._of(ITEMS, 0.4)

    def items(self, count: int) -> list[str]:
        """`count` different things."""
        return different(count, self.item)

    def first_name(self) -> str:
        """A person's first name."""
        return self._of(FIRST_NAMES, 0.2)

    def surname(self) -> str:
        """A family name."""
        return self._of(SURNAMES, 0.4)

    def city(self) -> str:
        """A place."""
        return self._of(CITIES, 0.3)

    def company(self) -> str:
        """A vendor: a name and an ending."""
        return f"{self.surname()} {self.random.choice(COMPANY_ENDINGS)}"

    def date(self) -> str:
        """A date in one of four printed forms."""
        random = self.random
        year, month, day = random.randint(2015, 2029), random.randint(1, 12), random.randint(1, 28)
        forms = (
            f"{year}-{month:02d}-{day:02d}",
            f"{day:02d}.{month:02d}.{year}",
            f"{month:02d}/{day:02d}/{year}",
            f"{day} {SHORT_MONTHS[month - 1]} {year}",
        )
        return random.choice(forms)

    def document_number(self) -> str:
        """A number as printed on invoices: digits, sometimes with a letter prefix."""
        random = self.random
        digits = str(random.randint(100, 999999))
        return random.choice(("", "", "A", "B-", "R", "INV-", "K-")) + digits

    def cents(self) -> int:
        """A price in cents: small ones are more frequent."""
        return self.random.randint(50, self.random.choice((900, 4000, 20000, 99999)))


def different(count: int, draw: Callable[[], str]) -> list[str]:
    """The first `count` different texts that `draw` gives."""
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(draw())
    return list(found)


def format_cents(cents: int, currency: str) -> str:
    """`$12.50`, `12.50 EUR` or a bare `12.50`."""
    amount = f"{cents // 100}.{cents % 100:02d}"
    if currency in ("$", "£"):
        return currency + amount
    return f"{amount} {currency}".strip()


def of_world(choices: Sequence[Choice], held_out: bool) -> list[Choice]:
    """Every fourth choice if held out, else the others. Lists of fewer than four serve both worlds."""
    if len(choices) < HELD_OUT_EVERY:
        return list(choices)
    return [
        choice
        for index, choice in enumerate(choices)
        if (index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out
    ]
