"""Small data sets in the layouts that were published: their lists by path, without images."""

from __future__ import annotations

import json


def lines(*rows: str) -> str:
    return "".join(f"{row}\n" for row in rows)


def counted(columns: str, *rows: str) -> str:
    return lines(str(len(rows)), columns, *rows)


ATTRIBUTE_PREDICTION = {
    "Eval/list_eval_partition.txt": counted(
        "image_name  evaluation_status",
        "img/Tee/1.jpg      train",
        "img/Tee/2.jpg      val",
        "img/Dress/1.jpg    train",
        "img/Dress/2.jpg    test",
        "img/Dress/3.jpg    test",
    ),
    "Anno/list_attr_cloth.txt": counted(
        "attribute_name  attribute_type",
        "abstract print      1",
        "a-line              3",
        "lace                1",
        "lace                2",
        "bell sleeve         4",
        "lace                2",
    ),
    "Anno/list_attr_img.txt": counted(
        "image_name  attribute_labels",
        "img/Dress/1.jpg   -1  1 -1 -1  1 -1",
        "img/Tee/1.jpg      1 -1  1  1 -1 -1 ",
        "img/Tee/2.jpg     -1 -1 -1  0 -1  1",
        "img/Dress/2.jpg   -1 -1 -1 -1 -1 -1",
        "img/Dress/3.jpg    1  1 -1 -1 -1 -1",
        "img/Other/9.jpg    1  1  1  1  1  1",
    ),
    "Anno/list_category_cloth.txt": counted("category_name  category_type", "Tee  1", "Cape Dress  3"),
    "Anno/list_category_img.txt": counted(
        "image_name  category_label",
        "img/Tee/1.jpg      1",
        "img/Tee/2.jpg      1",
        "img/Dress/1.jpg    2",
        "img/Dress/2.jpg    2",
        "img/Dress/3.jpg    2",
    ),
    "Anno/list_bbox.txt": counted(
        "image_name  x_1  y_1  x_2  y_2",
        "img/Tee/1.jpg      001 002 020 030",
        "img/Tee/2.jpg      001 002 021 030",
        "img/Dress/1.jpg    001 002 022 030",
        "img/Dress/2.jpg    001 002 023 030",
        "img/Dress/3.jpg    001 002 024 030",
    ),
}

IN_SHOP = {
    "Eval/list_eval_partition.txt": counted(
        "image_name item_id evaluation_status",
        "img/WOMEN/Tees/id_00000001/01_1_front.jpg   id_00000001 train",
        "img/WOMEN/Tees/id_00000001/01_2_side.jpg    id_00000001 train",
        "img/WOMEN/Tees/id_00000002/01_1_front.jpg   id_00000002 query",
        "img/WOMEN/Tees/id_00000002/01_3_back.jpg    id_00000002 gallery",
        "img/MEN/Denim/id_00000003/02_1_front.jpg    id_00000003 gallery",
    ),
    "Anno/list_bbox_inshop.txt": counted(
        "image_name clothes_type pose_type x_1 y_1 x_2 y_2",
        "img/WOMEN/Tees/id_00000001/01_1_front.jpg   1 1 050 049 208 182",
        "img/WOMEN/Tees/id_00000001/01_2_side.jpg    1 2 119 048 136 182",
        "img/WOMEN/Tees/id_00000002/01_1_front.jpg   1 1 065 040 165 191",
        "img/WOMEN/Tees/id_00000002/01_3_back.jpg    1 3 065 039 165 190",
        "img/MEN/Denim/id_00000003/02_1_front.jpg    2 6 065 039 165 190",
    ),
    "Anno/list_item_inshop.txt": lines("3", "id_00000001", "id_00000002", "id_00000003"),
    "Anno/attributes/list_attr_cloth.txt": counted("attribute_name", "acid wash", "button", "denim"),
    "Anno/attributes/list_attr_items.txt": counted(
        "item_id attribute_labels",
        "id_00000001 -1 1 -1",
        "id_00000003 1 -1 1",
        "id_00000003 1 -1 1",
        "id_00000009 1 1 1",
    ),
}

