"""Words for every value in four languages, for titles and for the oracle's lists.

In each language no phrase of one value occurs in a phrase of another, so that a
title's words say one thing.
"""

from __future__ import annotations

from typing import Literal

Language = Literal["en", "de", "fr", "es"]
LANGUAGES: tuple[Language, ...] = ("en", "de", "fr", "es")

_PHRASES: dict[str, str] = {
    "type": """
        shirt | shirt/tee | Shirt/T-Shirt | tee-shirt/haut | camiseta/playera
        sweater | sweater/jumper/pullie | Pulli/Strickpulli | pull/chandail | suéter/jersey
        jacket | jacket/blazer | Jacke/Blazer | veste/blouson | chaqueta/americana
        tunic | tunic/smock | Tunika/Kasack | tunique/blouse ample | túnica/blusón
        dress | dress/gown/frock | Kleid/Damenkleid | robe | vestido
        jumpsuit | jumpsuit/playsuit | Overall/Jumpsuit | combinaison | mono/enterizo
        poncho | poncho/cape | Poncho/Cape | poncho/cape | poncho/capa
        dungarees | dungarees/bib overalls | Latzhose | salopette | peto/pantalón de peto
        trousers | trousers/pants/slacks | Hose/Stoffhose | pantalon | pantalones
        skirt | skirt | Rock/Damenrock | jupe | falda""",
    "length": """
        cropped | cropped/short cut | kurz geschnitten | coupe courte/court | corto/recortado
        regular | regular length/usual length | normale Länge | longueur standard | largo estándar
        long | extra long/longline | lang geschnitten/Longform | coupe longue | extra largo
        full | full length/maxi length | bodenlang | longueur maxi | largo hasta el suelo""",
    "neckline": """
        round | round neck/crew neck | Rundhals | col rond/ras du cou | cuello redondo
        v-neck | v-neck/v neckline | V-Ausschnitt | col en v/encolure v | cuello en pico/escote en v
        square | square neck | Karree-Ausschnitt | encolure carrée | escote cuadrado
        boat | boat neck/bateau neck | U-Boot-Ausschnitt | encolure bateau | cuello barco
        keyhole | keyhole neck | Schlüsselloch-Ausschnitt | encolure goutte | escote lágrima
        cowl | cowl neck/draped neck | Wasserfallausschnitt | col bénitier | cuello drapeado
        turtleneck | turtleneck/roll neck | Rollkragen | col roulé | cuello alto""",
    "collar": """
        collarless | collarless/no collar | kragenlos | sans col | sin solapa
        pointed | pointed collar/spread collar | Spitzkragen | col pointu | solapa en punta
        rounded | rounded collar/peter pan collar | Bubikragen | col claudine | solapa bebé
        hooded | hooded/with hood | mit Kapuze | à capuche | con capucha
        bow | bow collar/pussy bow | Schluppe/Schleifenkragen | col lavallière | lazada
        ruffled | ruffled collar/frilled collar | Rüschenkragen | collerette | gorguera""",
    "sleeve": """
        sleeveless | sleeveless/no sleeves | ärmellos | sans manches | sin mangas
        short | short sleeves/short sleeve | Kurzarm/kurze Ärmel | manches courtes | manga corta
        elbow | elbow sleeves/half sleeves | Halbarm | manches mi-longues | manga al codo
        long | long sleeves/long sleeve | Langarm/lange Ärmel | manches longues | manga larga
        bell | bell sleeves/flared sleeves | Trompetenärmel | manches évasées | manga acampanada
        puff | puff sleeves/puffed sleeves | Puffärmel | manches bouffantes | manga abullonada""",
    "waist": """
        seamed | seamed waist | schlichter Bund | taille simple | cintura lisa
        belted | belted/with belt | mit Gürtel | avec ceinture/ceinturé | con cinturón
        drawstring | drawstring waist/tie cord | mit Kordelzug | à cordon | con cordón
        elastic | elastic waist/stretch waist | Gummibund | taille élastique | cintura elástica
        sash | sash/sash tie | mit Schärpe | large noeud/écharpe nouée | con fajín""",
    "hem": """
        straight | straight hem | gerader Saum | ourlet droit | bajo recto
        curved | curved hem/shirttail hem | runder Saum | ourlet arrondi | bajo curvo
        peaked | peaked hem/v hem | spitzer Saum | ourlet en pointe | bajo en punta
        slanted | slanted hem/asymmetric hem | schräger Saum | ourlet asymétrique | bajo asimétrico
        scalloped | scalloped hem/wavy hem | Bogensaum/Wellensaum | ourlet festonné | bajo ondulado
        slit | front slit/slit hem | mit Schlitz | fendu devant | con abertura""",
    "pattern": """
        plain | plain/solid | einfarbig/uni | uni | liso
        striped | striped/horizontal stripes | quergestreift/Querstreifen | marinière/rayé | a rayas
        vertical | pinstriped/vertical stripes | längsgestreift | rayures verticales | raya vertical
        diagonal | diagonal stripes | Diagonalstreifen | en biais/diagonales | diagonal
        checked | checked/windowpane check | kariert/Karomuster | à carreaux | a cuadros
        dotted | dotted/polka dot | gepunktet/Punkte | à pois | de lunares
        floral | floral/flower print | geblümt/Blumenmuster | fleuri/à fleurs | de flores/floral
        zigzag | zigzag/chevron | Zickzack | à chevrons/zigzag | en zigzag
        argyle | argyle/diamonds | Rauten/Argyle | losanges/argyle | rombos
        leopard | leopard/animal print | Leo-Print/Leopard | léopard | leopardo
        colorblock | color block/two tone | Colorblock/zweifarbig | bicolore | bicolor""",
    "color": """
        white | white/ivory/snow | weiß/schneeweiß | blanc/ivoire | blanco/marfil
        black | black/jet/ebony | schwarz/tiefschwarz | noir/ébène | negro/azabache
        grey | grey/gray/ash | grau/aschgrau | gris/gris souris | gris/ceniza
        brown | brown/chocolate/walnut | braun/schoko | marron/chocolat | marrón/chocolate
        red | red/crimson/scarlet | rot/scharlach | rouge/écarlate | rojo/escarlata
        orange | orange/tangerine/amber | orange/mandarin | orange/mandarine | naranja/mandarina
        yellow | yellow/mustard/lemon | gelb/senf | jaune/citron | amarillo/limón
        green | green/emerald/forest | grün/smaragd | vert/émeraude | verde/esmeralda
        turquoise | turquoise/teal/aqua | türkis/petrol | turquoise/canard | turquesa/aguamarina
        blue | blue/cobalt/royal | blau/kobalt | bleu/cobalt | azul/cobalto
        purple | purple/violet/plum | lila/violett | violet/prune | morado/violeta
        pink | pink/rose/blush | rosa/rosé | rose/fuchsia | rosa/fucsia""",
    "closure": """
        pullover | pull-on/slip-on | zum Überziehen | à enfiler | sin botones
        buttoned | buttoned/button front | geknöpft/Knopfleiste | boutonné | abotonado
        zipped | zipped/zip front | Reißverschluss/Zip | zippé | con cremallera
        laced | lace-up/laced front | Schnürung | lacé devant | acordonado
        wrapped | wrap front/wrapped | gewickelt/Wickeloptik | cache-coeur/croisé | cruzado
        toggled | toggles/toggle front | Knebelverschluss | brandebourgs | alamares""",
    "pocket": """
        pocketless | no pockets/pocketless | ohne Taschen | sans poches | sin bolsillos
        chest | chest pocket/breast pocket | Brusttasche | poche poitrine | bolsillo en el pecho
        patch | patch pockets | aufgesetzte Taschen | poches plaquées | bolsillos de parche
        slant | slant pockets/welt pockets | Schubtaschen | poches obliques | bolsillos oblicuos
        flap | flap pockets | Pattentaschen | poches à rabat | bolsillos con tapa
        kangaroo | kangaroo pocket/pouch | Kängurutasche | poche kangourou | bolsillo canguro""",
    "trim": """
        untrimmed | clean edges | schlichte Kanten | bords simples | bordes simples
        banded | banded/contrast band | Kontrastblende | à liseré/liseré contrasté | con ribete
        ribbed | ribbed/rib cuffs | Rippbündchen | bords côtelés | canalé
        fringed | fringed/fringe | mit Fransen | frangé/à franges | con flecos
        furry | faux fur trim/furry | Kunstfellbesatz | bords fourrure | ribetes de pelo
        lace | lace trim/lace edge | Spitzenbesatz/Spitze | dentelle | encaje/puntilla""",
    "material": """
        cotton | cotton/pure cotton | Baumwolle | coton | algodón
        wool | wool/merino | Wolle/Merino | laine/mérinos | lana/merino
        linen | linen/flax | Leinen | lin | lino
        silk | silk/mulberry silk | Seide | soie | seda
        polyester | polyester/poly | Polyester | polyester | poliéster
        viscose | viscose/rayon | Viskose | viscose | viscosa""",
    "care": """
        machine | machine washable | maschinenwaschbar | lavable en machine | lavable a máquina
        hand | hand wash | Handwäsche | lavage à la main | lavar a mano
        dry | dry clean only | nur Reinigung | nettoyage à sec | limpieza en seco
        gentle | gentle cycle | Schonwaschgang | cycle délicat | programa delicado""",
}
"""A line for each value: the value, then its phrases in en, de, fr and es, the usual one first."""


