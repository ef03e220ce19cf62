"""Furniture vocabulary: colors in five languages, and synonyms a captioner might use."""

from __future__ import annotations

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (238, 238, 234),
    "black": (32, 32, 34),
    "grey": (132, 132, 134),
    "beige": (218, 200, 164),
    "brown": (98, 62, 38),
    "oak": (186, 138, 84),
    "red": (190, 32, 36),
    "orange": (232, 122, 30),
    "yellow": (240, 206, 52),
    "green": (52, 132, 58),
    "turquoise": (52, 178, 170),
    "blue": (44, 92, 188),
    "purple": (118, 58, 148),
    "pink": (236, 142, 172),
}
"""Color names and their sRGB values, 0 to 255."""

COLOUR_WORDS: dict[str, dict[str, str]] = {
    "de": dict(
        zip(
            COLOURS,
            [
                "weiß",
                "schwarz",
                "grau",
                "beige",
                "braun",
                "eiche",
                "rot",
                "orange",
                "gelb",
                "grün",
                "türkis",
                "blau",
                "lila",
                "rosa",
            ],
            strict=True,
        )
    ),
    "fr": dict(
        zip(
            COLOURS,
            [
                "blanc",
                "noir",
                "gris",
                "beige",
                "marron",
                "chêne",
                "rouge",
                "orange",
                "jaune",
                "vert",
                "turquoise",
                "bleu",
                "violet",
                "rose",
            ],
            strict=True,
        )
    ),
    "es": dict(
        zip(
            COLOURS,
            [
                "blanco",
                "negro",
                "gris",
                "beige",
                "marrón",
                "roble",
                "rojo",
                "naranja",
                "amarillo",
                "verde",
                "turquesa",
                "azul",
                "morado",
                "rosa",
            ],
            strict=True,
        )
    ),
    "zh_CN": dict(
        zip(
            COLOURS,
            [
                "白色",
                "黑色",
                "灰色",
                "米色",
                "棕色",
                "橡木色",
                "红色",
                "橙色",
                "黄色",
                "绿色",
                "青色",
                "蓝色",
                "紫色",
                "粉色",
            ],
            strict=True,
        )
    ),
}
"""Color names by language."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "white": ("snow white", "ivory"),
    "black": ("jet black", "ebony"),
    "grey": ("gray", "anthracite"),
    "beige": ("cream", "sand"),
    "brown": ("walnut", "chocolate"),
    "oak": ("natural wood", "tan"),
    "red": ("crimson", "scarlet"),
    "orange": ("tangerine", "amber"),
    "yellow": ("mustard", "lemon"),
    "green": ("forest green", "emerald"),
    "turquoise": ("teal", "aqua"),
    "blue": ("navy", "cobalt"),
    "purple": ("violet", "plum"),
    "pink": ("rose", "blush"),
    "sofa": ("couch", "settee"),
    "armchair": ("lounge chair", "easy chair"),
    "chair": ("seat",),
    "wardrobe": ("closet", "armoire"),
    "cupboard": ("cabinet",),
    "lamp": ("light",),
    "bookcase": ("bookshelf",),
    "desk": ("writing table",),
    "stool": ("bar seat",),
    "bed": ("bedstead",),
    "fridge": ("refrigerator",),
    "refrigerator": ("fridge",),
    "cooker": ("stove",),
    "bath": ("bathtub", "tub"),
    "bathtub": ("bath", "tub"),
    "sink": ("basin",),
    "washbasin": ("sink",),
    "television": ("tv",),
    "tv": ("television",),
    "carpet": ("rug",),
    "plant": ("greenery",),
    "drawer": ("chest of drawers",),
    "drawers": ("dresser",),
    "mirror": ("looking glass",),
    "window": ("casement",),
    "small": ("compact", "little"),
    "medium": ("mid-size", "regular"),
    "large": ("big", "spacious"),
    "tall": ("high", "upright"),
    "wide": ("broad",),
    "flat": ("low", "slim"),
    "compact": ("cubic",),
    "living room": ("lounge",),
    "bedroom": ("sleeping area",),
    "office": ("workspace",),
    "kitchen": ("cooking area",),
    "bathroom": ("washroom",),
    "lights": ("lighting",),
}
"""Other words for a value; the key is the catalogue's word."""

GENERIC: tuple[str, ...] = (
    "style: beautiful",
    "quality: high",
    "design: modern",
    "use: home",
    "condition: new",
    "look: elegant",
)
"""Pairs that say nothing about the product."""