CONSUMER_TO_SHOP = {
    "Eval/list_eval_partition.txt": counted(
        "image_pair_name_1 image_pair_name_2 item_id evaluation_status",
        "img/TOPS/id_00000001/comsumer_01.jpg  img/TOPS/id_00000001/shop_01.jpg  id_00000001 train",
        "img/TOPS/id_00000001/comsumer_02.jpg  img/TOPS/id_00000001/shop_01.jpg  id_00000001 train",
        "img/TOPS/id_00000002/comsumer_01.jpg  img/TOPS/id_00000002/shop_01.jpg  id_00000002 val",
        "img/TOPS/id_00000003/comsumer_01.jpg  img/TOPS/id_00000003/shop_01.jpg  id_00000003 test",
        "img/TOPS/id_00000003/comsumer_01.jpg  img/TOPS/id_00000003/shop_02.jpg  id_00000003 test",
    ),
    "Anno/list_bbox_consumer2shop.txt": counted(
        "image_name clothes_type source_type x_1 y_1 x_2 y_2",
        "img/TOPS/id_00000001/comsumer_01.jpg  1 2 1 1 20 20",
        "img/TOPS/id_00000001/comsumer_02.jpg  1 2 2 1 20 20",
        "img/TOPS/id_00000001/shop_01.jpg      1 1 3 1 20 20",
        "img/TOPS/id_00000002/comsumer_01.jpg  3 2 4 1 20 20",
        "img/TOPS/id_00000002/shop_01.jpg      3 1 5 1 20 20",
        "img/TOPS/id_00000003/comsumer_01.jpg  1 2 6 1 20 20",
        "img/TOPS/id_00000003/shop_01.jpg      1 1 7 1 20 20",
        "img/TOPS/id_00000003/shop_02.jpg      1 1 8 1 20 20",
        "img/TOPS/id_00000004/shop_01.jpg      1 1 8 1 20 20",
    ),
    "Anno/list_attr_type.txt": counted(
        "attribute_type (Chinese)      attribute_type (English)",
        "衣长                          length of upper-body clothes",
        "细节                          part details of clothes",
    ),
    "Anno/list_attr_cloth.txt": counted(
        "attribute_name (Chinese)  attribute_name (English)  attribute_type",
        "常规款（51-65cm）          Regular length (51-65cm)                     1",
        "打褶                       Pleated                                   \t  2",
        "百褶                       Pleated                                      2  ",
        "蕾丝                       Lace                                         2",
    ),
    "Anno/list_attr_items.txt": counted(
        "item_id attribute_labels", "id_00000001 1 -1 1 1", "id_00000003 -1 1 0 -1", "id_00000004 1 1 1 1"
    ),
}


FASHION_IQ = {
    "image_splits/split.dress.train.json": json.dumps(["B01", "B02", "B03"], indent=1),
    "image_splits/split.toptee.train.json": json.dumps(["B03", "B04"], indent=1),
    "image_splits/split.dress.val.json": json.dumps(["B05", "B06", "B07"], indent=1),
    "image_splits/split.dress.test.json": json.dumps(["B08", "B09"], indent=1),
    "captions/cap.dress.train.json": json.dumps(
        [
            {"target": "B02", "candidate": "B01", "captions": ["is shorter", " red"]},
            {"target": "B01", "candidate": "B03", "captions": ["is plain", "has no sleeves"]},
        ],
        indent=1,
    ),
    "captions/cap.toptee.train.json": json.dumps(
        [{"target": "B03", "candidate": "B04", "captions": ["is darker", "has a logo"]}], indent=1
    ),
    "captions/cap.dress.val.json": json.dumps(
        [{"target": "B06", "candidate": "B05", "captions": ["is green", "is longer"]}], indent=1
    ),
    "captions/cap.dress.test.json": json.dumps(
        [{"candidate": "B08", "captions": ["is blue", "é"]}], indent=1
    ),
}


def _described(path: str, caption: str) -> str:
    return f"women/{path}.jpeg\t0.986\t{caption}"


