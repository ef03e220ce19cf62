"""Small raw folders in the layouts in which authors publish their datasets."""

import gzip
import io
import json

import pytest
from PIL import Image


def jpeg(seed):
    """A small picture of its own for each seed."""
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (seed * 37 % 256, seed * 91 % 256, 40)).save(file, "JPEG")
    return file.getvalue()


def write_pictures(folder, names):
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(seed))


def write_lines(path, lines, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(line + end for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


M5_TABLE = {
    "101": {
        "title": "红色 连衣裙",
        "pv": "颜色#:#红色#;#材质#:#棉",
        "label": "连衣裙",
        "url": "//a",
    },
    "102": {"title": "Red dress", "pv": "-", "label": "连衣裙", "url": "//b"},
    "103": {"title": "Blue dress", "pv": "颜色#:#蓝色", "label": "连衣裙", "url": "//c"},
    "104": {"title": "Mug", "pv": "", "label": "杯", "url": "//d"},
    "105": {"caption": "Kettle", "tabular": {"volume": "2 l"}, "label": "壶"},
    "106": {"title": "Lamp", "pv": "", "label": "灯", "url": "//f"},
}
M5_TRUTH = {
    "101": {"title": "红色 连衣裙", "label": "dress-1", "url": "//a"},
    "102": {"title": "Red dress", "label": "dress-1", "url": "//b"},
    "103": {"title": "Blue dress", "label": "dress-2", "url": "//c"},
}
M5_LISTS = {
    "query_fg": ["101", "103"],
    "gallery_fg": ["102", "103"],
    "query_cg": ["104"],
    "gallery_cg": ["101", "102"],
    "train_cls": ["105", "106"],
    "test_cls": ["102", "104"],
}


def write_m5product(folder):
    write_pictures(folder, [f"images/{name}.jpg" for name in M5_TABLE])
    for name, content in (("id_label", M5_TABLE), ("product1m_product5m_id_label", M5_TRUTH)):
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    for name, ids in M5_LISTS.items():
        (folder / f"{name}_image_ids.json").write_text(json.dumps(ids))


def texts(**by_tag):
    return [{"language_tag": tag, "value": value} for tag, value in by_tag.items()]


ABO_LISTINGS = [
    {
        "item_id": "B001",
        "domain_name": "amazon.com",
        "item_name": texts(en_US="Oak chair", de_DE="Eichenstuhl"),
        "brand": texts(en_US="Rivet", de_DE="Rivet"),
        "color": [
            {"language_tag": "en_US", "standardized_values": ["Brown"], "value": "Walnut brown"},
            {"language_tag": "de_DE", "value": "Walnussbraun"},
        ],
        "material": texts(en_US="Oak") + texts(en_US="Steel") + texts(en_US="Oak"),
        "product_type": [{"value": "CHAIR"}],
        "main_image_id": "71oak+chairL",
        "other_image_id": ["81oak-sideL", "71oak+chairL", "91oak-backL"],
        "item_dimensions": {"height": {"unit": "inches", "value": 30.0}},
    },
    {
        "item_id": "B001",
        "domain_name": "amazon.de",
        "item_name": texts(de_DE="Eichenstuhl"),
        "color": texts(de_DE="Walnuss"),
        "style": texts(en_GB="Modern"),
        "product_type": "CHAIR",
        "main_image_id": "71oak+chairL",
    },
    {
        "item_id": "B002",
        "domain_name": "amazon.in",
        "item_name": texts(en_IN="Phone case"),
        "product_type": [{"value": "CELLULAR_PHONE_CASE"}],
        "main_image_id": "51caseL",
        "model_year": [{"value": 2019}],
    },
]
ABO_PATHS = {
    "71oak+chairL": "14/14fe8812.jpg",
    "81oak-sideL": "da/daab0cad.jpg",
    "91oak-backL": "d2/d2daaae9.png",
    "51caseL": "3a/3a4e88e6.jpg",
}


def write_abo(folder):
    write_pictures(folder, [f"images/small/{path}" for path in ABO_PATHS.values()])
    lines = [json.dumps(x, ensure_ascii=False) for x in ABO_LISTINGS]
    write_lines(folder / "listings/metadata/listings_0.json.gz", lines[:2])
    write_lines(folder / "listings/metadata/listings_f.json.gz", lines[2:])
    table = [f"{name},106,212,{path}" for name, path in ABO_PATHS.items()]
    write_lines(folder / "images/metadata/images.csv.gz", ["image_id,height,width,path", *table])


PRODUCT1M_LINES = {
    "train": ["1#####Day&nbsp;cream 50ml#####https://i/1.jpg#####http://o/images/1.jpg"],
    "gallery": [
        "2#####AHC toner#####https://i/2.jpg#####http://o/images/2.jpg#####AHC toner",
        "3#####AHC gold cream#####https://i/3.jpg#####http://o/images/3.jpg#####AHC cream",
    ],
    "test": [
        "4#####AHC set#####https://i/4.jpg#####http://o/images/4.jpg"
        "#####AHC cream#;#AHC toner#;#AHC cream",
        "5#####AHC toner new#####https://i/5.jpg#####http://o/images/5.jpg#####AHC toner",
    ],
    "dev": ["6#####AHC cream old#####https://i/6.jpg#####http://o/images/6.jpg#####AHC cream"],
}


def write_product1m(folder):
    write_pictures(folder, [f"images/{name}.jpg" for name in range(1, 7)])
    for part, lines in PRODUCT1M_LINES.items():
        write_lines(folder / f"product1m_{part}_ossurl_v2.txt", lines, end="\r\n")


SOP_LINES = {
    "train": [
        "1 1 1 bicycle_final/111085122871_0.JPG",
        "2 1 1 bicycle_final/111085122871_1.JPG",
        "3 2 4 coffee_maker_final/111265328556_0.JPG",
    ],
    "test": [
        "4 11319 7 lamp_final/251952414262_0.JPG",
        "5 11319 7 lamp_final/251952414262_1.JPG",
    ],
}


def write_online_products(folder):
    for half, lines in SOP_LINES.items():
        write_pictures(folder, [line.split()[3] for line in lines])
        header = "image_id class_id super_class_id path"
        write_lines(folder / f"Ebay_{half}.txt", [header, *lines])


MBE_RECORDS = {
    "MBE_train": [
        {
            "id": "00aa",
            "doc_title": "不锈钢水壶",
            "doc_image": "https://img.alicdn.com/imgextra/i1/x.jpg",
            "doc_industry_name": "家居",
            "doc_cate1_name": "厨房",
            "doc_cate2_name": "水壶",
            "doc_attributes": "材质:不锈钢,,颜色:银!!!黑,,无",
        }
    ],
    "MBE_test": [
        {
            "id": "00bb",
            "doc_title": "连衣裙",
            "doc_image": "pictures/bb.jpg",
            "doc_industry_name": "服饰时尚",
            "doc_cate1_name": "",
            "doc_attributes": "",
            "query_pic": "https://img.alicdn.com/q.jpg",
            "query_words": "夏季裙",
        }
    ],
}


def write_mbe(folder):
    names = ["images/00aa.jpg", "pictures/bb.jpg", "images/00bb-query.jpg"]
    write_pictures(folder, names)
    for name, records in MBE_RECORDS.items():
        write_lines(folder / f"{name}.jsonl", [json.dumps(x, ensure_ascii=False) for x in records])


WRITERS = {
    "m5product": write_m5product,
    "abo": write_abo,
    "product1m": write_product1m,
    "online-products": write_online_products,
    "mbe": write_mbe,
}


@pytest.fixture
def raw_folder(tmp_path):
    """Writes the raw folder of a layout and gives its path."""

    def write(name):
        folder = tmp_path / name
        folder.mkdir()
        WRITERS[name](folder)
        return folder

    return write
