"""The class list of winter21 against what is known of that release from elsewhere."""

from shards.dataset import wordnet
from shards.dataset.classes import class_list, described

PERSON = "n00007846"


def is_person(wnid: str) -> bool:
    return wnid == PERSON or PERSON in wordnet.ancestors(wnid)


def test_winter21_is_fall11_without_2674_synsets_of_people():
    removed = set(class_list("fall11")) - set(class_list("winter21"))
    assert set(class_list("winter21")) < set(class_list("fall11"))
    assert len(class_list("winter21")) == 19_167 and len(removed) == 2_674
    assert all(map(is_person, removed))


def test_winter21_holds_every_class_of_the_set_that_was_processed_from_it():
    # An independent list, made from the archive itself.
    assert set(class_list("miil-winter21")) < set(class_list("winter21"))
    taken = set(class_list("miil-fall11")) - set(class_list("miil-winter21"))
    assert len(taken) == 771 and not taken & set(class_list("winter21"))


def test_winter21_keeps_all_classes_of_imagenet_1k_that_fall11_has():
    assert set(class_list("1k")) - set(class_list("winter21")) == {"n04399382"}


def test_winter21_is_described_by_its_name():
    winter21 = class_list("winter21")
    assert described(winter21) == "winter21: 19,167 classes"
    assert described(winter21[1:]) == "19,166 classes, all of them in winter21"


def test_classes_of_one_name_are_told_apart_by_their_ids():
    wnids = ("n02012849", "n01440764", "n03126707", "cat")  # a bird and a machine
    names = ["crane (n02012849)", "tench, Tinca tinca", "crane (n03126707)", "cat"]
    assert wordnet.names(wnids) == names