FASHION_200K = {
    "labels/dress_train_detect_all.txt": lines(
        _described("dresses/day/11/11_0", "black lace dress"),
        _described("dresses/day/11/11_1", "black lace dress"),
        _described("dresses/day/12/12_0", "red lace dress"),
        _described("dresses/day/13/13_0", "  black   silk dress "),
        _described("dresses/day/14/14_0", "a.l.c. long gown & belt"),
    ),
    "labels/top_train_detect_all.txt": lines(_described("tops/t/21/21_0", "white lace dress")),
    "labels/dress_test_detect_all.txt": lines(
        _described("dresses/day/31/31_0", "blue midi dress"),
        _described("dresses/day/31/31_1", "blue midi dress"),
        _described("dresses/day/32/32_0", "green midi dress"),
    ),
    "labels/top_test_detect_all.txt": lines(_described("tops/t/41/41_0", "green silk blouse")),
    "test_queries.txt": lines(
        "women/dresses/day/31/31_1.jpeg women/dresses/day/32/32_0.jpeg",
        "women/dresses/day/32/32_0.jpeg women/dresses/day/31/31_0.jpeg",
    ),
}


def _cirr(split: str, pairs: list[tuple[int, int | None]]) -> dict[str, str]:
    """Six images, and a composition for each pair of two of them."""
    names = [f"{split}-{i}-0-img{i % 2}" for i in range(6)]
    folder = {"train": "train/34", "val": "dev", "test1": "test1"}[split]
    queries = []
    for number, (reference, target) in enumerate(pairs, start=7):
        query = {"pairid": number, "reference": names[reference]}
        if target is not None:
            query |= {"target_hard": names[target], "target_soft": {names[target]: 1.0}}
        query |= {"caption": f"show {number} dogs", "img_set": {"id": 1, "members": names}}
        queries.append(query)
    return {
        f"image_splits/split.rc2.{split}.json": json.dumps(
            {name: f"./{folder}/{name}.png" for name in names}
        ),
        f"captions/cap.rc2.{split}.json": json.dumps(queries),
    }


CIRR = {
    **_cirr("train", [(0, 1), (2, 3)]),
    **_cirr("val", [(5, 4)]),
    **_cirr("test1", [(1, None), (2, None)]),
}


def _box(*sides: int) -> dict[str, int]:
    return dict(zip(("left", "top", "width", "height"), sides, strict=True))


STREET2SHOP = {
    "meta/json/train_pairs_bags.json": json.dumps(
        [
            {"photo": 1, "product": 5, "bbox": _box(0, 2, 10, 12)},
            {"photo": 1, "product": 6, "bbox": _box(-3, 0, 20, 20)},
        ],
        indent=1,
    ),
    "meta/json/test_pairs_bags.json": json.dumps([{"photo": 2, "product": 7, "bbox": _box(1, 1, 9, 9)}]),
    "meta/json/test_pairs_hats.json": json.dumps([{"photo": 2, "product": 5, "bbox": _box(4, 4, 9, 9)}]),
    "meta/json/retrieval_bags.json": json.dumps(
        [
            {"photo": photo, "product": product}
            for photo, product in ((11, 5), (12, 5), (13, 6), (14, 7), (15, 8))
        ]
    ),
    "meta/json/retrieval_hats.json": json.dumps([{"photo": 16, "product": 5}]),
}


OML = {
    "df.csv": lines(
        ",label,path,split,is_query,is_gallery,category,x_1,x_2,y_1,y_2,text,sequence,extra",
        '0,12,images/a.jpg,train,,,tops,1,20,2.0,30,"red, plain",s1,x',
        "1,12,images/b.jpg,train,,,bags,,,,,,s1,x",
        "2,7,images/c.jpg,validation,True,False,,,,,,blue,,x",
        "3,7,images/d.jpg,validation,0,1.0,tops,0,5,0,5,,s2,x",
        "4,9,images/e.jpg,validation,1,1,tops,0,5,0,5,,s2,x",
        "5,9,images/f.jpg,validation,False,True,bags,0,5,0,5,,s3,x",
    )
}


PUBLISHED = {
    "attribute-prediction": ATTRIBUTE_PREDICTION,
    "in-shop": IN_SHOP,
    "consumer-to-shop": CONSUMER_TO_SHOP,
    "fashion-iq": FASHION_IQ,
    "fashion-200k": FASHION_200K,
    "cirr": CIRR,
    "street2shop": STREET2SHOP,
    "oml": OML,
}