def _read(lines: str) -> dict[str, dict[Language, tuple[str, ...]]]:
    table: dict[str, dict[Language, tuple[str, ...]]] = {}
    for line in lines.strip().splitlines():
        value, *phrases = (part.strip() for part in line.split("|"))
        found = (tuple(x.split("/")) for x in phrases)
        table[value] = dict(zip(LANGUAGES, found, strict=True))
    return table


PHRASES = {key: _read(lines) for key, lines in _PHRASES.items()}
"""Phrases by key, value and language, the usual one first."""
PHRASES["accent"] = {
    value: {
        language: tuple(frame.format(word) for word in words[language])
        for language, frame in zip(
            LANGUAGES,
            ("{} accents", "Akzente {}", "touches {}", "detalles {}"),
            strict=True,
        )
    }
    for value, words in PHRASES["color"].items()
}

MARKETING: dict[Language, tuple[str, ...]] = {
    "en": (
        "new", "sale", "must have", "trendy", "best price", "premium", "hot", "casual chic",
        "free shipping", "limited", "gift idea", "top quality", "everyday", "stylish",
    ),
    "de": (
        "neu", "Angebot", "modisch", "Top Qualität", "Bestpreis", "elegant", "Lieblingsteil",
        "versandkostenfrei", "limitiert", "Geschenkidee", "bequem", "angesagt",
    ),
    "fr": (
        "nouveau", "promo", "tendance", "qualité supérieure", "chic", "livraison offerte",
        "édition limitée", "idée cadeau", "confortable", "incontournable",
    ),
    "es": (
        "nuevo", "oferta", "de moda", "alta calidad", "elegante", "envío gratis",
        "edición limitada", "idea de regalo", "cómodo", "imprescindible",
    ),
}  # fmt: skip
"""Words that say nothing about the product."""
ITEM: dict[Language, str] = {"en": "garment", "de": "Teil", "fr": "article", "es": "prenda"}
"""For a title that does not say what it sells."""

SYNONYMS: dict[str, dict[str, tuple[str, ...]]] = {
    key: {value: words["en"][1:] for value, words in table.items() if len(words["en"]) > 1}
    for key, table in PHRASES.items()
    if key != "accent"
}
"""English words of the oracle's lists besides the value itself, by key and value."""
SYNONYMS["accent"] = SYNONYMS["color"]

FLUFF: tuple[tuple[str, str], ...] = (
    ("style", "modern"),
    ("quality", "high"),
    ("look", "elegant"),
    ("occasion", "everyday"),
    ("condition", "new"),
    ("fit", "comfortable"),
)
"""Pairs that say nothing about the product."""
