"""Labels of the validation images as Kaggle gives them."""

import pytest

from shards.build.devkit import is_kaggle_labels, kaggle_labels
from shards.build.source import find

ROWS = (
    "ImageId,PredictionString\n"
    "ILSVRC2012_val_00048981,n03995372 85 1 499 272 \n"
    "ILSVRC2012_val_00037956,n03481172 131 0 499 254 n03481172 1 2 3 4\r\n"
    "ILSVRC2012_val_00000001,n01751748"
)


def labels(tmp_path, text: str) -> dict[str, str]:
    path = tmp_path / "LOC_val_solution.csv"
    path.write_text(text, newline="")
    return kaggle_labels(find(str(path)))


def test_each_image_has_the_class_of_its_objects(tmp_path):
    assert labels(tmp_path, ROWS) == {
        "ILSVRC2012_val_00048981.JPEG": "n03995372",
        "ILSVRC2012_val_00037956.JPEG": "n03481172",
        "ILSVRC2012_val_00000001.JPEG": "n01751748",
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ROWS[:-3], "2 of its 3 lines"),
        (ROWS.partition("\n")[2], "2 of its 2 lines"),
        (ROWS.replace("_val_", "_test_"), "0 of its 3 lines"),
        (ROWS.replace("00000001", "00048981"), "2 of its 3 lines"),
        ("ImageId,PredictionString\n", "0 of its 0 lines"),
    ],
)
def test_a_damaged_list_is_refused(tmp_path, text, told):
    with pytest.raises(ValueError, match=told):
        labels(tmp_path, text)


def test_the_list_is_recognised_by_its_name():
    assert is_kaggle_labels("s3://bucket/imagenet/LOC_val_solution.csv")
    assert not is_kaggle_labels("LOC_train_solution.csv")
