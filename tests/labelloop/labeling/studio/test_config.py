import pickle

import pytest

from labelloop.labeling.errors import MalformedConfig
from labelloop.labeling.studio.config import LabelConfig, data_value, data_with

FULL = """
<View>
  <Header value="Look closely"/>
  <Image name="image" value="$photo" zoom="true"/>
  <Image name="pages" valueList="$pages"/>
  <Text name="caption" value="$text"/>
  <Filter toName="box" name="filter"/>
  <RectangleLabels name="box" toName="image" model_score_threshold="0.25" choice="multiple">
    <Label value="Car" predicted_values="car, truck ,van" background="red"/>
    <View><Label value="Person" alias="ped"/></View>
  </RectangleLabels>
  <Labels name="kind" toName="image"><Label value="Wall"/></Labels>
  <Polygon name="outline" toName="image"/>
  <Rectangle name="frame" toName="image,pages"/>
  <Choices name="scene" toName="image" choice="single"><Choice value="day"/><Choice value="night" alias="n"/></Choices>
  <Choices name="occluded" toName="image" perRegion="true"><Choice value="yes"/></Choices>
  <Taxonomy name="species" toName="image">
    <Choice value="Animal"><Choice value="Dog"><Choice value="Poodle"/></Choice></Choice><Choice value="Plant"/>
  </Taxonomy>
  <TextArea name="note_{{idx}}" toName="image"/>
</View>
"""


@pytest.fixture(scope="module")
def config():
    return LabelConfig.parse(FULL)


def test_controls_and_objects_come_in_the_order_of_the_xml(config):
    assert list(config.controls) == [
        *("box", "kind", "outline", "frame", "scene", "occluded", "species", "note_{{idx}}")
    ]
    assert list(config.objects) == ["image", "pages", "caption"]
    assert [control.name for control in config.controls_of("RectangleLabels", "rectangle", "Labels")] == [
        *("box", "kind", "frame")
    ]
    assert config.controls["frame"].to_names == ("image", "pages")


def test_image_keys_contain_no_captions(config):
    assert config.image_keys == ("photo", "pages")
    assert [image.is_list for image in config.images] == [False, True]
    assert config.data_key("pages") == "pages"
    assert config.data_key("nowhere") is None


def test_labels_keep_order_and_attributes(config):
    car, person = config.controls["box"].labels
    assert (car.value, car.alias, car.predicted_values) == ("Car", None, ("car", "truck", "van"))
    assert car.attributes["background"] == "red"
    assert (person.value, person.stored) == ("Person", "ped")
    assert config.controls["box"].score_threshold == 0.25
    assert config.controls["box"].multiple
    assert config.controls["kind"].score_threshold is None


@pytest.mark.parametrize(
    ("model_class", "label"),
    [
        ("Car", "Car"),  # by name
        ("truck", "Car"),  # by predicted_values
        ("TRUCK", "Car"),  # but for case
        ("Person", "ped"),  # a result holds the alias
        ("ped", "ped"),
        ("person", "ped"),
        ("bicycle", None),
        ("", None),
    ],
)
def test_a_models_class_finds_its_label(config, model_class, label):
    assert config.controls["box"].label_for(model_class) == label


def test_predicted_values_beat_a_label_of_that_name():
    config = LabelConfig.parse(
        '<View><Image name="i" value="$i"/><RectangleLabels name="b" toName="i">'
        '<Label value="car"/><Label value="Vehicle" predicted_values="car"/></RectangleLabels></View>'
    )
    assert config.controls["b"].label_for("car") == "Vehicle"


def test_choices_inside_choices_are_paths(config):
    assert [label.value for label in config.controls["species"].labels] == [
        *("Animal", "Animal/Dog", "Animal/Dog/Poodle", "Plant")
    ]
    assert config.controls["species"].label_for("poodle") == "Animal/Dog/Poodle"
    assert config.controls["scene"].labels[1].stored == "n"


def test_per_region_and_per_task_controls_are_distinguished(config):
    assert config.controls["occluded"].per_region
    assert not config.controls["scene"].per_region


def test_controls_in_a_repeater_match_any_index(config):
    assert config.control("note_12").name == "note_{{idx}}"
    assert config.control("note_") is None
    assert config.control("box").tag == "RectangleLabels"


def test_a_config_travels_to_other_processes(config):
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<View>",
        "no xml",
        '<View><RectangleLabels toName="image"/></View>',
        '<View><Rectangle name="a" toName="i"/><Polygon name="a" toName="i"/></View>',
        '<View><RectangleLabels name="b" toName="i" model_score_threshold="high"/></View>',
        '<!DOCTYPE v [<!ENTITY a "aaaa">]><View><Header value="&a;"/></View>',
    ],
)
def test_what_label_studio_would_refuse_is_malformed(xml):
    with pytest.raises(MalformedConfig):
        LabelConfig.parse(xml)


@pytest.mark.parametrize(
    ("data", "key", "value"),
    [
        ({"image": "a.jpg"}, "image", "a.jpg"),
        ({"photo": {"url": "a.jpg"}}, "photo.url", "a.jpg"),
        ({"photo.url": "flat.jpg", "photo": {"url": "a.jpg"}}, "photo.url", "flat.jpg"),
        ({"pages": [{"image": "0.jpg"}, {"image": "1.jpg"}]}, "pages[1].image", "1.jpg"),
        ({"list": ["0.jpg", "1.jpg"]}, "list[0]", "0.jpg"),
        ({"photo": {"my key": "a.jpg"}}, 'photo["my key"]', "a.jpg"),
        ({"list": ["0.jpg"]}, "list[3]", None),
        ({"photo": "a.jpg"}, "photo.url", None),
        ({"photo": "a.jpg"}, "photo[0]", None),
        ({"pages": [{"image": "0.jpg"}]}, "pages[{{idx}}].image", None),
        ({}, "photo.url", None),
    ],
)
def test_values_are_found_by_key_or_path(data, key, value):
    assert data_value(data, key) == value


@pytest.mark.parametrize("key", ["image", "0", "photo.url", "list[0]", "pages[1].image", 'photo["my key"]'])
def test_data_with_a_value_has_it_under_its_key(key):
    assert isinstance(data_with(key, "a.jpg"), dict)
    assert data_value(data_with(key, "a.jpg"), key) == "a.jpg"
    assert key not in data_with(key, "a.jpg") or key in ("image", "0")


def test_an_index_of_a_path_makes_no_endless_list():
    assert data_with("pages[9999999999999].image", "a.jpg") == {"pages": {"9999999999999": {"image": "a.jpg"}}}
